"""What a file is run on: the example, random inputs of other sizes, and what PyTorch makes of them."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.errors import ExportError
from deploy_rnn.runtime import TensorSpec

from .call import Call
from .comparison import Expected
from .layer import is_layer, state_names
from .report import Report


@dataclass(frozen=True)
class Case:
    """One set of inputs, and what PyTorch makes of it."""

    label: str
    feeds: dict[str, np.ndarray]
    expected: list[Expected]


def cases(model: nn.Module, call: Call, report: Report, sizes: Sequence[int]) -> Iterator[Case]:
    """What a file with the inputs and outputs of `report` is to be run on.

    1. The example itself.
    2. Random inputs, for every size of the dynamic axes.
    3. A bare layer that takes states: zeros, against PyTorch without them.

    Raises:
        ExportError: the model does not fit the file, or fails on a size.
    """
    if len(call.tensors) != len(report.inputs):
        raise ExportError(
            f"the file has {len(report.inputs)} inputs ({', '.join(spec.name for spec in report.inputs)}), "
            f"the example has {len(call.tensors)} tensors."
        )
    reference = Reference(model, report)
    start = call.arguments.get("hx") if is_layer(model) else None
    random = torch.Generator().manual_seed(0)
    # Case 1.
    yield reference.case("example", call, call)
    for at in _settings(report, sizes):
        label = ", ".join(["random", *(f"{axis}={size}" for axis, size in at.items())])
        # Case 2.
        drawn = call.with_tensors(
            [
                _draw(tensor, _sized(spec, tensor, at), random)
                for tensor, spec in zip(call.tensors, report.inputs, strict=True)
            ]
        )
        yield reference.case(label, drawn, drawn)
        # Case 3.
        if start is not None:
            zeros = pytree.tree_map(torch.zeros_like, drawn.arguments["hx"])
            without = " and ".join(f"{name}0" for name in state_names(model))
            fed, asked = drawn.with_argument("hx", zeros), drawn.with_argument("hx", None)
            yield reference.case(f"{label}, without {without}", fed, asked)


def _settings(report: Report, sizes: Sequence[int]) -> list[dict[str, int]]:
    """A size for each dynamic axis, as many times as there are sizes; two axes never have the same if they can."""
    axes = list(dict.fromkeys(size for spec in report.inputs for size in spec.shape if isinstance(size, str)))
    if not axes:
        return [{}]
    turns = range(len(sizes))
    return [{axis: sizes[(turn + number) % len(sizes)] for number, axis in enumerate(axes)} for turn in turns]


def _sized(spec: TensorSpec, example: Tensor, at: dict[str, int]) -> list[int]:
    return [at.get(str(size), now) for size, now in zip(spec.shape, example.shape, strict=True)]


def unvaried(call: Call, report: Report) -> tuple[str, ...]:
    """The inputs that are checked with one value only: whole numbers or booleans, the same all over the example."""
    return tuple(
        spec.name
        for spec, tensor in zip(report.inputs, call.tensors, strict=True)
        if not tensor.is_floating_point() and _constant(tensor)
    )


def _constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def _draw(example: Tensor, shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Values that the model takes: drawn from the example's own, unless that is a constant float tensor."""
    pool = example.detach().flatten()
    if example.is_floating_point() and _constant(example):
        return torch.randn(list(shape), generator=random, dtype=torch.float64).to(example.dtype)
    return pool[torch.randint(pool.numel(), list(shape), generator=random)]


class Reference:
    """The PyTorch model, and the same in float64 where it runs so."""

    def __init__(self, model: nn.Module, report: Report) -> None:
        self._model = copy.deepcopy(model).eval()  # a copy: a forward may count its calls in a buffer
        self._exact = copy.deepcopy(self._model).double()
        self._report = report

    def case(self, label: str, fed: Call, asked: Call) -> Case:
        """`fed` are the graph's inputs, `asked` is the call to PyTorch that should give the same."""
        try:
            outputs = asked.run(self._model)
        except Exception as error:  # whatever the model's own code raises
            raise ExportError(
                f"the PyTorch model itself fails on {label}: {type(error).__name__}: {error}. "
                "If it cannot take that size, give the `sizes` that it can."
            ) from error
        if unknown := [output.dtype for output in outputs if output.dtype is torch.bfloat16]:
            raise ExportError(f"an output of the model is {unknown[0]}, which numpy has not; let it return .float().")
        if len(outputs) != len(self._report.outputs):
            raise ExportError(
                f"the file has {len(self._report.outputs)} outputs, the model gives {len(outputs)} tensors."
            )
        arrays = [output.numpy() for output in outputs]
        if any(array.size and not np.isfinite(array).any() for array in arrays):
            raise ExportError(f"an output of the PyTorch model has no finite value on {label}: nothing to compare.")
        feeds = {
            spec.name: tensor.detach().numpy() for spec, tensor in zip(self._report.inputs, fed.tensors, strict=True)
        }
        exact = self._in_float64(asked) or arrays
        return Case(label, feeds, [Expected.of(*each) for each in zip(arrays, exact, strict=True)])

    def _in_float64(self, call: Call) -> list[np.ndarray] | None:
        """None if the model does not run so, having a dtype written into its code."""
        wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in call.tensors]
        try:
            return [output.numpy() for output in call.with_tensors(wide).run(self._exact)]
        except Exception:  # whatever the model's own code raises
            return None
