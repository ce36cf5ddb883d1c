"""`Engine`: one model in this process, its inputs checked before they reach onnxruntime."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deploy_rnn.runtime import CPU, TensorSpec

from .batch_engine import BatchEngine
from .feeds import Feeds
from .opening import open_model
from .own_process import OwnProcess


class Engine(OwnProcess):
    """A loaded model; `run` may be called from several threads at once. It belongs to the process that opens it: a fork
    may use it with `threads=1` only.

    The tensors of an .onnx file keep the graph's own layout. Those of a bundle are batch-first, even if its graphs are
    not: (B, T, ...), states (B, ...). States and lengths may be left out: a state is then zeros, and every step of a
    row counts. Which inputs these are is in the manifest, or in the metadata that deploy-rnn writes into a file.

    The constructor opens the graphs and runs none of them. A request is padded to a larger graph, and rows are
    divided among cores, only if trials have shown that the model's answers do not depend on it: at most five small
    runs with random inputs. They run once: in `warm_up`, or in the first `run` whose graph depends on them.

    NaN and infinity are accepted and passed on. Their effect stays in their row, and depends on the graph: the GRU and
    LSTM operators of onnxruntime turn them into numbers.

    Args:
        path: an .onnx file, such as `deploy_rnn.export.export_onnx` writes, or the folder of a bundle.
        provider: the onnxruntime execution provider; there is no silent fallback.
        threads: cores that one run may use; None for all.
        precision: in which it computes, such as "int8", which a bundle must have; None for the only one.

    Attributes:
        name: the bundle's, or that of the file.
        precision: "float32", "float64", "float16" or "int8".
        inputs: name, dtype and shape of what the model takes; a dynamic axis has a name instead of a size.
        outputs: the same for what it gives.

    Raises:
        FileNotFoundError: `path` does not exist.
        BundleError: the folder is not a bundle, or is damaged, or of a later release; it lacks `precision`, or has
            several and none is named.
        LoadError: the file is not a model, or is in another precision.
        ProviderError: the provider is missing or did not start.
        ValueError: `threads` below 1.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str

    def __init__(
        self,
        path: str | Path,
        *,
        provider: str = CPU,
        threads: int | None = None,
        precision: str | None = None,
    ) -> None:
        self._note_process()
        opened = open_model(Path(path), provider, threads, precision)
        self._batch_engine = BatchEngine(opened)
        self.name = self._batch_engine.name
        self.inputs = self._batch_engine.inputs
        self.outputs = self._batch_engine.outputs
        self.precision = self._batch_engine.precision

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            inputs: one array for each input, of its dtype; sizes that share a name must be equal, and none may be 0.
            outputs: the names of the outputs to compute; None for all.

        Raises:
            InputError: an input that is missing, unknown, or of the wrong dtype or shape; a length out of range; steps
                that no graph takes; a size with which the model does something else than its graph; an unknown output.
            RunError: onnxruntime failed, or this is a fork of the process that opened the model.
        """
        # A session for one core has no threads of its own.
        if self._batch_engine.cores > 1:
            self._check_process()
        batch = [Feeds.of(inputs, self._batch_engine.signature)]
        names = self._batch_engine.check_outputs(outputs)
        choice = self._batch_engine.choose(batch)
        return self._batch_engine.run(choice, batch, names)[0]

    def warm_up(self) -> None:
        """Run each graph, and measure which way is the fastest: how to use the cores, from which length on to pad to a
        larger graph, and which graph to use for how many rows.

        It takes seconds for a large model, and is worth them where many runs follow.
        """
        self._batch_engine.warm_up()
