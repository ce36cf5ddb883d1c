"""`Simulation`: layers of torch.nn in float64, except for what a file in eight bits rounds.

Slow and plain, and apart from the forms: it has the equations of `torch.nn` once more, and every product goes through
`Rounding`, which rounds rows and weights as `rounding` defines it.

## How far a right file may be from it

A file computes in float32 what is not rounded. So a number that is to be rounded differs a little from that of the
simulation, by at most `near` of its row's limit: `NEAR`, or ten times what float32 moves the outputs of the model. If
it is further than that from the middle between two levels, it gets the same level in both. If not, it may get the next
one, on the other side. That moves the sums, by a step of the row times the weights, and so the state and the rows that
follow, which may cross other middles: each step as in a network whose input has been moved a little.

How far that goes depends on the network and on its input, and is measured: the simulation runs again, `OTHER_SIDES`
times, and every number is moved at random by at most `near` before it is rounded; and once in float32. The largest
distance of one of these runs is how far right files may be apart; `Tolerance` allows a few times as much. Where nothing
is near a middle, a file must agree as one in float32 does.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from deploy_rnn.nn import cells
from deploy_rnn.nn.cells import TORCH_WEIGHTS
from deploy_rnn.nn.lengths import reverse_rows, step_mask
from deploy_rnn.nn.loops import in_step
from deploy_rnn.nn.recurrence import Recurrence
from deploy_rnn.nn.recurrent import Recurrent, right_hand

from .rounding import ROW_STEP, ROW_ZERO, SMALLEST_LIMIT, rounded_columns

NEAR = 2e-6
"""How far float32 may move a number, as a share of its row's limit: about sixteen times its precision."""

OTHER_SIDES = 4
"""How often the simulation runs with numbers near a middle on either side."""


@dataclass
class Rounding:
    """How the products of a simulation round.

    Attributes:
        dtype: of everything that is not rounded.
        near: how far from the middle of two levels a number may go to either side, as a share of its row's limit.
        sides: moves numbers by at most `near` before they are rounded; None for not at all.
        is_near_middle: whether a number was so near one; known after a run with `looks_for_middles`.
    """

    dtype: torch.dtype = torch.float64
    near: float = NEAR
    sides: torch.Generator | None = None
    looks_for_middles: bool = False
    is_near_middle: bool = False

    def product(self, rows: Tensor, columns: "Columns", limits: Tensor | None) -> Tensor:
        """rows (..., K) @ W (M, K).T -> (..., M); limits (..., 1) of the rows, None for 1."""
        steps: Tensor | float = float(ROW_STEP) if limits is None else limits * float(ROW_STEP)
        levels = self._levels(rows / steps)
        # numpy's product, since `WeightProducts` looks at those of PyTorch.
        sums = torch.from_numpy(levels.numpy() @ columns.levels.to(self.dtype).numpy())
        product = sums * columns.scales.to(self.dtype)
        return product if limits is None else product * limits

    def _levels(self, numbers: Tensor) -> Tensor:
        near = self.near / float(ROW_STEP)
        if self.looks_for_middles:
            distances = (numbers - numbers.floor() - 0.5).abs()
            self.is_near_middle = self.is_near_middle or bool((distances < near).any())
        if self.sides is not None:
            shifts = torch.rand(numbers.shape, generator=self.sides, dtype=self.dtype)
            numbers = numbers + (2 * near) * (shifts - 0.5)
        return numbers.round_().clamp_(-ROW_ZERO, 255 - ROW_ZERO)


@dataclass(frozen=True)
class Columns:
    """A rounded weight: levels (K, M), and what one of them is worth in a product (M,), both in float64."""

    levels: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> "Columns":
        """weight (M, K)"""
        return cls.from_levels(*rounded_columns(weight.detach().float().numpy()))

    @classmethod
    def from_levels(cls, levels: np.ndarray, steps: np.ndarray) -> "Columns":
        """What `rounded_columns` returns."""
        scales = torch.from_numpy(steps).double() * float(ROW_STEP)
        return cls(torch.from_numpy(levels).double(), scales)


def largest_of_rows(rows: Tensor) -> Tensor:
    """(..., K) -> (..., 1)"""
    return rows.abs().amax(dim=-1, keepdim=True).clamp(min=float(SMALLEST_LIMIT))


class Simulation(Recurrence):
    """Computes the layers as a file in eight bits does; `rounding` may be exchanged between two calls.

    Args:
        rounds_inputs: whether the input's product of a layer is of eight bits, too.

    Attributes:
        rounding: how products round.
        storages: where the weights are that steps of users get.
    """

    def __init__(self, *, rounds_inputs: bool = True) -> None:
        self.rounding = Rounding()
        self._rounds_inputs = rounds_inputs
        self.storages: set[int] = set()
        self._columns: dict[tuple[int, str], Columns] = {}
        self._step_weights: dict[tuple[int, str, torch.dtype], Tensor] = {}

    def linear(self, layer: nn.Linear, input: Tensor) -> Tensor:
        """A linear layer around the recurrent ones: input (..., K) -> (..., M)"""
        dtype = self.rounding.dtype
        rows = input.to(dtype)
        output = self.rounding.product(rows, self.columns(layer, "weight"), largest_of_rows(rows))
        if layer.bias is not None:
            output = output + layer.bias.to(dtype)
        return output.to(input.dtype)

    def input_product(self, layer: Recurrent, name: str, rows: Tensor) -> Tensor:
        """rows (N, K) @ the weight `name` (M, K).T -> (N, M)"""
        if self._rounds_inputs:
            return self.rounding.product(rows, self.columns(layer, name), largest_of_rows(rows))
        weight = getattr(layer, name).detach().to(rows.dtype)
        # Not for `WeightProducts` to look at, as that of a layer of eight bits is not.
        with _disable_current_modes():
            product: Tensor = rows @ weight.t()
        return product

    def columns(self, layer: nn.Module, name: str) -> Columns:
        """A weight of a layer, rounded once."""
        key = id(layer), name
        if key not in self._columns:
            self._columns[key] = Columns.of(getattr(layer, name))
        return self._columns[key]

    def step_weight(self, layer: Recurrent, name: str) -> Tensor:
        """A weight of a layer as the step of a user gets it, in the dtype of the rounding."""
        dtype = self.rounding.dtype
        key = id(layer), name, dtype
        if key not in self._step_weights:
            # A copy, which stays as long as the simulation.
            weight = right_hand([getattr(layer, name).detach().to(dtype, copy=True)])
            self.storages.add(weight.untyped_storage().data_ptr())
            self._step_weights[key] = weight
        return self._step_weights[key]

    def run(
        self, layer: Recurrent, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        if in_step():
            # A layer within the step of a loop is written as it computes; its products are those of the step.
            return super().run(layer, input, states, lengths)
        dtype = input.dtype
        sequence = input.to(self.rounding.dtype)
        batch = input.size(1)
        first_states = [
            sequence.new_zeros(layer.num_layers * layer.num_directions(), batch, size)
            for size in layer.state_sizes()
        ]
        if states is not None:
            first_states = [state.to(self.rounding.dtype) for state in states]
        finals: list[list[Tensor]] = [[] for _ in first_states]
        for number in range(layer.num_layers):
            outputs = []
            for direction in range(layer.num_directions()):
                walk = _Walk(self, layer, number, direction, lengths)
                index = number * layer.num_directions() + direction
                # Nothing but the step of a user has products for `WeightProducts` to look at.
                is_known = layer.cell.step in STEPS
                with _disable_current_modes() if is_known else nullcontext():
                    output, last = walk.run(sequence, [state[index] for state in first_states])
                outputs.append(output)
                for collected, state in zip(finals, last, strict=True):
                    collected.append(state)
            sequence = torch.cat(outputs, dim=-1)
        return sequence.to(dtype), [torch.stack(collected).to(dtype) for collected in finals]


class _Walk:
    """One direction of one layer."""

    def __init__(
        self,
        simulation: Simulation,
        layer: Recurrent,
        number: int,
        direction: int,
        lengths: Tensor | None,
    ) -> None:
        self._simulation = simulation
        self._rounding = simulation.rounding
        self._layer = layer
        suffix = f"_l{number}" + ("_reverse" if direction else "")
        self._columns: dict[str, Columns] = {}
        self._biases: dict[str, Tensor] = {}
        names = layer.weight_shapes()
        for kind in TORCH_WEIGHTS:
            name = kind + suffix
            if name not in names:
                continue
            if kind.startswith("bias"):
                self._biases[kind] = getattr(layer, name).detach().to(self._rounding.dtype)
            elif kind == "weight_ih":
                self._input_weight = name
            elif layer.cell.step in STEPS:
                self._columns[kind] = simulation.columns(layer, name)
        self._step = STEPS.get(layer.cell.step) or _OwnStep(simulation, layer, suffix)
        self._is_bounded = layer.cell.step in BOUNDED and "weight_hr" not in self._columns
        self._is_reverse = bool(direction)
        self._lengths = lengths

    def bias(self, name: str) -> Tensor | float:
        """A bias, or 0 where the layer has none."""
        return self._biases.get(name, 0.0)

    def recurrent(self, h: Tensor) -> Tensor:
        """h (B, P) @ W_hh.T -> (B, G*H)"""
        limits = self._limits if self._is_bounded else largest_of_rows(h)
        return self._rounding.product(h, self._columns["weight_hh"], limits)

    def projected(self, h: Tensor) -> Tensor:
        """(B, H) within -1 and 1 -> (B, P); h itself where the layer has no projection."""
        if "weight_hr" not in self._columns:
            return h
        return self._rounding.product(h, self._columns["weight_hr"], None)

    def run(self, sequence: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """sequence (T, B, N), first states (B, P) ... -> every output (T, B, P), the last states"""
        if self._is_reverse:
            sequence = reverse_rows(sequence, self._lengths)
        steps, batch, width = sequence.shape
        rows = sequence.reshape(steps * batch, width)
        inputs = self._simulation.input_product(self._layer, self._input_weight, rows)
        inputs = (inputs + self.bias("bias_ih")).reshape(steps, batch, -1)
        self._limits = largest_of_rows(states[0]).clamp(min=1)
        mask = None if self._lengths is None else step_mask(steps, self._lengths)[:, 0]  # (T, B, 1)
        outputs = []
        for t in range(steps):
            new_states = self._step(self, inputs[t], states)
            output = new_states[0]
            if mask is not None:
                output = output.masked_fill(~mask[t], 0.0)
                pairs = zip(new_states, states, strict=True)
                new_states = [torch.where(mask[t], new, old) for new, old in pairs]
            states = new_states
            outputs.append(output)
        output = torch.stack(outputs)
        return reverse_rows(output, self._lengths) if self._is_reverse else output, states


def _tanh(walk: _Walk, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    return [torch.tanh(x + walk.recurrent(states[0]) + walk.bias("bias_hh"))]


def _relu(walk: _Walk, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    return [torch.relu(x + walk.recurrent(states[0]) + walk.bias("bias_hh"))]


def _gru(walk: _Walk, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    h = states[0]
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = (walk.recurrent(h) + walk.bias("bias_hh")).chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return [(1 - z) * n + z * h]


def _lstm(walk: _Walk, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    h, c = states
    i, f, g, o = (x + walk.recurrent(h) + walk.bias("bias_hh")).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return [walk.projected(torch.sigmoid(o) * torch.tanh(c)), c]


class _OwnStep:
    """The step of a cell of a user's own, as it is; `WeightProducts` rounds its products."""

    def __init__(self, simulation: Simulation, layer: Recurrent, suffix: str) -> None:
        self._cell = layer.cell
        kinds = ["weight_hh", *(["bias_hh"] if self._cell.bias_in_step else [])]
        kinds += [*self._cell.parameters, "weight_hr"]
        names = [kind + suffix for kind in kinds]
        shapes = layer.weight_shapes()
        self._weights = [simulation.step_weight(layer, name) for name in names if name in shapes]
        if self._cell.bias_in_step and f"bias_hh{suffix}" not in shapes:
            rows = layer.cell.gates * layer.hidden_size
            self._weights.insert(1, torch.zeros(1, 1, rows, dtype=simulation.rounding.dtype))

    def __call__(self, walk: _Walk, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        projected = x if self._cell.bias_in_step else x + walk.bias("bias_hh")
        with_direction = [state.unsqueeze(0) for state in states]
        new_states = self._cell.step(projected.unsqueeze(0), with_direction, self._weights)
        return [state.squeeze(0) for state in new_states]


STEPS: dict[cells.Step, Callable[[_Walk, Tensor, Sequence[Tensor]], list[Tensor]]] = {
    cells.tanh: _tanh,
    cells.relu: _relu,
    cells.gru: _gru,
    cells.lstm: _lstm,
}
"""The step of a cell -> the same for a simulation."""

BOUNDED = (cells.tanh, cells.gru, cells.lstm)
"""The cells whose h does not leave -1 to 1 if it begins there."""


def simulate(layers: Sequence[Recurrent], *, rounds_inputs: bool = True) -> Simulation:
    """Let layers compute as a file in eight bits does."""
    simulation = Simulation(rounds_inputs=rounds_inputs)
    for layer in layers:
        layer.recurrence = simulation
    return simulation
