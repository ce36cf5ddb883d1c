"""A recurrent stack while a model is being exported: one node, whatever is inside.

`torch.export` would unroll the time loop, freeze the time axis without a word, and take half a minute for T=100.
So each stack of layers is captured as one node `deploy_rnn::RNN` with T and B open, and a form (see `forms`) replaces
that node by real ONNX operators. `CapturedRNN` writes the node and `Stack.of` reads it: both sides of one contract.
"""

from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from deploy_rnn.errors import ExportError
from deploy_rnn.rnn import RNN

DOMAIN = "deploy_rnn"


class CapturedRNN(RNN):
    """An `RNN` that becomes one node: everything but the recurrence (checks, layout) is exported as it is."""

    def _stack(self, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        if lengths is not None:
            raise ExportError("`lengths` cannot be exported yet; leave it out, and give sequences of one length.")
        steps, batch = input.size(0), input.size(1)
        directions = 2 if self.bidirectional else 1
        output, h_n = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::RNN",
            [input, None if states is None else states[0], *self._weights()],
            {
                "nonlinearity": self.nonlinearity,
                "num_layers": self.num_layers,
                "bidirectional": self.bidirectional,
                "bias": self.bias,
            },
            dtypes=(input.dtype, input.dtype),
            shapes=(
                (steps, batch, directions * self.hidden_size),
                (self.num_layers * directions, batch, self.hidden_size),
            ),
            version=1,
        )
        return output, [h_n]


@dataclass(frozen=True)
class Direction:
    """One direction of one layer: weight_ih (H, I or D*H), weight_hh (H, H), and two biases (H,) or none."""

    weight_ih: ir.Value
    weight_hh: ir.Value
    biases: tuple[ir.Value, ...]


@dataclass(frozen=True)
class Stack:
    """What one captured node says.

    Attributes:
        input: (T, B, I).
        h0: (L*D, B, H), or None for zeros.
        layers: L layers of D directions each.
        nonlinearity: "tanh" or "relu".
        hidden_size: H.
        output: (T, B, D*H), to be replaced.
        h_n: (L*D, B, H), to be replaced.
    """

    input: ir.Value
    h0: ir.Value | None
    layers: tuple[tuple[Direction, ...], ...]
    nonlinearity: str
    hidden_size: int
    output: ir.Value
    h_n: ir.Value

    @classmethod
    def of(cls, node: ir.Node) -> "Stack":
        source, h0, *weights = node.inputs
        assert source is not None  # CapturedRNN always gives it
        named = [weight for weight in weights if weight is not None]
        kinds = 4 if node.attributes["bias"].as_int() else 2
        directions = [_direction(named[at : at + kinds]) for at in range(0, len(named), kinds)]
        per_layer = len(directions) // node.attributes["num_layers"].as_int()
        h_n = node.outputs[1]
        return cls(
            input=source,
            h0=h0,
            layers=tuple(tuple(directions[at : at + per_layer]) for at in range(0, len(directions), per_layer)),
            nonlinearity=node.attributes["nonlinearity"].as_string(),
            hidden_size=fixed(h_n, 2),
            output=node.outputs[0],
            h_n=h_n,
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


def _direction(weights: list[ir.Value]) -> Direction:
    return Direction(weights[0], weights[1], tuple(weights[2:]))
