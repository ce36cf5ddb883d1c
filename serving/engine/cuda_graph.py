"""`CudaGraph`: a graph whose runs are captured on CUDA, so that its hundreds of kernels are launched as one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import onnxruntime

from deploy_rnn.runtime import Specs, properties, specs

from .arrays import Arrays, Outputs
from .session import Runner, contiguous, quiet_options, translate_errors

NOT_CAPTURED = -1
"""The "gpu_graph_id" of a run that onnxruntime does not capture."""


@dataclass(frozen=True)
class _CapturedRun:
    """What one captured run reads and writes, at the same addresses each time.

    Attributes:
        inputs, outputs: tensors on the GPU by name.
        binding: of these tensors to the session.
        options: of the run, with the number of this capture.
    """

    inputs: Mapping[str, onnxruntime.OrtValue]
    outputs: Mapping[str, onnxruntime.OrtValue]
    binding: onnxruntime.IOBinding
    options: onnxruntime.RunOptions


class CudaGraph(Runner):
    """A graph whose sizes are fixed, except for the batch; each set of sizes that it meets is captured once.

    Captures share the session's memory, so runs take turns. Callers keep the number of sizes small: `BatchEngine`
    rounds the number of rows up.

    Some nodes run on CUDA and cannot be captured: onnxruntime's Concat takes 32 tensors at most then. Whoever cannot
    be captured runs without it from then on.

    Args:
        session: of the graph, opened with `capture_runs`.
        open_uncaptured: opens the same graph without.
    """

    prefers_few_row_counts = True

    def __init__(
        self, session: onnxruntime.InferenceSession, open_uncaptured: Callable[[], Runner]
    ) -> None:
        self._session = session
        self._open_uncaptured = open_uncaptured
        self._uncaptured: Runner | None = None
        self._lock = Lock()
        self._captured_runs: dict[tuple[tuple[int, ...], ...], _CapturedRun] = {}

    def run(
        self, feeds: Arrays, outputs: Sequence[str], *, one_core: bool = False
    ) -> list[np.ndarray]:
        arrays = contiguous(feeds)
        with self._lock:
            if self._uncaptured is None:
                return translate_errors(lambda: self._run(arrays, outputs))
        return self._uncaptured.run(arrays, outputs)

    def specs(self) -> tuple[Specs, Specs]:
        return specs(self._session)

    def metadata(self) -> Mapping[str, str]:
        return properties(self._session)

    def _run(self, feeds: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        shapes = tuple(array.shape for array in feeds.values())
        captured = self._captured_runs.get(shapes)
        if captured is not None:
            return self._replay(captured, feeds, outputs)
        # A capture replays fixed addresses, so that each set of sizes has its own tensors.
        captured = self._prepare(feeds, number=len(self._captured_runs))
        try:
            results = self._replay(captured, feeds, outputs)
        # onnxruntime has a dozen exception types without a common base. It has just run on these inputs uncaptured.
        except Exception:
            # A stream that failed while it was captured takes no more runs.
            self._uncaptured = self._open_uncaptured()
            return self._uncaptured.run(feeds, outputs)
        self._captured_runs[shapes] = captured
        return results

    def _replay(
        self, captured: _CapturedRun, feeds: Arrays, outputs: Sequence[str]
    ) -> list[np.ndarray]:
        for name, array in feeds.items():
            captured.inputs[name].update_inplace(array)
        self._session.run_with_iobinding(captured.binding, captured.options)
        return [captured.outputs[name].numpy() for name in outputs]

    def _prepare(self, feeds: Arrays, number: int) -> _CapturedRun:
        """Return tensors to run on; onnxruntime captures the first run with them."""
        # A plain run tells the sizes of the outputs, and allocates what a captured run may not allocate.
        results = self._run_uncaptured(feeds)
        binding = self._session.io_binding()
        inputs = {}
        for name, array in feeds.items():
            inputs[name] = _on_gpu(array)
            binding.bind_ortvalue_input(name, inputs[name])
        outputs = {}
        for name, array in results.items():
            outputs[name] = _on_gpu(array)
            binding.bind_ortvalue_output(name, outputs[name])
        return _CapturedRun(inputs, outputs, binding, _options(number))

    def _run_uncaptured(self, feeds: Arrays) -> Outputs:
        names = [output.name for output in self._session.get_outputs()]
        options = _options(NOT_CAPTURED)
        results = self._session.run(names, dict(feeds), options)
        return dict(zip(names, results, strict=True))


def _on_gpu(array: np.ndarray) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)


def _options(number: int) -> onnxruntime.RunOptions:
    """Return the options of a run for the capture with this number."""
    options = quiet_options()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options
