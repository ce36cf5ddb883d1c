"""What a file is run on: the example, random inputs of other sizes, and what PyTorch makes of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.call import Call
from deploy_rnn.comparison import Expected
from deploy_rnn.errors import ExportError
from deploy_rnn.runtime import TensorSpec
from deploy_rnn.trials import Reference, constant, draw, settings

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
    reference = Reference(model)
    start = call.arguments.get("hx") if is_layer(model) else None
    random = torch.Generator().manual_seed(0)
    # Case 1.
    yield _case(reference, report, "example", call, call)
    for at in settings(_axes(report), sizes):
        label = ", ".join(["random", *(f"{axis}={size}" for axis, size in at.items())])
        # Case 2.
        drawn = call.with_tensors(
            [
                draw(tensor, _sized(spec, tensor, at), random)
                for tensor, spec in zip(call.tensors, report.inputs, strict=True)
            ]
        )
        yield _case(reference, report, label, drawn, drawn)
        # Case 3.
        if start is not None:
            zeros = pytree.tree_map(torch.zeros_like, drawn.arguments["hx"])
            without = " and ".join(f"{name}0" for name in state_names(model))
            fed, asked = drawn.with_argument("hx", zeros), drawn.with_argument("hx", None)
            yield _case(reference, report, f"{label}, without {without}", fed, asked)


def _case(reference: Reference, report: Report, label: str, fed: Call, asked: Call) -> Case:
    """`fed` are the graph's inputs, `asked` is the call to PyTorch that should give the same."""
    try:
        outputs = reference.outputs(asked)
    except Exception as error:  # whatever the model's own code raises
        raise ExportError(
            f"the PyTorch model itself fails on {label}: {type(error).__name__}: {error}. "
            "If it cannot take that size, give the `sizes` that it can."
        ) from error
    expected = reference.expected(asked, outputs, label)
    if len(outputs) != len(report.outputs):
        raise ExportError(f"the file has {len(report.outputs)} outputs, the model gives {len(outputs)} tensors.")
    feeds = {spec.name: tensor.detach().numpy() for spec, tensor in zip(report.inputs, fed.tensors, strict=True)}
    return Case(label, feeds, expected)


def _axes(report: Report) -> list[str]:
    """The dynamic ones."""
    return list(dict.fromkeys(size for spec in report.inputs for size in spec.shape if isinstance(size, str)))


def _sized(spec: TensorSpec, example: Tensor, at: dict[str, int]) -> list[int]:
    return [at.get(str(size), now) for size, now in zip(spec.shape, example.shape, strict=True)]


def unvaried(call: Call, report: Report) -> tuple[str, ...]:
    """The inputs that are checked with one value only: whole numbers or booleans, the same all over the example."""
    return tuple(
        spec.name
        for spec, tensor in zip(report.inputs, call.tensors, strict=True)
        if not tensor.is_floating_point() and constant(tensor)
    )
