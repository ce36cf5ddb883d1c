"""`OneDnnRecurrence`: oneDNN's kernel for an LSTM on a CPU, called from a compiled graph.

`torch.nn.LSTM` on a CPU hands a whole layer to oneDNN. The operator behind it is one layer and one direction a call,
for any number of steps and rows, so that a graph with it stays one graph for every T and B. Operators of ours call it,
which choose the threads: see `lstm_directions`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from deploy_rnn.nn.cells import CELLS
from deploy_rnn.nn.lengths import reverse_rows
from deploy_rnn.nn.lstm_directions import IN_CPP, lstm_direction, lstm_directions, lstm_in_torch
from deploy_rnn.nn.recurrence import RecurrenceWrapper
from deploy_rnn.nn.recurrent import Recurrent

HOLD = 1e4
"""What a step beyond a row's end adds to its gates: the sigmoid of it is 1, and of its negative 0."""

SAMPLES = 64
"""How many elements of a weight, at least, are looked at before each call."""


def has_kernel(layer: Recurrent) -> bool:
    """Whether oneDNN has a kernel for a layer of torch.nn."""
    return (
        layer._step is CELLS["LSTM"].step
        and layer.proj_size == 0
        and torch.backends.mkldnn.is_available()
    )


class OneDnnRecurrence(RecurrenceWrapper):
    """Computes an LSTM by oneDNN where that has a kernel, and as it was computed before everywhere else.

    It has one without a projection, in float32 on a CPU; it is called under torch.compile without gradients.

    Args:
        layer: what it is assigned to; one that `has_kernel`.
    """

    def __init__(self, layer: Recurrent) -> None:
        super().__init__(layer.recurrence)
        self._reordered = _ReorderedWeights(layer)

    def prepare(self) -> None:
        """See to the weights before a call of the compiled graph.

        oneDNN reads them in an order of its own. They are put into that order once, and again whenever PyTorch counts a
        change: `load_state_dict`, an optimizer, any operation in place, another tensor in a weight's place. What is
        written through `.data` or NumPy is seen if it changes one of 64 elements, spread evenly over the weight.
        """
        self._reordered.update()

    def run(
        self, layer: Recurrent, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        if not torch.compiler.is_compiling() or not _takes(input):
            return self.other.run(layer, input, states, lengths)
        directions = layer.num_directions()
        size = layer.hidden_size
        weights = self._reordered.weights if lengths is None else None
        if weights is None:
            weights = [[*of_one] for of_one in layer.all_weights]
            if any(weight.dtype != input.dtype for of_one in weights for weight in of_one):
                return self.other.run(layer, input, states, lengths)
        if lengths is not None:
            lengths = lengths.to(input.device)
        finals: list[list[Tensor]] = [[], []]
        for number in range(layer.num_layers):
            of_layer = []
            for direction in range(directions):
                place = number * directions + direction
                if states is None:
                    first = [input.new_zeros([1, input.size(1), size]) for _ in range(2)]
                else:
                    first = [state[place : place + 1].contiguous() for state in states]
                of_layer.append(_Direction(weights[place], first, reverse=direction == 1))
            outputs = []
            for output, last in _run(of_layer, input, lengths):
                outputs.append(output)
                for final, state in zip(finals, last, strict=True):
                    final.append(state)
            input = torch.cat(outputs, -1) if directions == 2 else outputs[0]
            if layer.training and number + 1 < layer.num_layers:
                input = F.dropout(input, layer.dropout)
        return input, [torch.cat(final) for final in finals]


def _takes(input: Tensor) -> bool:
    """Whether the kernel takes this call, while torch.compile traces it.

    A batch of no rows would end the process.
    """
    return (
        input.device.type == "cpu"
        and input.dtype == torch.float32
        and not torch.is_grad_enabled()
        and statically_known_true(input.size(1) > 0)
    )


@dataclass
class _Direction:
    """One direction of one layer.

    Attributes:
        weights: weight_ih (4*H, I), weight_hh (4*H, H), and both biases (4*H,) if it has any; with lengths, the
            matrices are as the layer has them, otherwise they may be as oneDNN has them.
        states: h and c, (1, B, H), that it starts with.
        reverse: whether it walks from the end.
    """

    weights: list[Tensor]
    states: list[Tensor]
    reverse: bool

    def arguments(self, input: Tensor, lengths: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """What the kernel gets of the layer's input (T, B, I): an input of its own, and four weights."""
        matrices = self.weights[:2]
        if lengths is not None:
            if self.reverse:
                input = reverse_rows(input, lengths)
            # Beyond a row's end, one more feature of the input is 1. It shuts the input gate and opens the forget gate,
            # so that c stays as it is.
            beyond = _beyond(input, lengths)
            input = torch.cat([input.masked_fill(beyond, 0.0), beyond.to(input.dtype)], -1)
            matrices = [torch.cat([matrices[0], self._hold_column()], 1), matrices[1]]
        biases = self.weights[2:] or 2 * [input.new_zeros(4 * self._hidden_size())]
        return input.contiguous(), [*matrices, *biases]

    def results(
        self, kernel_results: Sequence[Tensor], lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """What it comes to from what the kernel returns: output (T, B, H), last states."""
        output, h, c = kernel_results
        if lengths is None:
            return output, [h, c]
        output = output.masked_fill(_beyond(output, lengths), 0.0)
        last_step = (lengths - 1).clamp(0, output.size(0) - 1).view(1, -1, 1).expand_as(c)
        # A row of no steps keeps the state that it starts with.
        h = torch.where((lengths > 0).view(1, -1, 1), output.gather(0, last_step), self.states[0])
        return (reverse_rows(output, lengths) if self.reverse else output), [h, c]

    def _hidden_size(self) -> int:
        return self.states[0].size(-1)

    def _hold_column(self) -> Tensor:
        """The column (4*H, 1) of weight_ih by which one more feature of the input holds c."""
        weight = self.weights[1]
        rows = torch.arange(weight.size(0), device=weight.device).unsqueeze(1)
        other_gates = torch.where(rows < 2 * self._hidden_size(), HOLD, 0.0)
        return torch.where(rows < self._hidden_size(), -HOLD, other_gates).to(weight.dtype)


def _beyond(sequence: Tensor, lengths: Tensor) -> Tensor:
    """Where (T, B, 1) a sequence (T, B, N) is beyond the end of a row."""
    steps = torch.arange(sequence.size(0), device=lengths.device).unsqueeze(1)
    return (steps >= lengths).unsqueeze(-1)


def _run(
    directions: list[_Direction], input: Tensor, lengths: Tensor | None
) -> list[tuple[Tensor, list[Tensor]]]:
    """Run the directions of one layer: -> output (T, B, H) and last states of each."""
    arguments = [direction.arguments(input, lengths) for direction in directions]
    has_biases = len(directions[0].weights) > 2
    walks_back = lengths is None  # otherwise the input of the reverse direction is turned around
    size = directions[0].states[0].size(-1)
    if len(directions) == 2 and IN_CPP:
        results = lstm_directions(
            [own_input for own_input, _ in arguments],
            [weight for _, weights in arguments for weight in weights],
            [state for direction in directions for state in direction.states],
            has_biases, walks_back, size,
        )  # fmt: skip
        of_directions: list[Sequence[Tensor]] = [results[:3], results[3:]]
    else:
        run = lstm_direction if IN_CPP else lstm_in_torch
        of_directions = [
            run(*own, direction.states, has_biases, direction.reverse and walks_back, size)
            for direction, own in zip(directions, arguments, strict=True)
        ]
    return [
        direction.results(of_one, lengths)
        for direction, of_one in zip(directions, of_directions, strict=True)
    ]


class _ReorderedWeights:
    """The weights of a layer in the order in which oneDNN reads them, which saves it from reordering at each call.

    Attributes:
        weights: of each direction of each layer: weight_ih, weight_hh, and the biases if it has any; None where they
            are no ordinary float32 parameters on a CPU.
    """

    def __init__(self, layer: Recurrent) -> None:
        self.weights: list[list[Tensor]] | None = None
        self._layer = layer
        self._names = list(layer.weight_shapes())
        self._seen: list[SeenWeight] = []

    def update(self) -> None:
        """Make them again if those of the layer have changed."""
        found: list[Any] = [self._layer._parameters.get(name) for name in self._names]
        if self._seen and all(map(SeenWeight.is_still, self._seen, found)):
            return
        if not all(_is_ordinary(weight) for weight in found):
            self.weights, self._seen = None, []
            return
        seen = [SeenWeight(weight) for weight in found]
        tensors = [weight.tensor for weight in seen]
        count = 4 if self._layer.bias else 2
        self.weights = [
            self._reordered(tensors[first : first + count], self._names[first].endswith("_reverse"))
            for first in range(0, len(tensors), count)
        ]
        self._seen = seen

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to a copied layer, whose weights are others."""
        return vars(self) | {"weights": None, "_seen": []}

    def _reordered(self, weights: list[Tensor], reverse: bool) -> list[Tensor]:
        layer = self._layer
        matrices = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(
            *weights[:2], layer.hidden_size, reverse, layer.bias, False, None
        )
        reordered = [*matrices, *weights[2:]]
        for weight in reordered:
            torch._dynamo.mark_static(weight)  # as the sizes of a parameter are
        return reordered


class SeenWeight:
    """A weight as it was when a library's copy of it was made.

    Attributes:
        tensor: the same memory, which is held so that no other weight takes its place.

    Args:
        samples: whether some of its elements are looked at, which must be on a CPU.
    """

    def __init__(self, weight: nn.Parameter, *, samples: bool = True) -> None:
        self.tensor = weight.detach()
        self._place = weight.data_ptr()
        self._version = weight._version
        # What is written through `.data` or NumPy is not counted. If it is more than a few elements, it changes these.
        numbers = self.tensor.flatten()
        stride = _stride(numbers.numel(), self.tensor.size(-1))
        self._samples = numbers[::stride].numpy() if samples else None
        self._bytes = b"" if self._samples is None else self._samples.tobytes()

    def is_still(self, weight: Any) -> bool:
        """Whether `weight` is in the same place, and has the same numbers."""
        return (
            weight is not None
            and weight.data_ptr() == self._place
            and weight._version == self._version
            and (self._samples is None or self._samples.tobytes() == self._bytes)
        )


def _stride(numbers: int, columns: int) -> int:
    """How far samples are apart, so that they do not all lie in one column."""
    stride = max(1, numbers // SAMPLES)
    while math.gcd(stride, columns) > 1:
        stride -= 1
    return stride


def _is_ordinary(weight: Any) -> bool:
    """Whether it is a float32 parameter on a CPU, of which PyTorch counts changes; none that a hook computes."""
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and not weight.is_inference()
    )
