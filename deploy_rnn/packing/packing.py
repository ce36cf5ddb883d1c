"""`Packing`: packing and padding in tensor operations, for one trace of a model.

`pack_padded_sequence` looks at the values of the lengths, which no tracer can. Here packing and padding are written
with tensor operations that give the same values, and each packed tensor is remembered with the padded one that it came
from, so that a recurrent layer reads that and its lengths. Where a model packs only to unpack again, nothing in the
graph then needs the packed tensor or the sorting of its rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from deploy_rnn.errors import ExportError
from deploy_rnn.packing.rows import Rows


class Packing:
    """The packed tensors of one trace. A subclass may say otherwise what its tracer cannot."""

    def __init__(self) -> None:
        self._rows: dict[Tensor, Rows] = {}

    def pack(
        self, input: Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool
    ) -> PackedSequence:
        """Do what `pack_padded_sequence` does."""
        padded = input.transpose(0, 1) if batch_first else input
        if isinstance(lengths, (list, tuple)):
            _refuse_numbers_of_a_tensor(lengths)
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
        if lengths.device != padded.device:
            lengths = lengths.to(padded.device)
        rows = Rows.of(padded, lengths, is_sorted=enforce_sorted)
        batch_sizes = rows.within.sum(1)[: self.longest(rows)]
        if batch_sizes.device.type != "cpu":
            batch_sizes = batch_sizes.cpu()
        self._rows[batch_sizes] = rows
        return self._packed(rows, batch_sizes)

    def pad(
        self,
        sequence: PackedSequence,
        batch_first: bool,
        padding_value: float,
        total_length: Any,
    ) -> tuple[Tensor, Tensor]:
        """Do what `pad_packed_sequence` does."""
        rows = self._rows_of(sequence)
        padded = rows.fill(padding_value)
        longest = sequence.batch_sizes.size(0)
        if total_length is None:
            padded = padded[:longest]
        else:
            padded = self.to_length(padded, longest, total_length, padding_value)
        return padded.transpose(0, 1) if batch_first else padded, rows.lengths

    def unpack(self, packed: PackedSequence) -> tuple[Tensor, Tensor]:
        """What a layer reads: the padded tensor (T, B, ...), undefined beyond each row's end, and the lengths (B,)."""
        rows = self._rows_of(packed)
        return rows.padded, rows.lengths

    def repack(self, output: Tensor, packed: PackedSequence) -> PackedSequence:
        """Pack the output of a layer (T, B, ...), which is 0 beyond each row's end, with the rows of `packed`."""
        rows = self._packed_from(packed)
        return self._packed(rows.with_values(output, zeros=True), packed.batch_sizes)

    # What depends on the tracer.

    def longest(self, rows: Rows) -> Any:
        """The number of steps of the longest row, once the lengths are known to be what PyTorch takes."""
        shortest: Any = rows.lengths.min().item()
        torch._check(shortest >= 1)
        if rows.order is None:
            descending = torch.sort(rows.lengths, descending=True)[0]
            misplaced: Any = (rows.lengths != descending).sum().item()
            torch._check(misplaced == 0)
        longest: Any = rows.lengths.max().item()
        torch._check(longest >= 1)
        torch._check(longest <= rows.padded.size(0))
        return longest

    def positions(self, rows: Rows) -> Tensor:
        """Of the steps within rows, in the order of time, among all of `rows.within.flatten()`: (N,)"""
        batch_sizes = rows.within.sum(1)  # (T,)
        ends = batch_sizes.cumsum(0)
        count: Any = rows.lengths.sum().item()
        torch._check(count >= 1)
        if torch.compiler.is_dynamo_compiling() and rows.has_several():
            # Some functions want to know, such as a batch norm in training mode.
            torch._check(count >= 2)
        numbers = torch.arange(count, device=ends.device)
        steps = torch.searchsorted(ends, numbers, right=True)  # (N,)
        row_numbers = numbers - (ends - batch_sizes).index_select(0, steps)
        return steps * rows.within.size(1) + row_numbers

    def to_length(self, padded: Tensor, longest: Any, total_length: Any, value: float) -> Tensor:
        """`padded` (T, B, ...) with `total_length` steps, which may be fewer than T, but not than `longest`."""
        if isinstance(total_length, Tensor):
            total_length = total_length.item()
        torch._check(total_length >= longest)
        if statically_known_true(total_length == padded.size(0)):
            return padded
        missing_steps = padded.new_full((total_length, *padded.shape[1:]), value)
        return torch.cat([padded, missing_steps])[:total_length]

    def unknown(self, packed: PackedSequence) -> Rows:
        """The rows of a PackedSequence that was not made here, such as an argument of the model."""
        if packed.unsorted_indices is not None:
            return Rows.of_packed(packed, packed.unsorted_indices.size(0))
        batch: Any = packed.batch_sizes[0].item()
        torch._check(batch >= 1)
        return Rows.of_packed(packed, batch)

    # What is remembered.

    def _packed(self, rows: Rows, batch_sizes: Tensor) -> PackedSequence:
        data = rows.pack(self.positions(rows))
        self._rows[data] = rows
        return PackedSequence(data, batch_sizes, rows.order, rows.inverse_order)

    def _rows_of(self, packed: PackedSequence) -> Rows:
        """The rows with the values of `packed`, which may be others than those that were packed."""
        rows = self._packed_from(packed)
        if packed.data in self._rows:
            return rows
        return rows.with_values(rows.unpack(packed.data), zeros=False)

    def _packed_from(self, packed: PackedSequence) -> Rows:
        """The rows that its data came from; if a layer or the model computed new data, those of its batch sizes."""
        for tensor in (packed.data, packed.batch_sizes):
            if tensor in self._rows:
                return self._rows[tensor]
        rows = self.unknown(packed)
        self._rows[packed.data] = self._rows[packed.batch_sizes] = rows
        return rows


def _refuse_numbers_of_a_tensor(lengths: Sequence[Any]) -> None:
    if any(isinstance(length, torch.SymInt) for length in lengths):
        raise ExportError(
            "the lengths of pack_padded_sequence are numbers taken out of a tensor, as by `lengths.tolist()`, "
            "which fixes how many rows there are; give it the tensor itself."
        )


def refuse_packed(arguments: Mapping[str, Any]) -> None:
    """Raises: ExportError: one of the arguments of the model is, or contains, a PackedSequence."""
    for name, value in arguments.items():
        leaves = pytree.tree_leaves(value, is_leaf=_is_packed)
        if any(_is_packed(leaf) for leaf in leaves):
            raise ExportError(
                f"`{name}` contains a PackedSequence, which cannot be an input of a file: let the model take the "
                "padded sequence and its lengths and pack them itself; a recurrent layer by itself takes them as "
                "kwargs={'lengths': lengths}."
            )


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)
