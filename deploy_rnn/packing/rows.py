"""`Rows`: what a packed sequence was made of, a padded tensor and the lengths of its rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.utils.rnn import PackedSequence

from deploy_rnn.errors import ExportError


@dataclass
class Rows:
    """What was packed, in the order of rows that the caller knows.

    Attributes:
        padded: (T, B, ...)
        lengths: (B,)
        order: the rows from the longest to the shortest, (B,); None if they are in that order.
        inverse_order: the position of each row in that order, (B,); None if they are in that order.
        within: whether step t is within row b, (T, B), rows from the longest to the shortest.
        zeros: whether `padded` is 0 beyond the end of each row.
    """

    padded: Tensor
    lengths: Tensor
    order: Tensor | None
    inverse_order: Tensor | None
    within: Tensor
    zeros: bool

    @classmethod
    def of(cls, padded: Tensor, lengths: Tensor, *, is_sorted: bool) -> "Rows":
        # The comparison makes torch take the two axes for one.
        if lengths.dim() != 1 or lengths.size(0) != padded.size(1):
            raise ExportError(
                f"`lengths` is {list(lengths.shape)}; a batch of {padded.size(1)} rows has one for each."
            )
        descending = lengths
        order = None
        if not is_sorted:
            descending, order = torch.sort(lengths, descending=True)
        within = _is_within(padded, descending)
        inverse_order = None if order is None else inverted(order)
        return cls(padded, lengths, order, inverse_order, within, zeros=False)

    @classmethod
    def of_packed(cls, packed: PackedSequence, batch: int) -> "Rows":
        """Those of a PackedSequence of `batch` rows, of which nothing else is known."""
        rows = torch.arange(batch, device=packed.data.device)
        within = rows < packed.batch_sizes.to(rows.device).unsqueeze(1)  # (T, B)
        lengths = within.sum(0)
        inverse_order = packed.unsorted_indices
        if inverse_order is not None:
            lengths = lengths.index_select(0, inverse_order)
        order = packed.sorted_indices
        if order is None and inverse_order is not None:
            order = inverted(inverse_order)
        unknown = cls(packed.data, lengths, order, inverse_order, within, zeros=False)
        return unknown.with_values(unknown.unpack(packed.data), zeros=False)

    def with_values(self, padded: Tensor, *, zeros: bool) -> "Rows":
        """The same rows with other values."""
        return Rows(padded, self.lengths, self.order, self.inverse_order, self.within, zeros)

    def has_several(self) -> bool:
        """Whether there are known to be two rows or more."""
        return statically_known_true(self.within.size(1) >= 2)

    def fill(self, value: float) -> Tensor:
        """`padded` with `value` beyond the end of each row."""
        padded = self.padded
        if self.zeros and value == 0:
            return padded
        within = _is_within(padded, self.lengths)
        within = within.view(*within.shape, *[1] * (padded.dim() - 2))  # (T, B, 1 ...)
        return torch.where(within, padded, _filler(value, padded))

    def pack(self, positions: Tensor) -> Tensor:
        """The steps within rows, in the order of time: (N, ...)

        positions: of these among all steps, rows from the longest to the shortest, (N,)
        """
        padded = self.padded if self.order is None else self.padded.index_select(1, self.order)
        return padded.flatten(0, 1).index_select(0, positions)

    def unpack(self, data: Tensor) -> Tensor:
        """Other data (N, ...) of the same rows -> (T, B, ...), undefined beyond each row's end"""
        positions = (self.within.flatten().cumsum(0) - 1).clamp(min=0)  # (T*B,)
        # Not by `unflatten`, which torch.compile does not take while a default device is set.
        shape = [*self.within.shape, *data.shape[1:]]
        padded: Tensor = data.index_select(0, positions).view(shape)  # (T, B, ...)
        return padded if self.inverse_order is None else padded.index_select(1, self.inverse_order)


def inverted(order: Tensor) -> Tensor:
    """The position of each number in an order of 0 ... B-1, (B,)"""
    positions = torch.arange(0, order.numel(), device=order.device)
    return torch.empty_like(order).scatter_(0, order, positions)


def pad_list(sequences: Sequence[Tensor], value: float) -> Tensor:
    """Tensors (N, ...) of any number of steps each -> one of (T, B, ...), `value` beyond the end of each.

    The order of these numbers is asked of none: each order would be a graph of its own.
    """
    steps: Any = 0
    for sequence in sequences:
        steps = torch.sym_max(steps, sequence.size(0))
    padded = []
    for sequence in sequences:
        numbers = torch.arange(steps, device=sequence.device)
        last = sequence.size(0) - 1
        within = (numbers <= last).view(-1, *[1] * (sequence.dim() - 1))  # (T, 1 ...)
        lengthened = sequence.index_select(0, numbers.clamp(max=last))
        padded.append(torch.where(within, lengthened, _filler(value, sequence)))
    return torch.stack(padded, dim=1)


def _filler(value: float, tensor: Tensor) -> Tensor:
    return torch.full((), value, dtype=tensor.dtype, device=tensor.device)


def _is_within(padded: Tensor, lengths: Tensor) -> Tensor:
    """Whether step t is within row b, (T, B)."""
    return torch.arange(padded.size(0), device=padded.device).unsqueeze(1) < lengths
