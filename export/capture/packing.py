"""Packed sequences while a model is being exported.

`pack_padded_sequence` looks at the values of the lengths, which torch.export cannot. Here both of its directions are
written with tensor operations that give the same values, and each packed tensor is remembered with the padded one that
it came from, so that a recurrent layer takes that and its lengths. What was only packed to be unpacked again, and the
sorting of rows for it, is then of no use to anything in the graph, and left out of the file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import _VF, Tensor
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from deploy_rnn.errors import ExportError


@dataclass(frozen=True)
class Rows:
    """What was packed, in the order of rows that the caller knows.

    Attributes:
        padded: (T, B, ...)
        lengths: (B,)
        order: the rows from the longest to the shortest, (B,); None if they are in that order.
        place: where each row is in that order, (B,); likewise.
        within: whether step t is within row b, (T, B), rows from the longest to the shortest.
        zeros: whether `padded` is 0 beyond the end of each row.
    """

    padded: Tensor
    lengths: Tensor
    order: Tensor | None
    place: Tensor | None
    within: Tensor
    zeros: bool

    @classmethod
    def of(cls, padded: Tensor, lengths: Tensor, *, is_sorted: bool) -> "Rows":
        if lengths.dim() != 1 or lengths.size(0) != padded.size(1):  # and makes one axis of both
            raise ExportError(f"`lengths` is {list(lengths.shape)}; a batch of {padded.size(1)} rows has one for each.")
        descending, order = (lengths, None) if is_sorted else torch.sort(lengths, descending=True)
        within = torch.arange(padded.size(0)).unsqueeze(1) < descending
        return cls(padded, lengths, order, rnn.invert_permutation(order), within, zeros=False)

    def having(self, padded: Tensor, *, zeros: bool) -> "Rows":
        """The same rows with other values."""
        return Rows(padded, self.lengths, self.order, self.place, self.within, zeros)

    def filled(self, value: float) -> Tensor:
        """`padded` with this beyond the end of each row."""
        if self.zeros and value == 0:
            return self.padded
        within = torch.arange(self.padded.size(0)).unsqueeze(1) < self.lengths
        within = within.view(*within.shape, *[1] * (self.padded.dim() - 2))
        return torch.where(within, self.padded, torch.full((), value, dtype=self.padded.dtype))

    def pack(self) -> Tensor:
        """The steps within rows, in the order of time: (N, ...)"""
        padded = self.padded if self.order is None else self.padded.index_select(1, self.order)
        kept = self.within.flatten().nonzero().squeeze(1)
        torch._check(kept.size(0) >= 1)  # no row is empty, which some of torch's functions ask
        return padded.flatten(0, 1).index_select(0, kept)

    def unpack(self, data: Tensor) -> Tensor:
        """Other data (N, ...) of the same rows -> (T, B, ...); of no account beyond the end of each row."""
        where = (self.within.flatten().cumsum(0) - 1).clamp(min=0)
        padded: Tensor = data.index_select(0, where).unflatten(0, self.within.shape)
        return padded if self.place is None else padded.index_select(1, self.place)

    def longest(self) -> Any:
        """The number of steps of the longest row."""
        longest: Any = self.lengths.max().item()
        torch._check(longest >= 1)
        torch._check(longest <= self.padded.size(0))
        return longest


class Packing:
    """The packed tensors of one export."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[Tensor, Rows]] = {}  # the tensor is kept, so that nothing else gets its id

    @contextmanager
    def installed(self) -> Iterator[None]:
        """For a while, torch's functions pack and pad by way of this, under whatever name a model knows them."""
        with (
            mock.patch.object(rnn, "_VF", self),
            _instead_of(rnn.pack_padded_sequence, _pack_padded_sequence),
            _instead_of(rnn.pad_packed_sequence, _pad_packed_sequence),
        ):
            yield

    def pack(self, input: Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool) -> PackedSequence:
        """`pack_padded_sequence`."""
        if isinstance(lengths, (list, tuple)) and any(isinstance(length, torch.SymInt) for length in lengths):
            raise ExportError(
                "the lengths of pack_padded_sequence are numbers taken out of a tensor, as by `lengths.tolist()`, "
                "which fixes how many rows there are; give it the tensor itself."
            )
        padded = input.transpose(0, 1) if batch_first else input
        rows = Rows.of(padded, torch.as_tensor(lengths, dtype=torch.int64), is_sorted=enforce_sorted)
        batch_sizes = rows.within.sum(1)[: rows.longest()]
        self._remember(batch_sizes, rows)
        return self._packed(rows, batch_sizes)

    def pad(
        self, sequence: PackedSequence, batch_first: bool, padding_value: float, total_length: int | None
    ) -> tuple[Tensor, Tensor]:
        """`pad_packed_sequence`."""
        rows = self._of(sequence)
        padded = rows.filled(padding_value)
        if total_length is None:
            padded = padded[: sequence.batch_sizes.size(0)]
        elif str(total_length) != str(padded.size(0)):  # never a question about an unknown size
            padded = _longer(padded, total_length, padding_value)
        return padded.transpose(0, 1) if batch_first else padded, rows.lengths

    def unpack(self, packed: PackedSequence) -> tuple[Tensor, Tensor]:
        """What a layer reads: the padded tensor (T, B, ...), undefined beyond each row's end, and the lengths (B,)."""
        rows = self._of(packed)
        return rows.padded, rows.lengths

    def repack(self, output: Tensor, packed: PackedSequence) -> PackedSequence:
        """What a layer gives: its output (T, B, ...), which is 0 beyond each row's end, with the rows of `packed`."""
        rows = self._packed_from(packed)
        return self._packed(rows.having(output, zeros=True), packed.batch_sizes)

    def _packed(self, rows: Rows, batch_sizes: Tensor) -> PackedSequence:
        data = rows.pack()
        self._remember(data, rows)
        return PackedSequence(data, batch_sizes, rows.order, rows.place)

    def _remember(self, tensor: Tensor, rows: Rows) -> None:
        self._rows[id(tensor)] = tensor, rows

    def _of(self, packed: PackedSequence) -> Rows:
        """What its data was packed from; or, where the model has made other data for the same rows, that."""
        rows = self._packed_from(packed)
        if id(packed.data) in self._rows:
            return rows
        return rows.having(rows.unpack(packed.data), zeros=False)

    def _packed_from(self, packed: PackedSequence) -> Rows:
        """The rows of its data or, where the model has made other data, of the steps that these share with them."""
        for tensor in (packed.data, packed.batch_sizes):
            if id(tensor) in self._rows:
                return self._rows[id(tensor)][1]
        raise ExportError("a PackedSequence that is not made by pack_padded_sequence cannot be exported.")


def _longer(padded: Tensor, total_length: Any, value: float) -> Tensor:
    """`padded` (T, B, ...) and then steps of `value`."""
    steps: Any = padded.size(0)
    known = isinstance(total_length, int)
    if not known or (isinstance(steps, int) and total_length < steps):
        raise ExportError(
            f"`total_length` ({f'={total_length}' if known else 'computed by the model'}) of pad_packed_sequence must "
            "be the size of the padded input's time axis, or a whole number that is not below it."
        )
    torch._check(steps <= total_length)
    return torch.cat([padded, padded.new_full((total_length - steps, *padded.shape[1:]), value)])


def refuse_packed(arguments: Mapping[str, Any]) -> None:
    """Raises: ExportError: one of the arguments of the model is, or holds, a PackedSequence."""
    for name, value in arguments.items():
        leaves = pytree.tree_leaves(value, is_leaf=lambda each: isinstance(each, PackedSequence))
        if any(isinstance(each, PackedSequence) for each in leaves):
            raise ExportError(
                f"`{name}` has a PackedSequence, which is no input of an ONNX file: let the model take the padded "
                "sequence and its lengths and pack them itself; a recurrent layer by itself takes them as "
                "kwargs={'lengths': lengths}."
            )


@contextmanager
def _instead_of(function: Any, other: Any) -> Iterator[None]:
    """For a while, `function` runs the code of `other`, with its own globals: models hold the function itself."""
    code = function.__code__
    function.__code__ = other.__code__
    try:
        yield
    finally:
        function.__code__ = code


# The code of torch's functions during an export, which runs with their globals: there, `_VF` is the Packing.


def _pack_padded_sequence(input: Any, lengths: Any, batch_first: Any = False, enforce_sorted: Any = True) -> Any:
    return _VF.pack(input, lengths, batch_first, enforce_sorted)  # type: ignore[attr-defined]


def _pad_packed_sequence(
    sequence: Any, batch_first: Any = False, padding_value: Any = 0.0, total_length: Any = None
) -> Any:
    return _VF.pad(sequence, batch_first, padding_value, total_length)  # type: ignore[attr-defined]
