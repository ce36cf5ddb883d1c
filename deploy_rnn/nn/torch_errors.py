"""What `torch.nn` refuses, refused with its exceptions, in its words and in its order.

TorchScript compiles the functions that `forward` calls, hence the plain types.
"""

import warnings

import torch
from torch import Tensor


def check_constructor(
    input_size: object,
    hidden_size: object,
    num_layers: int,
    bias: object,
    batch_first: object,
    dropout: object,
    proj_size: int,
    *,
    has_projection: bool,
    stacklevel: int,
) -> None:
    """Check the arguments of a layer as `torch.nn.RNNBase` does.

    Args:
        has_projection: whether the cell takes a `proj_size`.
        stacklevel: of the warning about dropout, seen from the caller.
    """
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
            f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=stacklevel + 1,
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
    if proj_size and not has_projection:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


def check_ranks(name: str, input: Tensor, states: list[Tensor] | None) -> None:
    """The input must be 2-D (unbatched) or 3-D, and each state must have as many axes. `name`: of the layer."""
    if input.dim() not in (2, 3):
        end = " tensor instead" if name == "RNN" else " instead"
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D{end}")
    if states is None:
        return
    batched = "For batched 3-D" if input.dim() == 3 else "For unbatched 2-D"
    ranks = [state.dim() for state in states]
    if len(states) == 1 and ranks[0] != input.dim():
        raise RuntimeError(
            f"{batched} input, hx should also be {input.dim()}-D but got {ranks[0]}-D tensor"
        )
    if len(states) == 2 and (ranks[0] != input.dim() or ranks[1] != input.dim()):
        raise RuntimeError(
            f"{batched} input, hx and cx should also be {input.dim()}-D but got ({ranks[0]}-D, {ranks[1]}-D) tensors"
        )


def check_packed_rank(data: Tensor) -> None:
    """The data of a PackedSequence must be (N, I)."""
    if data.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")


def check_dtype(input: Tensor, dtype: torch.dtype) -> None:
    """The input must have the dtype of the weights, unless autocast changes both."""
    if input.dtype != dtype and not torch.is_autocast_enabled(input.device.type):
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). Convert input: "
            f"input.to({dtype}), or convert model: model.to({input.dtype})"
        )


def check_input_size(input: Tensor, input_size: int) -> None:
    """The last axis of the input must be I."""
    if input.size(-1) != input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {input_size}, got {input.size(-1)}"
        )


def check_states(states: list[Tensor], rows: int, batch: int, sizes: list[int]) -> None:
    """State n must be (rows, batch, sizes[n]), or (rows, sizes[n]) for an unbatched input; rows is L*D."""
    for number, state in enumerate(states):
        state_batch = batch if state.dim() == 2 else state.size(1)
        actual = [state.size(0), state_batch, state.size(-1)]
        if actual != [rows, batch, sizes[number]]:
            which = "hidden" if len(states) == 1 else f"hidden[{number}]"
            raise RuntimeError(
                f"Expected {which} size ({rows}, {batch}, {sizes[number]}), got {actual}"
            )


def check_steps(steps: int) -> None:
    """T must not be 0."""
    if steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
