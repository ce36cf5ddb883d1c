"""`Engine`: one ONNX file in this process, its inputs checked before they reach onnxruntime."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deploy_rnn.errors import InputError
from deploy_rnn.runtime import CPU, TensorSpec, open_session, specs


class Engine:
    """A loaded graph; `run` may be called from several threads at once.

    Args:
        path: an .onnx file, such as `deploy_rnn.export.export_onnx` writes.
        provider: the onnxruntime execution provider; there is no silent fallback.
        threads: cores that one run may use; None for all.

    Attributes:
        inputs: name, dtype and shape of what the graph takes; a dynamic axis has a name instead of a size.
        outputs: likewise, what it gives.

    Raises:
        FileNotFoundError: there is no such file.
        LoadError: the file is no model.
        ProviderError: the provider is missing or did not start.
        ValueError: `threads` below 1.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, path: str | Path, *, provider: str = CPU, threads: int | None = None) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"`path` (={str(path)!r}) is not a file.")
        self._session = open_session(path, provider, threads=threads)
        self.inputs, self.outputs = specs(self._session)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run the graph once.

        Args:
            inputs: one array for each input, of its dtype; sizes that share a name must be equal, and none may be 0.
            outputs: the names wanted; None for all.

        Raises:
            InputError: an input that is missing, unknown, or of the wrong dtype or shape; an unknown output.
        """
        if not isinstance(inputs, Mapping):
            raise InputError(f"`inputs` is a {type(inputs).__name__}; give a dict of arrays by name.")
        known = [spec.name for spec in self.outputs]
        if outputs is not None and (isinstance(outputs, str) or not outputs):
            raise InputError(f"`outputs` (={outputs!r}) must be a list of names, or None for all ({', '.join(known)}).")
        wanted = known if outputs is None else list(outputs)
        if unknown := [name for name in wanted if name not in known]:
            raise InputError(f"there is no output `{unknown[0]}`; the outputs are {', '.join(known)}.")
        _check(inputs, self.inputs)
        results = self._session.run(wanted, dict(inputs))
        return dict(zip(wanted, results, strict=True))


def _check(inputs: Mapping[str, np.ndarray], specs: Sequence[TensorSpec]) -> None:
    names = [spec.name for spec in specs]
    if unknown := [name for name in inputs if name not in names]:
        raise InputError(f"there is no input `{unknown[0]}`; the inputs are {', '.join(names)}.")
    if missing := [name for name in names if name not in inputs]:
        raise InputError(f"input `{missing[0]}` is missing; the inputs are {', '.join(names)}.")
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        _check_array(inputs[spec.name], spec)
        for size, expected in zip(inputs[spec.name].shape, spec.shape, strict=True):
            if isinstance(expected, str):
                first, where = sizes.setdefault(expected, (size, spec.name))
                if size != first:
                    raise InputError(f"`{spec.name}` has {expected}={size}, `{where}` has {expected}={first}.")


def _check_array(array: np.ndarray, spec: TensorSpec) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"`{spec.name}` is a {type(array).__name__}; give a numpy array of {spec.dtype}.")
    if array.dtype != spec.dtype:
        raise InputError(
            f"`{spec.name}` is {array.dtype}, the graph takes {spec.dtype}; use array.astype({spec.dtype!r})."
        )
    fits = len(array.shape) == len(spec.shape) and all(
        size == expected if isinstance(expected, int) else size > 0
        for size, expected in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise InputError(f"`{spec.name}` has shape {list(array.shape)}, the graph takes {spec} with no size 0.")
