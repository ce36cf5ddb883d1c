"""`Recurrent`: all that the layers have in common, which is everything but the equation of one step (see `cells`)."""

import copy
import math
import sys
from types import FrameType
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn.utils.rnn import PackedSequence

from deploy_rnn.nn.cells import CELLS, Cell, Shape, Step
from deploy_rnn.nn.lengths import check_lengths, repack, reverse_rows, step_mask, unpack
from deploy_rnn.nn.recurrence import Recurrence
from deploy_rnn.nn.scan import zeros
from deploy_rnn.nn.torch_errors import (
    check_constructor,
    check_dtype,
    check_input_size,
    check_packed_rank,
    check_ranks,
    check_states,
    check_steps,
)


class Recurrent(nn.Module):
    """A stack of recurrent layers over a cell. A subclass says which: `cell = Cell(step)` (docs/adding-a-cell.md).

    T time steps, B batch, I input size, H hidden size, P output size (H, or `proj_size`), D directions (1 or 2),
    L layers, G gates of the cell. Layer 0 reads I features, every later layer D*P.

    1. A layer projects its input for all steps in one product, since that needs no order.
    2. The loop then has one recurrent product and the cell for each step. Both directions take a step together: each
       has its own copy of the sequence, the reverse direction's turned around.
    3. Every layer sees the whole sequence before the next one starts.

    forward(input: (T, B, I), hx: (L*D, B, P) or None for zeros, lengths: (B,) or None for T)
        -> output: (T, B, D*P), h_n: (L*D, B, P)

    is that of a cell with one state, as `deploy_rnn.RNN` describes it; a cell with two inherits from `deploy_rnn.LSTM`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as for `deploy_rnn.RNN`.
        proj_size: features of the output, for a cell with a projection; 0 for H.
        cell: instead of the class's own.

    Raises:
        TypeError: a class without a cell, or see `deploy_rnn.RNN`.
        ValueError: see there; or a `proj_size` for a cell without a projection.
    """

    __constants__: ClassVar = [
        "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
        "proj_size",
    ]  # fmt: skip

    __jit_unused_properties__: ClassVar = ["all_weights", "_flat_weights", "_flat_weights_names"]
    __jit_ignored_attributes__: ClassVar = ["cell", "recurrence"]

    _scripted_weights: list[Tensor]

    mode: str
    """As in `torch.nn`, for code that reads it there; nothing here depends on it."""

    cell: Cell
    """What one step does; a subclass sets it."""

    recurrence: Recurrence = Recurrence()
    """What computes the layers; assign another one to an instance to take their place."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        cell: Cell | None = None,
    ) -> None:
        super().__init__()
        cell = cell or getattr(type(self), "cell", None)
        if cell is None:
            raise TypeError(
                f"{type(self).__name__} has no cell; set `cell = deploy_rnn.Cell(step)` in the class."
            )
        check_constructor(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size,
            has_projection=cell.projection,
            # The constructor of a subclass lies between this one and the line that made the layer.
            stacklevel=2 if type(self).__init__ is Recurrent.__init__ else 3,
        )  # fmt: skip
        self.mode = getattr(type(self), "mode", type(self).__name__)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self._set_cell(cell)
        for name, shape in self.weight_shapes().items():
            self.register_parameter(
                name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            )
        self.reset_parameters()

    def _set_cell(self, cell: Cell) -> None:
        """Keep what TorchScript needs as plain attributes: it has no dataclass with a function in it."""
        if getattr(type(self), "cell", None) is not cell:
            # Otherwise a layer could be saved only if everything in its cell can.
            self.cell = cell
        self._name = cell.name or type(self).__name__
        self._step = cell.step
        self._gates = cell.gates
        self._states = cell.states
        self._bias_in_step = cell.bias_in_step
        self._own_parameters = len(cell.parameters)

    @classmethod
    def from_torch(cls, module: nn.RNNBase) -> Self:
        """Make a layer with the parameters (the same objects), hooks, options and training mode of a `torch.nn` one."""
        layer = object.__new__(cls)
        nn.Module.__init__(layer)
        only_in_torch = (
            "_flat_weights",
            "_flat_weight_refs",
            "_flat_weights_names",
            "_all_weights",
            # Left by torch.jit.script: the names of the two forwards that torch.nn's GRU and LSTM have.
            "__overloads__",
        )
        for name, value in vars(module).items():
            if name not in only_in_torch:
                layer.__dict__[name] = value
        layer._set_cell(CELLS[module.mode])
        return layer

    # The recurrence: all layers, one layer, one loop.

    def run_layers(
        self, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all layers, each over the whole sequence before the next: what `Recurrence.run` does unless overridden.

        input (T, B, I), states (L*D, B, P), (L*D, B, H) or None for zeros, lengths (B,) or None
        -> output (T, B, D*P), final states, shaped as states
        """
        directions = self._count_directions()
        weights = [
            weight if weight.dtype == input.dtype else weight.to(input.dtype)
            for weight in self.ordered_weights()
        ]
        weights_by_direction = _grouped(weights, self.num_layers * directions)
        if states is None:
            states = self._zero_states(input)
        if lengths is not None:
            lengths = lengths.to(input.device)
        finals: list[list[Tensor]] = [[] for _ in states]
        for layer in range(self.num_layers):
            first = layer * directions
            layer_states = [
                state[first : first + directions] for state in states
            ]  # (D, B, P), (D, B, H) ...
            layer_weights = weights_by_direction[first : first + directions]
            input, layer_finals = self._run_layer(input, layer_states, layer_weights, lengths)
            if not is_scripting():
                _check_step(self._step, len(layer_finals), len(states))
            for number, final in enumerate(layer_finals):
                finals[number].append(final)
            # Not asked for in evaluation mode: torch.compile begins again for a float that no operation takes.
            if self.training and layer + 1 < self.num_layers:
                input = F.dropout(input, self.dropout)
        return input, [torch.cat(layer_finals) for layer_finals in finals]

    def _zero_states(self, input: Tensor) -> list[Tensor]:
        rows = self.num_layers * self._count_directions()
        shapes = [[rows, input.size(1), size] for size in self.state_sizes()]
        if not is_scripting():  # noqa: SIM102
            if torch.compiler.is_compiling():
                return [zeros(shape, input) for shape in shapes]
        return [input.new_zeros(shape) for shape in shapes]

    def _run_layer(
        self,
        input: Tensor,
        states: list[Tensor],
        weights: list[list[Tensor]],
        lengths: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run one layer.

        input (T, B, I), states (D, B, P) ..., lengths (B,) or None,
        weights: for each direction weight_ih, weight_hh (, bias_ih, bias_hh) (, the cell's own) (, weight_hr)
        -> output (T, B, D*P), final states (D, B, P) ...
        """
        steps = input.size(0)
        batch = input.size(1)
        sequences = [input]
        if self.bidirectional:
            sequences.append(reverse_rows(input, lengths))
        products: list[Tensor] = []
        for sequence, direction in zip(sequences, weights):  # noqa: B905  TorchScript has no `strict`
            bias = self._input_bias(direction)
            products.append(F.linear(sequence.flatten(0, 1), direction[0], bias))  # (T*B, G*H)
        projected = _stacked(products)  # (D, T*B, G*H)
        # Not by `unflatten`, which torch.compile does not take while a default device is set.
        shape = [projected.size(0), steps, batch, projected.size(2)]
        projected = projected.view(shape).transpose(0, 1)  # (T, D, B, G*H)
        mask = None if lengths is None else step_mask(steps, lengths)
        outputs, states = self._loop(
            projected, mask, states, self._step_weights(weights)
        )  # (T, D, B, P)
        if mask is not None:
            outputs = outputs.masked_fill(~mask, 0.0)
        if self.bidirectional:
            # The reverse direction's first output belongs to the last step: back into the order of the input.
            reverse_outputs = reverse_rows(outputs[:, 1], lengths)
            return torch.cat([outputs[:, 0], reverse_outputs], dim=-1), states  # (T, B, D*P)
        return outputs[:, 0], states

    def _input_bias(self, direction: list[Tensor]) -> Tensor | None:
        """What is added to all steps at once: both biases, or bias_ih alone if the cell adds the other."""
        if not self.bias:
            return None
        if self._bias_in_step:
            return direction[2]
        return direction[2] + direction[3]

    def _step_weights(self, weights: list[list[Tensor]]) -> list[Tensor]:
        """What a step multiplies its state by, as `cells` describes it: W_hh, b_hh, the cell's own parameters, W_hr."""
        step_weights = [right_hand([direction[1] for direction in weights])]  # (D, P, G*H)
        if self._bias_in_step:
            if self.bias:
                step_weights.append(
                    right_hand([direction[3] for direction in weights])
                )  # (D, 1, G*H)
            else:
                shape = [len(weights), 1, self._gates * self.hidden_size]
                step_weights.append(weights[0][0].new_zeros(shape))
        first_own = 4 if self.bias else 2
        for number in range(first_own, first_own + self._own_parameters):
            step_weights.append(right_hand([direction[number] for direction in weights]))
        if self.proj_size > 0:
            step_weights.append(right_hand([direction[-1] for direction in weights]))  # (D, H, P)
        return step_weights

    def _loop(
        self, projected: Tensor, mask: Tensor | None, states: list[Tensor], weights: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all steps of one layer.

        projected (T, D, B, G*H), mask (T, 1, B, 1) or None for every row at every step, states (D, B, P) ..., weights
        -> every output (T, D, B, P), the last states
        """
        if not is_scripting():  # noqa: SIM102  TorchScript would compile both sides of an `and`
            if torch.compiler.is_compiling():
                return self.recurrence.compiled_loop(self._step, projected, mask, states, weights)
        outputs: list[Tensor] = []
        for t, step in enumerate(projected.unbind(0)):
            new_states = self._step(step, states, weights)
            if mask is not None:  # a row that has ended keeps its states
                new_states = [
                    torch.where(mask[t], new, old)
                    for new, old in zip(new_states, states)  # noqa: B905
                ]
            states = new_states
            outputs.append(states[0])
        return torch.stack(outputs), states

    # Around the recurrence: checks, layouts, autocast.

    def forward(
        self, input: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """For a cell of one state; the LSTM has its own."""
        if not is_scripting():  # noqa: SIM102
            if isinstance(input, PackedSequence):
                return cast(Any, self._forward_packed(input, hx, lengths))
        return self._forward_padded(input, hx, lengths)

    # What TorchScript calls instead of `forward`, which has one signature there: see `__prepare_scriptable__`.

    @torch.jit.export
    def _forward_padded(
        self, input: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        states: list[Tensor] | None = None
        if hx is not None:
            states = [hx]
        output, finals = self._run(input, states, lengths)
        return output, finals[0]

    @torch.jit.export
    def _forward_packed(
        self, input: PackedSequence, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]:
        states: list[Tensor] | None = None
        if hx is not None:
            states = [hx]
        output, finals = self._run_packed(input, states, lengths)
        return output, finals[0]

    def _run(
        self, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """What `forward` does, for any number of states: -> output, final states, in the caller's layout."""
        self._check_forward(input, states, lengths)
        if input.dim() == 2:
            if states is not None:
                states = [state.unsqueeze(1) for state in states]
            output, finals = self._run_in_autocast(input.unsqueeze(1), states, lengths)
            return output.squeeze(1), [final.squeeze(1) for final in finals]
        if self.batch_first:
            output, finals = self._run_in_autocast(input.transpose(0, 1), states, lengths)
            return output.transpose(0, 1), finals
        return self._run_in_autocast(input, states, lengths)

    def _run_packed(
        self, packed: PackedSequence, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[PackedSequence, list[Tensor]]:
        """A PackedSequence in, one with the same rows and order out; states are in the caller's order of rows."""
        if lengths is not None:
            raise ValueError("a PackedSequence has its own lengths; leave out `lengths`.")
        if not is_scripting():
            check_dtype(packed.data, self._weight_dtype())
        check_packed_rank(packed.data)
        check_input_size(packed.data, self.input_size)
        padded, row_lengths = self._unpack(packed)
        if states is not None:
            if not is_scripting():  # noqa: SIM102
                if torch.compiler.is_compiling():
                    # A tracer may know the number of rows from the states alone.
                    torch._check(states[0].size(-2) == padded.size(1))
            self._check_states(states, padded.size(1))
        output, finals = self._run_in_autocast(padded, states, row_lengths)
        return self._repack(output, row_lengths, packed), finals

    def _unpack(self, packed: PackedSequence) -> tuple[Tensor, Tensor]:
        if not is_scripting():
            return self.recurrence.unpack(packed)
        return unpack(packed)

    def _repack(self, output: Tensor, lengths: Tensor, packed: PackedSequence) -> PackedSequence:
        if not is_scripting():
            return self.recurrence.repack(output, lengths, packed)
        return repack(output, lengths, packed)

    def _run_in_autocast(
        self, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The recurrence, all of it in the dtype that autocast asks for."""
        if not is_scripting():
            dtype = self._autocast_dtype(input)
            if dtype is None:
                return self.recurrence.run(self, input, states, lengths)
            if states is not None:
                states = [state.to(dtype) for state in states]
            with torch.autocast(input.device.type, enabled=False):
                return self.recurrence.run(self, input.to(dtype), states, lengths)
        return self.run_layers(input, states, lengths)

    def _autocast_dtype(self, input: Tensor) -> torch.dtype | None:
        """What the whole layer computes in under autocast; None where that is off."""
        device = input.device.type
        if not torch.is_autocast_enabled(device):
            return None
        if device == "cpu" and not self.cell.autocast_on_cpu:
            return self._weight_dtype()
        return torch.get_autocast_dtype(device)

    def _check_forward(
        self, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> None:
        check_ranks(self._name, input, states)
        if not is_scripting():
            check_dtype(input, self._weight_dtype())
        check_input_size(input, self.input_size)
        time = 1 if self.batch_first and input.dim() == 3 else 0
        batch = input.size(1 - time) if input.dim() == 3 else 1
        if states is not None:
            self._check_states(states, batch)
        check_steps(input.size(time))
        if lengths is not None:
            if input.dim() == 2:
                raise ValueError("`lengths` needs a batch: give a 3-D input.")
            if not is_scripting():  # noqa: SIM102
                if not torch.compiler.is_compiling():  # a compiled graph cannot look at values
                    check_lengths(lengths, input.size(time), batch)

    def _check_states(self, states: list[Tensor], batch: int) -> None:
        check_states(states, self.num_layers * self._count_directions(), batch, self.state_sizes())

    # What there is to compute: sizes and weights.

    def num_directions(self) -> int:
        """D: 2 for a bidirectional layer, else 1."""
        return self._count_directions()

    def _count_directions(self) -> int:
        # A subclass of torch.nn's may have a number of this name, which `num_directions` then is.
        return 2 if self.bidirectional else 1

    def state_sizes(self) -> list[int]:
        """The last axis of each state of the cell: P, then H for every other."""
        output_size = self.proj_size if self.proj_size > 0 else self.hidden_size
        return [output_size] + [self.hidden_size] * (self._states - 1)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, by layer and direction: ih, hh, biases, the cell's own, hr."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        rows = self._gates * self.hidden_size
        output_size = self.state_sizes()[0]
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.num_layers):
            columns = self.input_size if layer == 0 else len(suffixes) * output_size
            for suffix in suffixes:
                name = f"l{layer}{suffix}"
                shapes[f"weight_ih_{name}"] = (rows, columns)
                shapes[f"weight_hh_{name}"] = (rows,) if self.cell.diagonal else (rows, output_size)
                if self.bias:
                    shapes[f"bias_ih_{name}"] = (rows,)
                    shapes[f"bias_hh_{name}"] = (rows,)
                for own, shape in self.cell.parameters.items():
                    shapes[f"{own}_{name}"] = self._own_shape(own, shape)
                if self.proj_size:
                    shapes[f"weight_hr_{name}"] = (output_size, self.hidden_size)
        return shapes

    def _own_shape(self, name: str, shape: Shape) -> tuple[int, ...]:
        """The shape of one of the cell's own parameters."""
        sizes = tuple(shape(self.hidden_size))
        if len(sizes) not in (1, 2):
            raise ValueError(
                f"`{name}` has the shape {list(sizes)}; a parameter of a cell must be a vector or a matrix."
            )
        return sizes

    def ordered_weights(self) -> list[Tensor]:
        """Every parameter, in the order of `weight_shapes()`."""
        if is_scripting():
            return self._scripted_weights
        return [getattr(self, name) for name in self.weight_shapes()]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each direction of each layer, as in `torch.nn`."""
        return _grouped(self.ordered_weights(), self.num_layers * self._count_directions())

    @property
    def _flat_weights_names(self) -> list[str]:
        """For models that set weights in their forward, as weight drop does, and tell a layer of `torch.nn` so."""
        return list(self.weight_shapes())

    @property
    def _flat_weights(self) -> list[Tensor]:
        return self.ordered_weights()

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor]) -> None:
        for name, weight in zip(self.weight_shapes(), weights, strict=True):
            if getattr(self, name) is not weight:
                setattr(self, name, weight)

    def _weight_dtype(self) -> torch.dtype:
        return cast(Tensor, self.weight_ih_l0).dtype

    # What else a module of `torch.nn` has.

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)); one seed gives the weights of the namesake.

        A cell's own parameters start from the numbers in `Cell.initial`, where it names them.
        """
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)
        for name, number in self.cell.initial.items():
            for weight_name in self.weight_shapes():
                if weight_name.rpartition("_l")[0] == name:
                    nn.init.constant_(getattr(self, weight_name), number)

    def flatten_parameters(self) -> None:
        """Nothing to do: there is no cuDNN buffer that the weights must lie in."""

    def extra_repr(self) -> str:
        defaults = {
            "proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False,
        }  # fmt: skip
        values = {name: getattr(self, name) for name in defaults}
        options = [f"{name}={value}" for name, value in values.items() if value != defaults[name]]
        return ", ".join([str(self.input_size), str(self.hidden_size), *options])

    def __prepare_scriptable__(self) -> "Recurrent":
        """What `torch.jit.script` compiles instead: a copy with the weights as a list, since it has no `getattr`.

        Within another module it has two signatures, for a tensor and for a `PackedSequence`. By itself it has `forward`
        alone: what has several signatures cannot be called from Python or C++.
        """
        scriptable = copy.copy(self)
        scriptable._scripted_weights = self.ordered_weights()
        if self._has_packed_forward() and not _is_scripted_by_itself():
            # nn.Module says that every attribute may be a tensor.
            signatures: Any = {"forward": ["_forward_padded", "_forward_packed"]}
            scriptable.__overloads__ = signatures
        return scriptable

    def _has_packed_forward(self) -> bool:
        """Whether `forward` is the one that goes with `_forward_packed`, and not that of a subclass."""
        owner = next(cls for cls in type(self).__mro__ if "forward" in vars(cls))
        return "_forward_packed" in vars(owner)


def _is_scripted_by_itself() -> bool:
    """Whether `__prepare_scriptable__`, which calls this, is that of the module which `torch.jit.script` was given.

    TorchScript prepares every module within that one, too, and does not say which is which.
    """
    frame: FrameType | None = sys._getframe(3)
    return frame is not None and frame.f_code.co_name == "call_prepare_scriptable_func"


def _grouped(weights: list[Tensor], groups: int) -> list[list[Tensor]]:
    """Cut a list into `groups` lists of equal length, in order."""
    size = len(weights) // groups
    return [weights[group * size : (group + 1) * size] for group in range(groups)]


def _check_step(step: Step, returned: int, expected: int) -> None:
    if returned != expected:
        raise ValueError(
            f"the step `{step.__name__}` returns {returned} states; its cell says `states={expected}`."
        )


def _stacked(tensors: list[Tensor]) -> Tensor:
    """One tensor of every direction: (D, ...); a single one is not copied."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def right_hand(weights: list[Tensor]) -> Tensor:
    """One recurrent weight of every direction, as a step takes it.

    D matrices (N, M) -> (D, M, N), for a product from the right; D vectors (N,) -> (D, 1, N), for a batch of rows.
    """
    stacked = _stacked(weights)
    return stacked.transpose(1, 2) if stacked.dim() == 3 else stacked.unsqueeze(1)


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module is a recurrent layer of torch.nn or of ours.

    Another subclass of `nn.RNNBase` has a loop of its own, which stays as it is.
    """
    return isinstance(module, (nn.RNN, nn.GRU, nn.LSTM, Recurrent))


def is_plain_layer(module: nn.Module) -> bool:
    """Whether a module is a recurrent layer, and has the arguments and results of those of torch.nn.

    A subclass may have a `forward` of another kind.
    """
    if not is_recurrent(module) or "forward" in vars(module):
        return False
    return type(module).forward.__module__ in _MODULES_OF_LAYERS


_MODULES_OF_LAYERS = ("torch.nn.modules.rnn", "deploy_rnn.nn.recurrent", "deploy_rnn.nn.lstm")
