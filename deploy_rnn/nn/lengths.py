"""Sequences of different length in one batch: masks, reversal within each row, packing.

A row of length n ends at step n-1: its reverse direction starts there, and its final state is that of step n-1. Both
directions walk their row from its own beginning, so that one mask serves both.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def step_mask(steps: int, lengths: Tensor) -> Tensor:
    """lengths (B,) -> whether step t is within row b: (T, 1, B, 1)"""
    t = torch.arange(steps, device=lengths.device).unsqueeze(1)  # (T, 1)
    return (t < lengths).unsqueeze(1).unsqueeze(-1)


def reverse_rows(input: Tensor, lengths: Tensor | None) -> Tensor:
    """Turn each row of (T, B, I) around within its length (None: T). It is its own inverse.

    What lies beyond the length stays where it is.
    """
    if lengths is None:
        return input.flip(0)
    t = torch.arange(input.size(0), device=lengths.device).unsqueeze(1)  # (T, 1)
    index = torch.where(t < lengths, lengths - 1 - t, t)  # (T, B)
    return input.gather(0, index.unsqueeze(-1).expand(-1, -1, input.size(2)))


def check_lengths(lengths: Tensor, steps: int, batch: int) -> None:
    """Check that `lengths` is (B,), of whole numbers in 1..T.

    Raises:
        ValueError: it is not.
    """
    if lengths.dim() != 1 or lengths.size(0) != batch:
        raise ValueError(
            f"`lengths` has shape {list(lengths.shape)}; give one length for each of the {batch} rows."
        )
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"`lengths` is {lengths.dtype}; give whole numbers, such as lengths.long()."
        )
    if batch == 0:
        return
    shortest = int(lengths.min())
    longest = int(lengths.max())
    if shortest < 1 or longest > steps:
        raise ValueError(
            f"`lengths` goes from {shortest} to {longest}; every length must be in 1..{steps}, the number of steps."
        )


def unpack(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """Pad a PackedSequence with zeros: (T, B, I), and lengths (B,), rows in the order that the caller knows."""
    padded, lengths = pad_packed_sequence(packed)
    return padded, lengths.to(padded.device)


def repack(output: Tensor, lengths: Tensor, packed: PackedSequence) -> PackedSequence:
    """Pack (T, B, P) with the rows, and their order, of `packed`."""
    order = packed.sorted_indices
    if order is not None:
        output = output.index_select(1, order)
        lengths = lengths[order]
    data = pack_padded_sequence(output, lengths.cpu()).data
    return PackedSequence(data, packed.batch_sizes, order, packed.unsorted_indices)
