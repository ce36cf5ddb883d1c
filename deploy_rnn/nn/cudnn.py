"""`CudnnRecurrence`: cuDNN's kernel for a whole stack of layers, called from a compiled graph."""

from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from deploy_rnn.nn.cells import CELLS
from deploy_rnn.nn.onednn import SeenWeight
from deploy_rnn.nn.recurrence import RecurrenceWrapper
from deploy_rnn.nn.recurrent import Recurrent

DEVICE = "cuda"

DTYPES = (torch.float16, torch.float32, torch.float64)

_MODES = ("RNN_RELU", "RNN_TANH", "LSTM", "GRU")
"""Their places are their numbers for the operator."""


def has_kernel() -> bool:
    """Whether there are a GPU and cuDNN here, which has a kernel for every layer of torch.nn."""
    return torch.cuda.is_available() and bool(torch.backends.cudnn.is_available())


class CudnnRecurrence(RecurrenceWrapper):
    """Computes a layer of torch.nn on a GPU by cuDNN, and as it was computed before everywhere else.

    That is under torch.compile without gradients, without lengths, and without dropout in training mode.

    Args:
        layer: what it is assigned to; one whose step is that of a layer of torch.nn.
    """

    def __init__(self, layer: Recurrent) -> None:
        super().__init__(layer.recurrence)
        self._mode = next(n for n, mode in enumerate(_MODES) if CELLS[mode].step is layer._step)
        self._weights = _JoinedWeights(layer, self._mode)

    def prepare(self) -> None:
        """See to the weights before a call of the compiled graph.

        cuDNN reads them from one piece of memory. They are copied to one, and again whenever PyTorch counts a change:
        `load_state_dict`, an optimizer, any operation in place, another tensor in a weight's place. Not seen is what is
        written through `.data`.
        """
        self._weights.update()

    def run(
        self, layer: Recurrent, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        if (
            not torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or lengths is not None
            or input.device.type != DEVICE
            or input.dtype not in DTYPES
            or (layer.training and layer.dropout > 0)
        ):
            return self.other.run(layer, input, states, lengths)
        weights = self._weights.weights or layer.ordered_weights()
        if any(weight.dtype != input.dtype for weight in weights):
            return self.other.run(layer, input, states, lengths)
        if states is None:
            rows = layer.num_layers * layer.num_directions()
            states = [input.new_zeros([rows, input.size(1), size]) for size in layer.state_sizes()]
        first = [state.contiguous() for state in states]
        output, h, c, _, _ = torch.ops.aten._cudnn_rnn.default(
            input.contiguous(), weights, _weights_of_one(layer), self._weights.buffer,
            first[0], first[1] if len(first) > 1 else None,
            self._mode, layer.hidden_size, layer.proj_size, layer.num_layers,
            False, 0.0, False, layer.bidirectional, [], None,
        )  # fmt: skip
        return output, [h, c][: len(first)]


class _JoinedWeights:
    """A copy of the weights of a layer in one piece of memory, of which cuDNN would else make one at each call.

    Attributes:
        buffer: that memory; None where the weights are no parameters on a GPU.
        weights: the parts of it.
    """

    def __init__(self, layer: Recurrent, mode: int) -> None:
        self.buffer: Tensor | None = None
        self.weights: list[Tensor] | None = None
        self._layer = layer
        self._names = list(layer.weight_shapes())
        self._mode = mode
        self._seen: list[SeenWeight] = []

    def update(self) -> None:
        """Make it again if the weights of the layer have changed."""
        layer = self._layer
        found: list[Any] = [layer._parameters.get(name) for name in self._names]
        if self._seen and all(map(SeenWeight.is_still, self._seen, found)):
            return
        if not all(_can_be_copied(weight) for weight in found):
            self.buffer = self.weights = None
            self._seen = []
            return
        seen = [SeenWeight(weight, samples=False) for weight in found]
        weights = [weight.detach().clone() for weight in found]
        buffer = torch._cudnn_rnn_flatten_weight(
            weights, _weights_of_one(layer), layer.input_size, self._mode, layer.hidden_size, layer.proj_size,
            layer.num_layers, False, layer.bidirectional,
        )  # fmt: skip
        for tensor in (buffer, *weights):
            torch._dynamo.mark_static(tensor)  # as the sizes of a parameter are
        self.buffer, self.weights, self._seen = buffer, weights, seen

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to a copied layer, whose weights are others."""
        return vars(self) | {"buffer": None, "weights": None, "_seen": []}


def _weights_of_one(layer: Recurrent) -> int:
    """How many weights each direction of each layer has."""
    return len(layer.weight_shapes()) // (layer.num_layers * layer.num_directions())


def _can_be_copied(weight: Any) -> bool:
    """Whether it is a parameter on a GPU, of which PyTorch counts changes; none that a hook computes."""
    return (
        type(weight) is nn.Parameter
        and weight.device.type == DEVICE
        and weight.dtype in DTYPES
        and not weight.is_inference()
    )
