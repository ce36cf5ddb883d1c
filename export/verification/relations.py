"""What the inputs of a file do not say of each other, found by running the PyTorch model.

1. Axes of two names may have to be one size: PyTorch's own exporter gives every axis a name by itself.
2. Whole numbers may be the lengths of rows, which only some values of each size are.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deploy_rnn.checking.draws import ExampleInput, axis_sizes
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.trials import Reference
from deploy_rnn.nn.recurrent import Recurrent, is_plain_layer
from deploy_rnn.tensor_spec import TensorSpec

from ..onnx_file import OnnxFile
from .cases import example_inputs

GROWTH = (1, 2, 4)
"""By how many elements an axis grows until the steps of a packed sequence do: a stride may swallow one."""


def related(
    file: OnnxFile, reference: Reference, call: ExampleCall, input_names: Collection[str]
) -> OnnxFile:
    """Return the file with one name for axes that must be one size, and with the lengths that the model packs by.

    `input_names`: of the inputs that the file really has; an axis that no such input has is fixed.

    Raises:
        ExportError: the call does not fit the file's inputs.
    """
    file = _with_tied_axes(file, reference, call)
    file = _with_fixed_axes(file, call, input_names)
    if file.form is not None:
        return file
    return replace(file, lengths=_row_lengths(file, reference, call))


def _with_tied_axes(file: OnnxFile, reference: Reference, call: ExampleCall) -> OnnxFile:
    """Give the axes that must be one size the first of their names.

    Every named axis grows by itself. If PyTorch refuses that, it grows together with all axes that are as large in the
    example; those that need not are left out again.
    """
    inputs = example_inputs(call, file)
    sizes = axis_sizes(inputs)
    # At size 1, an axis fits every other by broadcasting.
    grown_from_one = {name: 2 if size == 1 else size for name, size in sizes.items()}
    if _runs(reference, call, inputs, grown_from_one):
        sizes = grown_from_one
    new_names = {name: name for name in sizes}
    for name, size in sizes.items():
        others = [
            other
            for other, other_size in sizes.items()
            if other_size == size and other != name and new_names[other] == other
        ]
        if new_names[name] != name or not others:
            continue
        for tied in _tied_to(name, others, reference, call, inputs, sizes):
            new_names[tied] = name
    return replace(
        file,
        inputs=tuple(_renamed(spec, new_names) for spec in file.inputs),
        outputs=tuple(_renamed(spec, new_names) for spec in file.outputs),
    )


def _tied_to(
    name: str,
    others: Sequence[str],
    reference: Reference,
    call: ExampleCall,
    inputs: Sequence[ExampleInput],
    sizes: Mapping[str, int],
) -> list[str]:
    """Those of the other axes that have to grow with this one; none if it may grow by itself, or may not at all."""

    def runs(names: Sequence[str]) -> bool:
        grown = {grown_name: sizes[grown_name] + 1 for grown_name in (name, *names)}
        return _runs(reference, call, inputs, {**sizes, **grown})

    if runs([]) or not runs(others):
        return []
    tied = list(others)
    for other in others:
        fewer = [kept for kept in tied if kept != other]
        if runs(fewer):
            tied = fewer
    return tied


def _with_fixed_axes(file: OnnxFile, call: ExampleCall, input_names: Collection[str]) -> OnnxFile:
    """Fix, at the size of the example, what only a tensor has that the file does not take."""
    dynamic = {size for spec in file.inputs if spec.name in input_names for size in spec.shape}
    inputs = list(file.inputs)
    for number, tensor in enumerate(call.tensors):
        spec = inputs[number]
        if spec.name not in input_names:
            sizes = zip(spec.shape, tensor.shape, strict=True)
            shape = tuple(axis if axis in dynamic else size for axis, size in sizes)
            inputs[number] = replace(spec, shape=shape)
    return replace(file, inputs=tuple(inputs))


def _renamed(spec: TensorSpec, new_names: Mapping[str, str]) -> TensorSpec:
    shape = tuple(
        new_names.get(size, size) if isinstance(size, str) else size for size in spec.shape
    )
    return replace(spec, shape=shape)


def _resized_call(
    call: ExampleCall, inputs: Sequence[ExampleInput], sizes: Mapping[str, int]
) -> ExampleCall:
    """The example with these sizes; the last element of an axis fills it, so that sorted lengths stay sorted."""
    tensors = []
    for input in inputs:
        tensor = input.tensor
        for axis, size in enumerate(input.shape(sizes)):
            last = tensor.size(axis) - 1
            tensor = tensor.index_select(axis, torch.arange(size).clamp(max=last))
        tensors.append(tensor)
    return call.with_tensors(tensors)


def _runs(
    reference: Reference,
    call: ExampleCall,
    inputs: Sequence[ExampleInput],
    sizes: Mapping[str, int],
) -> bool:
    """Whether PyTorch takes the example with these sizes."""
    try:
        reference.outputs(_resized_call(call, inputs, sizes))
    except Exception:  # the model's own code may raise anything
        return False
    return True


Packed = list[tuple[int, list[int]]]
"""For each packed sequence, in the order of the calls: its number of steps, and the lengths of its rows."""


class _PackingWatch(TorchDispatchMode):
    """Notes every `pack_padded_sequence` that runs."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._packed = packed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._pack_padded_sequence.default:
            input, lengths, batch_first = args
            self._packed.append((input.size(1 if batch_first else 0), lengths.tolist()))
        return func(*args, **(kwargs or {}))


@contextmanager
def _watched(model: nn.Module) -> Iterator[Packed]:
    """A list that gets the packed sequences, and the lengths that the layers of deploy-rnn are given."""
    packed: Packed = []

    def note(layer: Recurrent, args: Any, kwargs: Any) -> None:
        lengths = args[2] if len(args) > 2 else kwargs.get("lengths")
        input = args[0] if args else kwargs["input"]
        if isinstance(lengths, Tensor) and isinstance(input, Tensor):
            packed.append((input.size(1 if layer.batch_first else 0), lengths.tolist()))

    layers = [
        module
        for module in model.modules()
        if isinstance(module, Recurrent) and is_plain_layer(module)
    ]
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with _PackingWatch(packed):
            yield packed
    finally:
        for hook in hooks:
            hook.remove()


def _row_lengths(file: OnnxFile, reference: Reference, call: ExampleCall) -> dict[str, int | str]:
    """The inputs that are lengths of rows -> the axis, or the number of steps, that limits them.

    Whole numbers are lengths if a sequence is packed by other lengths once they have other values.
    """
    inputs = example_inputs(call, file)
    limits: dict[str, int | str] = {}
    with suppress(Exception), _watched(reference.model) as packed:
        # Anything that the model's own code raises on the example is for the cases to report.
        before = _pack(reference, call, packed)
        for number, input in enumerate(inputs):
            index = _first_changed(reference, call, packed, number, before)
            if index is None:
                continue
            steps = before[index][0]
            limits[input.name] = steps
            for name in axis_sizes(inputs):
                if _grows(reference, call, packed, inputs, name, index):
                    limits[input.name] = name
    return limits


def _pack(reference: Reference, call: ExampleCall, packed: Packed) -> Packed:
    packed.clear()
    reference.outputs(call)
    return list(packed)


def _first_changed(
    reference: Reference, call: ExampleCall, packed: Packed, number: int, before: Packed
) -> int | None:
    """The first packed sequence whose lengths change with this input; None if the input is not lengths."""
    tensors = call.tensors
    example = tensors[number]
    is_whole = not example.is_floating_point() and example.dtype is not torch.bool
    rows = {len(lengths) for _, lengths in before}
    if not is_whole or example.numel() not in rows:
        return None
    other = 1 if int(example.max()) > 1 else 2
    tensors[number] = torch.full_like(example, other)
    with suppress(Exception):
        after = _pack(reference, call.with_tensors(tensors), packed)
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            if sorted(old[1]) != sorted(new[1]):
                return index
    return None


def _grows(
    reference: Reference,
    call: ExampleCall,
    packed: Packed,
    inputs: Sequence[ExampleInput],
    name: str,
    index: int,
) -> bool:
    """Whether a packed sequence has more steps when this axis is larger."""
    sizes = axis_sizes(inputs)
    steps = _pack(reference, _resized_call(call, inputs, sizes), packed)[index][0]
    for added in GROWTH:
        with suppress(Exception):
            grown = _resized_call(call, inputs, {**sizes, name: sizes[name] + added})
            if _pack(reference, grown, packed)[index][0] > steps:
                return True
    return False
