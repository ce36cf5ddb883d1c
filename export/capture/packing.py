"""Packed sequences while a model is being exported to ONNX: what differs there from `deploy_rnn.packing`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.nn.utils.rnn import PackedSequence

from deploy_rnn.errors import ExportError
from deploy_rnn.packing.packing import Packing
from deploy_rnn.packing.rows import Rows


class OnnxPacking(Packing):
    """The packed tensors of one export. No file checks the values of its lengths.

    Args:
        same_size: whether two sizes, which may be unknown, are those of one dynamic axis.

    Attributes:
        fixed_lengths: lengths that the model gave as numbers, which the file has as constants.
    """

    def __init__(self, same_size: Callable[[Any, Any], bool]) -> None:
        super().__init__()
        self.fixed_lengths: list[list[int]] = []
        self._same_size = same_size

    def pack(
        self, input: Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool
    ) -> PackedSequence:
        """Do what `pack_padded_sequence` does."""
        is_list = isinstance(lengths, (list, tuple))
        if is_list and all(isinstance(length, int) for length in lengths):
            self.fixed_lengths.append(list(lengths))
        return super().pack(input, lengths, batch_first, enforce_sorted)

    def longest(self, rows: Rows) -> Any:
        longest: Any = rows.lengths.max().item()
        torch._check(longest >= 1)
        torch._check(longest <= rows.padded.size(0))
        return longest

    def positions(self, rows: Rows) -> Tensor:
        positions = rows.within.flatten().nonzero().squeeze(1)
        # Some functions of torch want to know that there is a row; none is empty.
        torch._check(positions.size(0) >= 1)
        return positions

    def to_length(self, padded: Tensor, longest: Any, total_length: Any, value: float) -> Tensor:
        """`padded` (T, B, ...), followed by steps of `value` up to `total_length`."""
        steps: Any = padded.size(0)
        if self._same_size(total_length, steps):
            return padded
        if _is_computed(total_length):
            # No file checks that it is not below `longest`.
            return super().to_length(padded, longest, total_length, value)
        is_number = isinstance(total_length, int)
        if not is_number or (isinstance(steps, int) and total_length < steps):
            shown_length = f"={total_length}" if is_number else "computed by the model"
            raise ExportError(
                f"`total_length` ({shown_length}) of pad_packed_sequence must be the size of the padded input's time "
                "axis, or of another axis of that name in `dynamic_shapes`, a whole number that is not below it, or "
                "computed from the lengths."
            )
        torch._check(steps <= total_length)
        missing_steps = padded.new_full((total_length - steps, *padded.shape[1:]), value)
        return torch.cat([padded, missing_steps])

    def unknown(self, packed: PackedSequence) -> Rows:
        raise ExportError(
            "a PackedSequence that pack_padded_sequence did not make cannot be exported."
        )


def _is_computed(total_length: Any) -> bool:
    """Whether a length depends on the values of tensors, as `lengths.max()` does."""
    if isinstance(total_length, Tensor):
        return True
    return isinstance(total_length, torch.SymInt) and bool(free_unbacked_symbols(total_length))
