"""A recurrent stack while a model is being exported: one node, whatever is inside.

`torch.export` would unroll the time loop, freeze the time axis without a word, and take half a minute for T=100.
So each stack of layers is captured as one node `deploy_rnn::Recurrent` with T and B open, and a form (see `forms`)
replaces that node by real ONNX operators. `SymbolicRecurrence` writes the node, `name_layers` notes which layer
wrote it, and `Stack.of` reads both: three sides of one contract. Its inputs are

    input, lengths (absent for T), every state (absent for zeros), `layer.ordered_weights()`
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from deploy_rnn.errors import ExportError
from deploy_rnn.nn.cells import Cell
from deploy_rnn.nn.recurrence import Recurrence
from deploy_rnn.nn.recurrent import Recurrent

from .capture.packing import Packing

DOMAIN = "deploy_rnn"

FIRST_STATE = 2
"""The input of a captured node that is its first state."""


class SymbolicRecurrence(Recurrence):
    """A layer becomes one node; everything around the recurrence (checks, layout) is exported as it is."""

    def __init__(self, number: int, packing: Packing) -> None:
        """`number`: of the layer, which the node has as an attribute."""
        self._number = number
        self._packing = packing

    def run(
        self, layer: Recurrent, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        steps, batch = input.size(0), input.size(1)
        if lengths is not None and lengths.size(0) != batch:  # compared, which makes one axis of both
            raise ExportError(f"`lengths` has {lengths.size(0)} rows, the input {batch}.")
        sizes = layer.state_sizes()
        state_inputs: list[Tensor | None] = [None] * len(sizes) if states is None else [*states]
        output_shape = (steps, batch, layer.num_directions() * sizes[0])
        state_shapes = [(layer.num_layers * layer.num_directions(), batch, size) for size in sizes]
        output, *finals = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::Recurrent",
            [input, lengths, *state_inputs, *layer.ordered_weights()],
            {"layer": self._number},
            dtypes=[input.dtype] * (1 + len(sizes)),
            shapes=[output_shape, *state_shapes],
            version=1,
        )
        return output, finals

    def unpack(self, packed: PackedSequence) -> tuple[Tensor, Tensor]:
        return self._packing.unpack(packed)

    def repack(self, output: Tensor, lengths: Tensor, packed: PackedSequence) -> PackedSequence:
        return self._packing.repack(output, packed)


def name_layers(graph: ir.Graph, layers: Mapping[str, Recurrent]) -> None:
    """Note on each captured stack which of `layers` it is, and its path in the model."""
    named = list(layers.items())
    for node in stack_nodes(graph):
        node.meta["path"], node.meta["layer"] = named[node.attributes["layer"].as_int()]


def layer_path(node: ir.Node) -> str:
    """Where the layer of a captured stack is in its model, such as "encoder.rnn"; empty for a bare layer."""
    path: str = node.meta["path"]
    return path


@dataclass(frozen=True)
class DirectionWeights:
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
        lengths: (B,), or None where every row has T steps.
        states: (L*D, B, P), (L*D, B, H) ..., each None for zeros.
        layers: L layers of D directions each.
        cell: what one step does.
        sizes: P, H ...: the last axis of each state.
        kept: how many kinds of state are of use beyond the step after: 1 if of the last states h_n at most is read,
            else all.
    """

    input: ir.Value
    lengths: ir.Value | None
    states: tuple[ir.Value | None, ...]
    layers: tuple[tuple[DirectionWeights, ...], ...]
    cell: Cell
    sizes: tuple[int, ...]
    kept: int

    @classmethod
    def of(cls, node: ir.Node) -> "Stack":
        layer: Recurrent = node.meta["layer"]
        source, lengths, *others = node.inputs
        assert source is not None  # `_symbolic_stack` always gives it
        count = layer.cell.states
        weights = dict(zip(layer.weight_shapes(), others[count:], strict=True))
        suffixes = ("", "_reverse") if layer.bidirectional else ("",)
        return cls(
            input=source,
            lengths=lengths,
            states=tuple(others[:count]),
            layers=tuple(
                tuple(_direction(weights, f"_l{number}{suffix}") for suffix in suffixes)
                for number in range(layer.num_layers)
            ),
            cell=layer.cell,
            sizes=tuple(layer.state_sizes()),
            kept=count if any(value.uses() or value.is_graph_output() for value in node.outputs[2:]) else 1,
        )

    @property
    def state_names(self) -> list[str]:
        """h, c, and numbers for what comes after."""
        return ["h", "c", *(f"s{kind}" for kind in range(2, len(self.sizes)))][: len(self.sizes)]

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


def _direction(weights: dict[str, ir.Value | None], end: str) -> DirectionWeights:
    weight_ih, weight_hh = weights[f"weight_ih{end}"], weights[f"weight_hh{end}"]
    assert weight_ih is not None
    assert weight_hh is not None
    bias_ih, bias_hh, weight_hr = (weights.get(f"{kind}{end}") for kind in ("bias_ih", "bias_hh", "weight_hr"))
    return DirectionWeights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)


def row_lengths(graph: ir.Graph) -> dict[str, int | str]:
    """The inputs of a graph that are the lengths of its rows, by themselves or sorted -> T, their upper limit."""
    found: dict[str, int | str] = {}
    for node in stack_nodes(graph):
        stack = Stack.of(node)
        value = stack.lengths
        while value is not None and not value.is_graph_input():
            producer = value.producer()
            value = producer.inputs[0] if producer is not None and producer.op_type in _SAME_LENGTHS else None
        if value is not None:
            found[str(value.name)] = stack.steps if isinstance(stack.steps, int) else str(stack.steps)
    return found


_SAME_LENGTHS = frozenset({"Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "TopK"})
