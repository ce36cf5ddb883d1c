"""How a layer writes the node that `stack` describes, while torch.export traces its model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from deploy_rnn.errors import ExportError
from deploy_rnn.nn.loops import in_step
from deploy_rnn.nn.recurrence import Recurrence
from deploy_rnn.nn.recurrent import Recurrent
from deploy_rnn.packing.packing import Packing

from ..stack import DOMAIN, LINEAR_TYPE, OP_TYPE


def symbolic_linear(layer: nn.Linear, input: Tensor) -> Tensor:
    """A linear layer becomes one node: input (..., K) -> (..., M)"""
    output: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{LINEAR_TYPE}",
        [input, layer.weight, layer.bias],
        dtype=input.dtype,
        shape=(*input.shape[:-1], layer.out_features),
        version=1,
    )
    return output


def make_symbolic(layers: Sequence[Recurrent], packing: Packing) -> None:
    """Let each layer become one node, which has the layer's position in `layers` as an attribute."""
    for number, layer in enumerate(layers):
        layer.recurrence = SymbolicRecurrence(number, packing)


class SymbolicRecurrence(Recurrence):
    """A layer becomes one node; everything around the recurrence (checks, layout) is exported as it is."""

    def __init__(self, number: int, packing: Packing) -> None:
        self._number = number
        self._packing = packing

    def run(
        self, layer: Recurrent, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        if in_step():
            # A layer within the step of a loop is written as it computes.
            return super().run(layer, input, states, lengths)
        steps = input.size(0)
        batch = input.size(1)
        # The comparison makes torch.export take the two axes for one.
        if lengths is not None and lengths.size(0) != batch:
            raise ExportError(f"`lengths` has {lengths.size(0)} rows, the input {batch}.")
        sizes = layer.state_sizes()
        directions = 2 if layer.bidirectional else 1
        state_inputs: list[Tensor | None] = [None] * len(sizes)
        if states is not None:
            state_inputs = [*states]
        output_shape = (steps, batch, directions * sizes[0])
        state_shapes = [(layer.num_layers * directions, batch, size) for size in sizes]
        output, *finals = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{OP_TYPE}",
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
