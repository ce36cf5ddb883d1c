"""Let a tracer take a `Packing` for the functions of torch.nn.utils.rnn.

1. torch.export runs Python: for that time, torch's own functions have other code.
2. torch.compile reads Python: it is told to read other functions in their place. They read torch's again unless the
   model that is traced is one of `packing_traced`, so that nothing changes for other models of the process.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any
from unittest import mock

import torch
import torch._dynamo
from torch import _VF, Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from deploy_rnn.nn.recurrence import Recurrence, RecurrenceWrapper
from deploy_rnn.nn.recurrent import Recurrent
from deploy_rnn.packing.packing import Packing
from deploy_rnn.packing.rows import inverted, pad_list


class PackedRecurrence(RecurrenceWrapper):
    """Reads and makes packed sequences by a `Packing`, and leaves all else to another `Recurrence`.

    Args:
        other: that one.
        packing: a function that gives the Packing; None if the model is not being traced.
    """

    def __init__(self, other: Recurrence, packing: Callable[[], Packing | None]) -> None:
        super().__init__(other)
        self.run = other.run  # type: ignore[method-assign]
        self._packing = packing

    def unpack(self, packed: PackedSequence) -> tuple[Tensor, Tensor]:
        packing = self._packing()
        if packing is None:
            return self.other.unpack(packed)
        return packing.unpack(packed)

    def repack(self, output: Tensor, lengths: Tensor, packed: PackedSequence) -> PackedSequence:
        packing = self._packing()
        if packing is None:
            return self.other.repack(output, lengths, packed)
        return packing.repack(output, packed)


def read_packed_by(model: nn.Module, packing: Callable[[], Packing | None]) -> None:
    """Let every layer of `model`, a converted copy, read packed sequences so; not one that has its own way."""
    for layer in model.modules():
        if isinstance(layer, Recurrent) and type(layer.recurrence).unpack is Recurrence.unpack:
            layer.recurrence = PackedRecurrence(layer.recurrence, packing)


# Case 1: torch.export.


@contextmanager
def packing_exported(model: nn.Module) -> Iterator[None]:
    """While torch.export traces `model`, a converted copy, packing is tensor operations."""
    packing = Packing()
    layers = [module for module in model.modules() if isinstance(module, Recurrent)]
    before = [layer.recurrence for layer in layers]
    read_packed_by(model, lambda: packing)
    try:
        with installed(packing):
            yield
    finally:
        for layer, recurrence in zip(layers, before, strict=True):
            layer.recurrence = recurrence


@contextmanager
def installed(packing: Packing) -> Iterator[None]:
    """Let torch's own functions pack and pad through this, whatever name a model has for them."""
    with (
        mock.patch.object(rnn, "_VF", packing),
        _with_code_of(rnn.pack_padded_sequence, _pack_padded_sequence),
        _with_code_of(rnn.pad_packed_sequence, _pad_packed_sequence),
    ):
        yield


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


# Case 2: torch.compile.

_traced: Packing | None = None
"""That of the model which torch.compile is reading; whenever Python runs, None."""


def packing_traced(model: nn.Module) -> Callable[..., Any]:
    """`model`, a converted copy, as a function for torch.compile, which then reads packing as tensor operations."""
    _substitute()
    read_packed_by(model, _traced_packing)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() or _traced is not None:
            return model(*args, **kwargs)
        _trace(Packing())
        result = model(*args, **kwargs)
        _trace(None)
        return result

    return run


def _traced_packing() -> Packing | None:
    return _traced


def _trace(packing: Packing | None) -> None:
    global _traced
    _traced = packing


@cache
def _substitute() -> None:
    """Tell torch.compile what to read for torch's functions."""
    rules = torch._dynamo.trace_rules.get_torch_obj_rule_map()
    for original, traceable in _TRACEABLE.items():
        rules.pop(original, None)  # the rule not to read it
        torch.compiler.substitute_in_graph(original)(traceable)


def _pack_in_graph(
    input: Any, lengths: Any, batch_first: Any = False, enforce_sorted: Any = True
) -> Any:
    if _traced is None:
        return _torch_pack_padded_sequence(input, lengths, batch_first, enforce_sorted)
    with torch._dynamo.patch_dynamo_config(capture_scalar_outputs=True):
        if isinstance(lengths, (list, tuple)):
            lengths = torch.stack([torch.scalar_tensor(n, dtype=torch.int64) for n in lengths])
        return _traced.pack(input, lengths, batch_first, enforce_sorted)


def _pad_in_graph(
    sequence: Any, batch_first: Any = False, padding_value: Any = 0.0, total_length: Any = None
) -> Any:
    if _traced is None:
        return _torch_pad_packed_sequence(sequence, batch_first, padding_value, total_length)
    with torch._dynamo.patch_dynamo_config(capture_scalar_outputs=True):
        return _traced.pad(sequence, batch_first, padding_value, total_length)


def _pack_list_in_graph(sequences: Any, enforce_sorted: Any = True) -> Any:
    if _traced is None:
        return _torch_pack_sequence(sequences, enforce_sorted)
    with torch._dynamo.patch_dynamo_config(capture_scalar_outputs=True):
        lengths = [torch.scalar_tensor(row.size(0), dtype=torch.int64) for row in sequences]
        return _traced.pack(pad_list(sequences, 0.0), torch.stack(lengths), False, enforce_sorted)


def _pad_list_in_graph(
    sequences: Any,
    batch_first: Any = False,
    padding_value: Any = 0.0,
    padding_side: Any = "right",
) -> Any:
    if _traced is None or padding_side != "right":
        return _torch_pad_sequence(sequences, batch_first, padding_value, padding_side)
    padded = pad_list(sequences, padding_value)
    return padded.transpose(0, 1) if batch_first else padded


def _invert_in_graph(permutation: Any) -> Any:
    return None if permutation is None else inverted(permutation)


def _of_torch(function: Any) -> Any:
    """The same function as another object, for which there is no substitute, and which torch.compile does not read."""
    copied = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    return torch.compiler.disable(copied, reason="the model is not one of deploy_rnn.compile")


_torch_pack_padded_sequence = _of_torch(rnn.pack_padded_sequence)
_torch_pad_packed_sequence = _of_torch(rnn.pad_packed_sequence)
_torch_pack_sequence = _of_torch(rnn.pack_sequence)
_torch_pad_sequence = _of_torch(rnn.pad_sequence)

_TRACEABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    rnn.pack_padded_sequence: _pack_in_graph,
    rnn.pad_packed_sequence: _pad_in_graph,
    rnn.pack_sequence: _pack_list_in_graph,
    rnn.pad_sequence: _pad_list_in_graph,
    rnn.invert_permutation: _invert_in_graph,
}
