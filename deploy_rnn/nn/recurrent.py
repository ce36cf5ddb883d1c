"""`Recurrent`: everything that the layers have in common, which is all but the equation of one step (see `cells`)."""

import copy
import math
import warnings
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn.utils.rnn import PackedSequence

from deploy_rnn.nn.cells import CELLS, Cell
from deploy_rnn.nn.lengths import check_lengths, repack, reverse_rows, step_mask, unpack
from deploy_rnn.nn.scan import scan_steps, zeros


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

    __jit_unused_properties__: ClassVar = ["all_weights"]
    __jit_ignored_attributes__: ClassVar = ["cell"]

    _scripted_weights: list[Tensor]

    mode: str
    """Its name in errors, and in `torch.nn`; that of the class unless it says otherwise."""

    cell: Cell
    """What one step does; a subclass sets it."""

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
            raise TypeError(f"{type(self).__name__} has no cell; set `cell = deploy_rnn.Cell(step)` in the class.")
        depth = 3 if type(self).__init__ is Recurrent.__init__ else 4  # of the caller's line, for a warning
        _check_arguments(input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size, depth)
        if proj_size and not cell.projection:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
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
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def _set_cell(self, cell: Cell) -> None:
        """Each on its own: TorchScript has no attribute for a dataclass with a function in it."""
        self.cell = cell
        self._step = cell.step
        self._gates = cell.gates
        self._states = cell.states
        self._bias_in_step = cell.bias_in_step

    @classmethod
    def like(cls, module: nn.RNNBase) -> Self:
        """An instance with the parameters (the same objects), hooks, mode and options of a `torch.nn` namesake."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        theirs = ("_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_all_weights")
        layer.__dict__.update({name: value for name, value in vars(module).items() if name not in theirs})
        layer._set_cell(CELLS[module.mode])
        return layer

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order of `torch.nn`: layer, direction, ih, hh, biases, hr."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        rows, out = self._gates * self.hidden_size, self.proj_size or self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else len(suffixes) * out
            for suffix in suffixes:
                shapes[f"weight_ih_l{layer}{suffix}"] = (rows, width)
                shapes[f"weight_hh_l{layer}{suffix}"] = (rows,) if self.cell.diagonal else (rows, out)
                if self.bias:
                    shapes[f"bias_ih_l{layer}{suffix}"] = (rows,)
                    shapes[f"bias_hh_l{layer}{suffix}"] = (rows,)
                if self.proj_size:
                    shapes[f"weight_hr_l{layer}{suffix}"] = (out, self.hidden_size)
        return shapes

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each direction of each layer."""
        weights = self._weights()
        kinds = len(weights) // self._num_states()
        return [weights[at : at + kinds] for at in range(0, len(weights), kinds)]

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)); one seed gives the weights of the namesake."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing to do: there is no cuDNN buffer that the weights must lie in."""

    def extra_repr(self) -> str:
        options = {
            "proj_size": (self.proj_size, 0), "num_layers": (self.num_layers, 1), "bias": (self.bias, True),
            "batch_first": (self.batch_first, False), "dropout": (self.dropout, 0.0),
            "bidirectional": (self.bidirectional, False),
        }  # fmt: skip
        given = [f"{name}={value}" for name, (value, default) in options.items() if value != default]
        return ", ".join([str(self.input_size), str(self.hidden_size), *given])

    def forward(self, input: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """For a cell of one state; the LSTM has its own."""
        states: list[Tensor] | None = None
        if hx is not None:
            states = [hx]
        if not is_scripting():  # noqa: SIM102
            if isinstance(input, PackedSequence):
                packed, finals = self._run_packed(input, states, lengths)
                return packed, finals[0]
        output, finals = self._run(input, states, lengths)
        return output, finals[0]

    def _run(self, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """What `forward` does, for any number of states: -> output, final states, in the caller's layout."""
        self._check_forward(input, states, lengths)
        if input.dim() == 2:
            if states is not None:
                states = [state.unsqueeze(1) for state in states]
            output, finals = self._stack_in_autocast(input.unsqueeze(1), states, lengths)
            return output.squeeze(1), [final.squeeze(1) for final in finals]
        if self.batch_first:
            output, finals = self._stack_in_autocast(input.transpose(0, 1), states, lengths)
            return output.transpose(0, 1), finals
        return self._stack_in_autocast(input, states, lengths)

    def _run_packed(self, packed: PackedSequence, states: list[Tensor] | None, lengths: Tensor | None) -> Any:
        """A PackedSequence in, one with the same rows and order out; states are in the caller's order of rows."""
        if lengths is not None:
            raise ValueError("a PackedSequence has its own lengths; leave out `lengths`.")
        self._check_dtype(packed.data)
        if packed.data.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {packed.data.dim()}")
        self._check_size(packed.data)
        if states is not None:
            self._check_states(states, int(packed.batch_sizes[0]))
        padded, lengths = unpack(packed)
        output, finals = self._stack_in_autocast(padded, states, lengths)
        return repack(output, lengths, packed), finals

    def _stack_in_autocast(
        self, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """`_stack`, all of it in the dtype that autocast asks for."""
        if not is_scripting():
            dtype = self._autocast_dtype(input)
            if dtype is not None:
                if states is not None:
                    states = [state.to(dtype) for state in states]
                with torch.autocast(input.device.type, enabled=False):
                    return self._stack(input.to(dtype), states, lengths)
        return self._stack(input, states, lengths)

    def _stack(self, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """All layers, each over the whole sequence before the next.

        input (T, B, I), states (L*D, B, P), (L*D, B, H) or None for zeros, lengths (B,) or None
        -> output (T, B, D*P), final states, shaped as states
        """
        directions = 2 if self.bidirectional else 1
        weights = [weight if weight.dtype == input.dtype else weight.to(input.dtype) for weight in self._weights()]
        per_layer = len(weights) // self.num_layers
        if states is None:
            states = self._zeros(input)
        if lengths is not None:
            lengths = lengths.to(input.device)
        finals: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            start = [state[layer * directions : (layer + 1) * directions] for state in states]  # (D, B, P)
            of_layer = weights[layer * per_layer : (layer + 1) * per_layer]
            input, final = self._layer(input, start, of_layer, lengths)
            finals.append(final)
            if layer + 1 < self.num_layers:
                input = F.dropout(input, self.dropout, self.training)
        return input, [torch.cat([final[kind] for final in finals]) for kind in range(self._states)]

    def _zeros(self, input: Tensor) -> list[Tensor]:
        shapes = [[self._num_states(), input.size(1), size] for size in self._state_sizes()]
        if not is_scripting():  # noqa: SIM102
            if torch.compiler.is_compiling():
                return [zeros(shape, input) for shape in shapes]
        return [input.new_zeros(shape) for shape in shapes]

    def _layer(
        self, input: Tensor, states: list[Tensor], weights: list[Tensor], lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """One layer: input (T, B, I), states (D, B, P) ... -> output (T, B, D*P), final states (D, B, P) ..."""
        steps, batch = input.size(0), input.size(1)
        kinds = len(weights) // states[0].size(0)  # weight_ih, weight_hh (, bias_ih, bias_hh) (, weight_hr)
        walks = [input]
        if self.bidirectional:
            walks.append(input.flip(0) if lengths is None else reverse_rows(input, lengths))
        parts: list[Tensor] = []
        for direction, walk in enumerate(walks):
            weight_ih = weights[direction * kinds]
            if not self.bias:
                bias = None
            elif self._bias_in_step:
                bias = weights[direction * kinds + 2]
            else:
                bias = weights[direction * kinds + 2] + weights[direction * kinds + 3]
            parts.append(F.linear(walk.flatten(0, 1), weight_ih, bias))  # (T*B, G*H)
        projected = _stacked(parts)  # (D, T*B, G*H)
        recurrent = [right_hand(weights[1::kinds])]  # (D, P, G*H)
        if self._bias_in_step:
            zeros_hh = projected.new_zeros([projected.size(0), 1, projected.size(2)])
            recurrent.append(right_hand(weights[3::kinds]) if self.bias else zeros_hh)  # (D, 1, G*H)
        if self.proj_size > 0:
            recurrent.append(right_hand(weights[kinds - 1 :: kinds]))  # (D, H, P)
        mask = None if lengths is None else step_mask(steps, lengths)
        projected = projected.unflatten(1, [steps, batch]).transpose(0, 1)  # (T, D, B, G*H)
        outputs, states = self._loop(projected, mask, states, recurrent)  # (T, D, B, P)
        if mask is not None:
            outputs = outputs.masked_fill(~mask, 0.0)
        if self.bidirectional:
            # The reverse direction's first output belongs to the last step: back into the order of the input.
            turned = outputs[:, 1].flip(0) if lengths is None else reverse_rows(outputs[:, 1], lengths)
            return torch.cat([outputs[:, 0], turned], dim=-1), states
        return outputs[:, 0], states

    def _loop(
        self, projected: Tensor, mask: Tensor | None, states: list[Tensor], weights: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """projected (T, D, B, G*H), mask (T, 1, B, 1) or None -> every output (T, D, B, P), the last states"""
        if not is_scripting():  # noqa: SIM102  TorchScript would compile both sides of an `and`
            if torch.compiler.is_compiling():
                return scan_steps(self._step, projected, mask, states, weights)
        outputs: list[Tensor] = []
        for t, step in enumerate(projected.unbind(0)):
            new = self._step(step, states, weights)
            if mask is not None:  # a row that has ended keeps its states
                new = [torch.where(mask[t], after, before) for after, before in zip(new, states)]  # noqa: B905
            states = new
            outputs.append(states[0])
        return torch.stack(outputs), states

    def _state_sizes(self) -> list[int]:
        """P, then H for every other state."""
        return [self.proj_size if self.proj_size > 0 else self.hidden_size] + [self.hidden_size] * (self._states - 1)

    def _num_states(self) -> int:
        return self.num_layers * (2 if self.bidirectional else 1)

    def _weights(self) -> list[Tensor]:
        if is_scripting():
            return self._scripted_weights
        return [getattr(self, name) for name in self.weight_shapes()]

    def _weight_dtype(self) -> torch.dtype:
        return cast(Tensor, self.weight_ih_l0).dtype

    def __prepare_scriptable__(self) -> "Recurrent":
        """What `torch.jit.script` compiles in our place: the weights also as a list, since it has no `getattr`."""
        twin = copy.copy(self)
        twin._scripted_weights = self._weights()
        return twin

    def _autocast_dtype(self, input: Tensor) -> torch.dtype | None:
        """What the whole layer computes in under autocast; None where that is off.

        As in torch.nn, a GRU on the CPU keeps the dtype of its weights.
        """
        device = input.device.type
        if not torch.is_autocast_enabled(device):
            return None
        if device == "cpu" and self.mode == "GRU":
            return self._weight_dtype()
        return torch.get_autocast_dtype(device)

    def _check_forward(self, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None) -> None:
        kind = "RNN" if self.mode.startswith("RNN_") else self.mode
        if input.dim() not in (2, 3):
            end = " tensor instead" if kind == "RNN" else " instead"
            raise ValueError(f"{kind}: Expected input to be 2D or 3D, got {input.dim()}D{end}")
        if states is not None:
            self._check_rank(input, states)
        self._check_dtype(input)
        self._check_size(input)
        time = 1 if self.batch_first and input.dim() == 3 else 0
        batch = input.size(1 - time) if input.dim() == 3 else 1
        if states is not None:
            self._check_states(states, batch)
        if input.size(time) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if lengths is not None:
            if input.dim() == 2:
                raise ValueError("`lengths` needs a batch: give a 3-D input.")
            if not is_scripting():  # noqa: SIM102
                if not torch.compiler.is_compiling():  # a compiled graph cannot look at values
                    check_lengths(lengths, input.size(time), batch)

    def _check_rank(self, input: Tensor, states: list[Tensor]) -> None:
        batched = "For batched 3-D" if input.dim() == 3 else "For unbatched 2-D"
        ranks = [state.dim() for state in states]
        if len(states) == 1 and ranks[0] != input.dim():
            raise RuntimeError(f"{batched} input, hx should also be {input.dim()}-D but got {ranks[0]}-D tensor")
        if len(states) == 2 and (ranks[0] != input.dim() or ranks[1] != input.dim()):
            raise RuntimeError(
                f"{batched} input, hx and cx should also be {input.dim()}-D but got "
                f"({ranks[0]}-D, {ranks[1]}-D) tensors"
            )

    def _check_dtype(self, input: Tensor) -> None:
        if not is_scripting():
            dtype = self._weight_dtype()
            if input.dtype != dtype and not torch.is_autocast_enabled(input.device.type):
                raise ValueError(
                    f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). Convert input: "
                    f"input.to({dtype}), or convert model: model.to({input.dtype})"
                )

    def _check_size(self, input: Tensor) -> None:
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
            )

    def _check_states(self, states: list[Tensor], batch: int) -> None:
        for kind, state in enumerate(states):
            size = self.proj_size if kind == 0 and self.proj_size > 0 else self.hidden_size
            got = [state.size(0), batch if state.dim() == 2 else state.size(1), state.size(-1)]
            if got != [self._num_states(), batch, size]:
                which = "hidden" if len(states) == 1 else f"hidden[{kind}]"
                expected = f"({self._num_states()}, {batch}, {size})"
                raise RuntimeError(f"Expected {which} size {expected}, got {got}")


def _stacked(weights: list[Tensor]) -> Tensor:
    """One weight of every direction: (D, ...); a single one is not copied."""
    return torch.stack(weights) if len(weights) > 1 else weights[0].unsqueeze(0)


def right_hand(weights: list[Tensor]) -> Tensor:
    """One recurrent weight of every direction, as a step takes it.

    D matrices (N, M) -> (D, M, N), for a product from the right; D vectors (N,) -> (D, 1, N), for a batch of rows.
    """
    stacked = _stacked(weights)
    return stacked.transpose(1, 2) if stacked.dim() == 3 else stacked.unsqueeze(1)


def _check_arguments(
    input_size: object,
    hidden_size: object,
    num_layers: int,
    bias: object,
    batch_first: object,
    dropout: object,
    proj_size: int,
    depth: int,
) -> None:
    """What `torch.nn.RNNBase` checks, in its words."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
            f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=depth,
        )
    for name, flag in {"bias": bias, "batch_first": batch_first}.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
    for name, size in {"input_size": input_size, "hidden_size": hidden_size}.items():
        if not isinstance(size, int):
            raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"{name} must be greater than zero")
    if num_layers <= 0:
        raise ValueError("num_layers must be greater than zero")
    if proj_size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")
    if isinstance(hidden_size, int) and proj_size >= hidden_size:
        raise ValueError("proj_size has to be smaller than hidden_size")


def is_recurrent(module: nn.Module) -> bool:
    """Whether it is a recurrent layer of torch.nn or of ours."""
    return isinstance(module, (nn.RNNBase, Recurrent))
