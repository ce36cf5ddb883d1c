"""Packed sequences while a model is being exported.

`pack_padded_sequence` looks at the values of the lengths, which torch.export cannot. Here packing and padding are
written with tensor operations that give the same values, and each packed tensor is remembered with the padded one that
it came from, so that a recurrent layer reads that and its lengths. Where a model packs only to unpack again, nothing in
the graph then needs the packed tensor or the sorting of its rows, and the file does not have them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
        # The comparison makes torch.export take the two axes for one.
        if lengths.dim() != 1 or lengths.size(0) != padded.size(1):
            raise ExportError(
                f"`lengths` is {list(lengths.shape)}; a batch of {padded.size(1)} rows has one for each."
            )
        descending = lengths
        order = None
        if not is_sorted:
            descending, order = torch.sort(lengths, descending=True)
        within = _is_within(padded, descending)
        return cls(padded, lengths, order, rnn.invert_permutation(order), within, zeros=False)

    def with_values(self, padded: Tensor, *, zeros: bool) -> "Rows":
        """The same rows with other values."""
        return replace(self, padded=padded, zeros=zeros)

    def fill(self, value: float) -> Tensor:
        """`padded` with `value` beyond the end of each row."""
        if self.zeros and value == 0:
            return self.padded
        within = _is_within(self.padded, self.lengths)
        within = within.view(*within.shape, *[1] * (self.padded.dim() - 2))  # (T, B, 1 ...)
        return torch.where(within, self.padded, torch.full((), value, dtype=self.padded.dtype))

    def pack(self) -> Tensor:
        """The steps within rows, in the order of time: (N, ...)"""
        padded = self.padded if self.order is None else self.padded.index_select(1, self.order)
        positions = self.within.flatten().nonzero().squeeze(1)  # (N,)
        # Some functions of torch want to know that there is a row; none is empty.
        torch._check(positions.size(0) >= 1)
        return padded.flatten(0, 1).index_select(0, positions)

    def unpack(self, data: Tensor) -> Tensor:
        """Other data (N, ...) of the same rows -> (T, B, ...), undefined beyond each row's end"""
        positions = (self.within.flatten().cumsum(0) - 1).clamp(min=0)  # (T*B,)
        padded: Tensor = data.index_select(0, positions).unflatten(0, self.within.shape)
        return padded if self.inverse_order is None else padded.index_select(1, self.inverse_order)

    def longest(self) -> Any:
        """The number of steps of the longest row."""
        longest: Any = self.lengths.max().item()
        torch._check(longest >= 1)
        torch._check(longest <= self.padded.size(0))
        return longest


def _is_within(padded: Tensor, lengths: Tensor) -> Tensor:
    """Whether step t is within row b, (T, B)."""
    return torch.arange(padded.size(0)).unsqueeze(1) < lengths


class Packing:
    """The packed tensors of one export.

    Args:
        same_size: whether two sizes, which may be unknown, are those of one dynamic axis.

    Attributes:
        fixed_lengths: lengths that the model gave as numbers, which the file has as constants.
    """

    def __init__(self, same_size: Callable[[Any, Any], bool]) -> None:
        self.fixed_lengths: list[list[int]] = []
        # By the id of a tensor, which is kept, so that no other tensor gets its id.
        self._rows: dict[int, tuple[Tensor, Rows]] = {}
        self._same_size = same_size

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let torch's own functions pack and pad through this, whatever name a model has for them."""
        with (
            mock.patch.object(rnn, "_VF", self),
            _with_code_of(rnn.pack_padded_sequence, _pack_padded_sequence),
            _with_code_of(rnn.pad_packed_sequence, _pad_packed_sequence),
        ):
            yield

    def pack(
        self, input: Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool
    ) -> PackedSequence:
        """Do what `pack_padded_sequence` does."""
        is_list = isinstance(lengths, (list, tuple))
        if is_list and any(isinstance(length, torch.SymInt) for length in lengths):
            raise ExportError(
                "the lengths of pack_padded_sequence are numbers taken out of a tensor, as by `lengths.tolist()`, "
                "which fixes how many rows there are; give it the tensor itself."
            )
        if is_list and all(isinstance(length, int) for length in lengths):
            self.fixed_lengths.append(list(lengths))
        padded = input.transpose(0, 1) if batch_first else input
        rows = Rows.of(
            padded, torch.as_tensor(lengths, dtype=torch.int64), is_sorted=enforce_sorted
        )
        batch_sizes = rows.within.sum(1)[: rows.longest()]
        self._remember(batch_sizes, rows)
        return self._packed(rows, batch_sizes)

    def pad(
        self,
        sequence: PackedSequence,
        batch_first: bool,
        padding_value: float,
        total_length: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Do what `pad_packed_sequence` does."""
        rows = self._rows_of(sequence)
        padded = rows.fill(padding_value)
        if total_length is None:
            padded = padded[: sequence.batch_sizes.size(0)]
        elif not self._same_size(total_length, padded.size(0)):
            padded = _lengthen(padded, total_length, padding_value)
        return padded.transpose(0, 1) if batch_first else padded, rows.lengths

    def unpack(self, packed: PackedSequence) -> tuple[Tensor, Tensor]:
        """What a layer reads: the padded tensor (T, B, ...), undefined beyond each row's end, and the lengths (B,)."""
        rows = self._rows_of(packed)
        return rows.padded, rows.lengths

    def repack(self, output: Tensor, packed: PackedSequence) -> PackedSequence:
        """Pack the output of a layer (T, B, ...), which is 0 beyond each row's end, with the rows of `packed`."""
        rows = self._packed_from(packed)
        return self._packed(rows.with_values(output, zeros=True), packed.batch_sizes)

    def _packed(self, rows: Rows, batch_sizes: Tensor) -> PackedSequence:
        data = rows.pack()
        self._remember(data, rows)
        return PackedSequence(data, batch_sizes, rows.order, rows.inverse_order)

    def _remember(self, tensor: Tensor, rows: Rows) -> None:
        self._rows[id(tensor)] = tensor, rows

    def _rows_of(self, packed: PackedSequence) -> Rows:
        """The rows with the values of `packed`, which may be others than those that were packed."""
        rows = self._packed_from(packed)
        if id(packed.data) in self._rows:
            return rows
        return rows.with_values(rows.unpack(packed.data), zeros=False)

    def _packed_from(self, packed: PackedSequence) -> Rows:
        """The rows that its data came from; if a layer or the model computed new data, those of its batch sizes."""
        for tensor in (packed.data, packed.batch_sizes):
            if id(tensor) in self._rows:
                return self._rows[id(tensor)][1]
        raise ExportError(
            "a PackedSequence that pack_padded_sequence did not make cannot be exported."
        )


def _lengthen(padded: Tensor, total_length: Any, value: float) -> Tensor:
    """`padded` (T, B, ...), followed by steps of `value` up to `total_length`."""
    steps: Any = padded.size(0)
    is_number = isinstance(total_length, int)
    if not is_number or (isinstance(steps, int) and total_length < steps):
        shown_length = f"={total_length}" if is_number else "computed by the model"
        raise ExportError(
            f"`total_length` ({shown_length}) of pad_packed_sequence must be the size of the padded input's time axis, "
            "or of another axis of that name in `dynamic_shapes`, or a whole number that is not below it."
        )
    torch._check(steps <= total_length)
    missing_steps = padded.new_full((total_length - steps, *padded.shape[1:]), value)
    return torch.cat([padded, missing_steps])


def refuse_packed(arguments: Mapping[str, Any]) -> None:
    """Raises: ExportError: one of the arguments of the model is, or contains, a PackedSequence."""
    for name, value in arguments.items():
        leaves = pytree.tree_leaves(value, is_leaf=_is_packed)
        if any(_is_packed(leaf) for leaf in leaves):
            raise ExportError(
                f"`{name}` contains a PackedSequence, which cannot be an input of an ONNX file: let the model take the "
                "padded sequence and its lengths and pack them itself; a recurrent layer by itself takes them as "
                "kwargs={'lengths': lengths}."
            )


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)


@contextmanager
def _with_code_of(function: Any, replacement: Any) -> Iterator[None]:
    """Let `function` run the code of `replacement`, with its own globals: models hold the function itself."""
    code = function.__code__
    function.__code__ = replacement.__code__
    try:
        yield
    finally:
        function.__code__ = code


# The code of torch's functions during an export, which runs with their globals: there, `_VF` is the Packing.


def _pack_padded_sequence(
    input: Any, lengths: Any, batch_first: Any = False, enforce_sorted: Any = True
) -> Any:
    return _VF.pack(input, lengths, batch_first, enforce_sorted)  # type: ignore[attr-defined]


def _pad_packed_sequence(
    sequence: Any, batch_first: Any = False, padding_value: Any = 0.0, total_length: Any = None
) -> Any:
    return _VF.pad(sequence, batch_first, padding_value, total_length)  # type: ignore[attr-defined]
