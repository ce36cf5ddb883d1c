"""A recurrent stack while a model is being exported: one node, whatever is inside.

`torch.export` would unroll the time loop, freeze the time axis without a word, and take half a minute for T=100.
So each stack of layers is captured as one node `deploy_rnn::Recurrent` with T and B open, and a form (see `forms`)
replaces that node by real ONNX operators. `make_symbolic` lets a layer write the node, `name_layers` notes which layer
wrote it, and `Stack.of` reads both: three sides of one contract. Its inputs are

    input, lengths (none yet), every state (absent for zeros), every weight in the order of `weight_shapes()`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir
import torch
from torch import Tensor

from deploy_rnn.cells import Cell
from deploy_rnn.errors import ExportError
from deploy_rnn.recurrent import Recurrent

DOMAIN = "deploy_rnn"


def make_symbolic(layers: Sequence[Recurrent]) -> None:
    """Let each layer become one node; everything but the recurrence (checks, layout) is exported as it is."""
    for number, layer in enumerate(layers):
        layer._stack = partial(_symbolic_stack, layer, number)  # type: ignore[method-assign]


def _symbolic_stack(
    layer: Recurrent, number: int, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """In the place of `Recurrent._stack`."""
    if lengths is not None:
        raise ExportError("`lengths` cannot be exported yet; leave it out, and give sequences of one length.")
    steps, batch, sizes = input.size(0), input.size(1), layer._state_sizes()
    directions = 2 if layer.bidirectional else 1
    starts: list[Tensor | None] = [None] * len(sizes) if states is None else [*states]
    output, *finals = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::Recurrent",
        [input, None, *starts, *layer._weights()],
        {"layer": number},
        dtypes=[input.dtype] * (1 + len(sizes)),
        shapes=[
            (steps, batch, directions * sizes[0]),
            *((layer.num_layers * directions, batch, size) for size in sizes),
        ],
        version=1,
    )
    return output, finals


def name_layers(graph: ir.Graph, layers: Sequence[Recurrent]) -> None:
    """Note on each captured stack which of `layers` it is."""
    for node in stack_nodes(graph):
        node.meta["layer"] = layers[node.attributes["layer"].as_int()]


@dataclass(frozen=True)
class Direction:
    """One direction of one layer: weight_ih (G*H, I or D*P), weight_hh (G*H, P) or (G*H,), biases (G*H,), weight_hr
    (P, H); None for what it does not have.
    """

    weight_ih: ir.Value
    weight_hh: ir.Value
    bias_ih: ir.Value | None
    bias_hh: ir.Value | None
    weight_hr: ir.Value | None


@dataclass(frozen=True)
class Stack:
    """What one captured node says.

    Attributes:
        input: (T, B, I).
        states: (L*D, B, P), (L*D, B, H) ..., each None for zeros.
        layers: L layers of D directions each.
        cell: what one step does.
        sizes: P, H ...: the last axis of each state.
    """

    input: ir.Value
    states: tuple[ir.Value | None, ...]
    layers: tuple[tuple[Direction, ...], ...]
    cell: Cell
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, node: ir.Node) -> "Stack":
        layer: Recurrent = node.meta["layer"]
        source, _, *others = node.inputs
        assert source is not None  # `_symbolic_stack` always gives it
        count = layer.cell.states
        weights = dict(zip(layer.weight_shapes(), others[count:], strict=True))
        suffixes = ("", "_reverse") if layer.bidirectional else ("",)
        return cls(
            input=source,
            states=tuple(others[:count]),
            layers=tuple(
                tuple(_direction(weights, f"_l{number}{suffix}") for suffix in suffixes)
                for number in range(layer.num_layers)
            ),
            cell=layer.cell,
            sizes=tuple(layer._state_sizes()),
        )

    @property
    def steps(self) -> int | ir.SymbolicDim:
        """T: a number where the time axis is fixed, else a symbol."""
        assert self.input.shape is not None
        return self.input.shape[0]

    @property
    def batch(self) -> int | ir.SymbolicDim:
        """B, likewise."""
        assert self.input.shape is not None
        return self.input.shape[1]


def fixed(value: ir.Value, axis: int) -> int:
    """The size of an axis that is never dynamic."""
    assert value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int)
    return size


def stack_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The captured stacks of a graph, in its order."""
    return [node for node in graph if node.domain == DOMAIN]


def _direction(weights: dict[str, ir.Value | None], end: str) -> Direction:
    weight_ih, weight_hh = weights[f"weight_ih{end}"], weights[f"weight_hh{end}"]
    assert weight_ih is not None
    assert weight_hh is not None
    bias_ih, bias_hh, weight_hr = (weights.get(f"{kind}{end}") for kind in ("bias_ih", "bias_hh", "weight_hr"))
    return Direction(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
