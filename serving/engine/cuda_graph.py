"""A graph on CUDA whose runs are captured: its hundreds of kernels are then launched as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import onnxruntime

from deploy_rnn.runtime import TensorSpec, specs

from .session import contiguous, guarded, quiet


@dataclass(frozen=True)
class _Captured:
    """What one captured run reads and writes: the same addresses each time.

    Attributes:
        inputs, outputs: tensors on the GPU by name.
        binding: of them.
        options: that name this capture.
    """

    inputs: Mapping[str, onnxruntime.OrtValue]
    outputs: Mapping[str, onnxruntime.OrtValue]
    binding: onnxruntime.IOBinding
    options: onnxruntime.RunOptions


class CudaGraph:
    """A graph of fixed sizes but for its rows; one capture for each set of sizes that has been seen.

    Captures share the session's memory, so that runs take turns. Callers keep the number of sizes small: see
    `Engine`, which rounds rows up.
    """

    prefers_few_row_counts = True

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._lock = Lock()
        self._captured: dict[tuple[tuple[int, ...], ...], _Captured] = {}

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        with self._lock:
            return guarded(lambda: self._run(contiguous(feeds), outputs))

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        return specs(self._session)

    def _run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        sizes = tuple(array.shape for array in feeds.values())
        if sizes not in self._captured:
            self._captured[sizes] = self._prepared(feeds, len(self._captured))
        captured = self._captured[sizes]
        for name, array in feeds.items():
            captured.inputs[name].update_inplace(array)
        self._session.run_with_iobinding(captured.binding, captured.options)
        return [captured.outputs[name].numpy() for name in outputs]

    def _prepared(self, feeds: Mapping[str, np.ndarray], number: int) -> _Captured:
        """Tensors to run on; the first run with them is the one that is captured."""
        inputs = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in feeds.items()}
        outputs = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
            for name, array in self._uncaptured(feeds).items()
        }
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return _Captured(inputs, outputs, binding, _options(number))

    def _uncaptured(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One plain run, which tells the sizes of the outputs; it also allocates what a capture may not."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(feeds), _options(-1)), strict=True))


def _options(number: int) -> onnxruntime.RunOptions:
    """Of the capture with this number; -1 for a run that is not captured."""
    options = quiet()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options
