"""`walk`: a loop of Python over steps whose number is open becomes a call of `deploy_rnn.scan`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deploy_rnn.errors import ExportError
from deploy_rnn.nn.loops import scan

Body = Callable[..., tuple[Any, ...]]


class LoopNames(NamedTuple):
    """What the body of a loop does with the names of its function.

    Attributes:
        all: those that it assigns, and the lists that it appends to, in the order in which the body takes them.
        appended: lists, if they are lists when the loop begins.
        carried: those that a step reads before it assigns them, from the step before.
        read_later: those that are also read outside of the loop.
    """

    all: tuple[str, ...]
    appended: tuple[str, ...]
    carried: tuple[str, ...]
    read_later: tuple[str, ...]


UNSET = object()
"""The value of a name that has none yet."""


class Steps(list[Any]):
    """A tensor (T, ...) where the model has a list of T tensors: what a step has appended, or `x.unbind(1)`.

    As a list it has the one tensor, by which the functions of torch know it for a list of tensors.
    """

    def __init__(self, stacked: Tensor) -> None:
        super().__init__([stacked])
        self.stacked = stacked

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, Tensor):
            return torch.index_select(self.stacked, 0, index.reshape(1)).squeeze(0)
        if not isinstance(index, slice):
            return self.stacked[index]
        if index == slice(None, None, -1):
            return Steps(self.stacked.flip(0))
        return Steps(self.stacked[index])

    # Who asks for the number gets that of the example, and the axis is fixed.

    def __len__(self) -> int:
        return int(self.stacked.size(0))

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self.stacked[number] for number in range(len(self))])

    def append(self, _: Any) -> None:
        raise ExportError("a list that a loop has filled is changed.")


class Walked:
    """What a loop walks over: tensors whose first axis is the steps, and how a step's item is made of their slices."""

    def __init__(self, inputs: Any, item: Callable[[Any], Any]) -> None:
        self.inputs = inputs
        self.item = item


def _same(value: Any) -> Any:
    return value


def _walked(iterable: Any) -> Walked | None:
    """None for what has a known number of steps."""
    if isinstance(iterable, Walked):
        return iterable
    if isinstance(iterable, Steps):
        return Walked(iterable.stacked, _same)
    is_open = isinstance(iterable, Tensor) and iterable.dim() and _is_symbol(iterable.size(0))
    return Walked(iterable, _same) if is_open else None


def _is_symbol(size: Any) -> bool:
    return isinstance(size, torch.SymInt)


def walked_range(*numbers: Any) -> Any:
    """`range`, also of unknown numbers; an item is then a tensor of no axes."""
    if not any(map(_is_symbol, numbers)):
        return range(*numbers)
    start, stop, step = (0, *numbers, 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    return Walked(torch.arange(start, stop, step), _same)


def walked_len(value: Any) -> Any:
    """`len`, also of a tensor or a list of unknown length."""
    if isinstance(value, Steps):
        return value.stacked.size(0)
    return value.size(0) if isinstance(value, Tensor) else len(value)


def walked_enumerate(iterable: Any, start: int = 0) -> Any:
    walked = _walked(iterable)
    if walked is None:
        return enumerate(iterable, start)
    steps = pytree.tree_leaves(walked.inputs)[0].size(0)
    return walked_zip(Walked(torch.arange(start, start + steps), _same), walked)


def walked_zip(*iterables: Any, strict: bool = False) -> Any:
    parts = [_walked(iterable) for iterable in iterables]
    if None in parts:
        return zip(*iterables, strict=strict)
    inputs = tuple(part.inputs for part in parts if part)

    def item(slices: Any) -> Any:
        return tuple(
            part.item(own) for part, own in zip(parts, slices, strict=True) if part is not None
        )

    return Walked(inputs, item)


def walked_reversed(iterable: Any) -> Any:
    walked = _walked(iterable)
    if walked is None:
        return reversed(iterable)
    return Walked(pytree.tree_map(lambda tensor: tensor.flip(0), walked.inputs), walked.item)


def walked_slice(start: Any, width: int) -> Any:
    """`start : start + width` of an index, also from the number of a step, a tensor of no axes."""
    if isinstance(start, Tensor):
        return start + torch.arange(width, device=start.device)
    return slice(start, start + width)


WALKED: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        walked_range,
        walked_len,
        walked_enumerate,
        walked_zip,
        walked_reversed,
        walked_slice,
    )
}
"""What is called in the head of a loop in place of the functions of Python, and in its body in place of a slice."""


def walk(
    iterable: Any, body: Body, scope: Mapping[str, Any], names: Sequence[Sequence[str]]
) -> tuple[Any, ...]:
    """Run the body of a loop for each item: by `scan` if nobody knows how many there are.

    Args:
        iterable: what the loop walks over.
        body: takes an item and the values of the names before it, and returns those after it.
        scope: the names of the function when the loop begins.
        names: of the body, as `LoopNames`.

    Returns:
        The values of the names after the loop.
    """
    loop_names = LoopNames(*map(tuple, names))
    values = {name: scope.get(name, UNSET) for name in loop_names.all}
    walked = _walked(iterable)
    if walked is None:
        results = tuple(values.values())
        for item in iterable:
            results = body(item, *results)
        return results
    try:
        after = _Loop(body, walked.item, values, loop_names).run(walked.inputs)
    except _NoStateYet:
        # As `state = None`, of which the first step makes a state.
        first = walked.item(pytree.tree_map(lambda tensor: tensor[0], walked.inputs))
        values = dict(zip(values, body(first, *values.values()), strict=True))
        others = pytree.tree_map(lambda tensor: tensor[1:], walked.inputs)
        after = _Loop(body, walked.item, values, loop_names).run(others)
    return tuple(after.values())


class _NoStateYet(Exception):
    """A step turns None into something else."""


class _Write(NamedTuple):
    """`target[:, number] = part` by a step, with `number` at `axis`."""

    target: Tensor
    axis: int
    number: Tensor
    part: Tensor


class _Loop:
    """One loop as a step of `scan`: tensors among the carried values are its states, and other values must stay."""

    def __init__(
        self,
        body: Body,
        item: Callable[[Any], Any],
        values: Mapping[str, Any],
        names: LoopNames,
    ) -> None:
        self._body = body
        self._item = item
        self._values = values
        self._appended = [name for name in names.appended if type(values[name]) is list]
        carried = {}
        for name in names.carried:
            if name not in self._appended and values[name] is not UNSET:
                value = values[name]
                carried[name] = list(value) if isinstance(value, Steps) else value
        self._read_later = [
            name for name in names.read_later if name not in (*self._appended, *carried)
        ]
        self._carried_names = tuple(carried)
        self._leaves, self._spec = pytree.tree_flatten(carried)
        self._later_spec: Any = None
        self._later_leaves: list[Any] = []
        self._written: list[_Write] = []

    def run(self, inputs: Any) -> dict[str, Any]:
        """The values of all names after the loop."""
        states = [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]
        if not states:
            states = [pytree.tree_leaves(inputs)[0].new_zeros(())]
        last_states, (appended, later, written) = scan(self._step, states, inputs)
        values = {**self._values, **self._carried(last_states)}
        for name, tensors in zip(self._appended, appended, strict=True):
            stacked = tensors
            if self._values[name]:
                stacked = torch.cat([torch.stack(self._values[name]), stacked])
            values[name] = Steps(stacked)
        for write, (numbers, parts) in zip(self._written, written, strict=True):
            place = (slice(None),) * write.axis
            write.target[(*place, numbers)] = parts.movedim(0, write.axis)
        last = [tensor[-1] for tensor in later]
        values.update(
            pytree.tree_unflatten(_with_tensors(self._later_leaves, last), self._later_spec)
        )
        return values

    def _step(self, states: Sequence[Tensor], slices: Any) -> tuple[list[Tensor], Any]:
        empty: dict[str, Any] = {name: [] for name in self._appended}
        before = {**self._values, **self._carried(states), **empty}
        self._written = []
        # torch.export has a mode of its own, which would come first.
        with Walking(self._written):
            results = self._body(self._item(slices), *before.values())
        after = dict(zip(before, results, strict=True))
        new_states = self._new_states(after) or [*states]
        appended = [_only(name, after[name]) for name in self._appended]
        later = {name: after[name] for name in self._read_later}
        self._later_leaves, self._later_spec = pytree.tree_flatten(later)
        tensors = [leaf for leaf in self._later_leaves if isinstance(leaf, Tensor)]
        written = [(write.number, write.part) for write in self._written]
        return new_states, (appended, tensors, written)

    def _carried(self, states: Sequence[Tensor]) -> dict[str, Any]:
        values: dict[str, Any] = pytree.tree_unflatten(
            _with_tensors(self._leaves, states), self._spec
        )
        return values

    def _new_states(self, after: Mapping[str, Any]) -> list[Tensor]:
        leaves = pytree.tree_leaves({name: after[name] for name in self._carried_names})
        if any(self._values[name] is None is not after[name] for name in self._carried_names):
            raise _NoStateYet
        if len(leaves) != len(self._leaves):
            raise ExportError("a step gives states of another structure than it gets.")
        states = []
        for old, new in zip(self._leaves, leaves, strict=True):
            if isinstance(old, Tensor):
                states.append(new)
            elif isinstance(new, Tensor) or old != new:
                raise ExportError(f"a step turns {old!r} into {new!r}, which no graph keeps.")
        return states


def _with_tensors(leaves: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """The leaves with these tensors in the place of those among them."""
    given = iter(tensors)
    return [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _only(name: str, appended: Sequence[Any]) -> Tensor:
    """What one step appends to a list."""
    if len(appended) != 1 or not isinstance(appended[0], Tensor):
        raise ExportError(f"a step must append one tensor to `{name}`.")
    return appended[0]


class Walking(TorchFunctionMode):
    """While a model with such loops is traced:

    1. An axis of unknown size that is taken apart is a `Steps`.
    2. The functions that put a list of tensors together take a `Steps`.
    3. `x[:, t]` by the number of a step, a tensor of no axes, is a selection; PyTorch would ask for the number.
    4. `x[:, t] = h` is done for all steps at once, after the loop.

    Args:
        written: gets each assignment of case 4; None outside of a loop, where there is none.
    """

    def __init__(self, written: list["_Write"] | None = None) -> None:
        super().__init__()
        self._written = written

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        replacement = _REPLACEMENTS.get(func)
        if replacement is not None:
            return replacement(func, *args, **kwargs)
        if func is Tensor.__setitem__ and self._written is not None:
            return self._set(*args)
        return func(*args, **kwargs)

    def _set(self, tensor: Tensor, index: Any, value: Any) -> None:
        place = _numbered_axis(tensor, index)
        if place is None:
            tensor[index] = value
            return
        # Case 4.
        assert self._written is not None
        axis, number, others = place
        if any(part != slice(None) for part in others):
            raise ExportError("a step writes into a part of its row.")
        row = tensor.select(axis, 0)
        part = torch.as_tensor(value, dtype=tensor.dtype).expand(row.shape)
        self._written.append(_Write(tensor, axis, number.to(torch.int64), part))


def _unbind(func: Callable[..., Any], input: Tensor, dim: int = 0) -> Any:
    # Case 1.
    if _is_symbol(input.size(dim)):
        return Steps(input.movedim(dim, 0))
    return func(input, dim)


def _split(func: Callable[..., Any], input: Tensor, size: Any, dim: int = 0) -> Any:
    if _is_symbol(input.size(dim)) and isinstance(size, int) and size == 1:
        # One more axis, of which a step has the one place.
        return Steps(input.unsqueeze(dim).movedim(dim + 1 if dim >= 0 else dim, 0))
    return func(input, size, dim)


def _stack(func: Callable[..., Any], tensors: Any, dim: int = 0, **kwargs: Any) -> Any:
    # Case 2.
    if isinstance(tensors, Steps):
        return tensors.stacked.movedim(0, dim)
    return func(tensors, dim, **kwargs)


def _cat(func: Callable[..., Any], tensors: Any, dim: int = 0, **kwargs: Any) -> Any:
    if not isinstance(tensors, Steps):
        return func(tensors, dim, **kwargs)
    axis = dim if dim >= 0 else dim + tensors.stacked.dim() - 1
    return tensors.stacked.movedim(0, axis).flatten(axis, axis + 1)


def _getitem(func: Callable[..., Any], tensor: Tensor, index: Any) -> Any:
    place = _numbered_axis(tensor, index)
    if place is None:
        return func(tensor, index)
    # Case 3.
    axis, number, others = place
    selected = torch.index_select(tensor, axis, number.reshape(1)).squeeze(axis)
    return func(selected, others) if others else selected


def _numbered_axis(tensor: Tensor, index: Any) -> tuple[int, Tensor, tuple[Any, ...]] | None:
    """The axis that an index has the number of a step for, the number, and the rest of the index; None if it has none.

    What comes before it must be slices, or the axis would be another one.
    """
    parts = index if isinstance(index, tuple) else (index,)
    numbers = [number for number, part in enumerate(parts) if _is_number(part)]
    if len(numbers) != 1:
        return None
    number = numbers[0]
    before, after = parts[:number], parts[number + 1 :]
    if all(isinstance(part, slice) for part in before):
        axis = number
    elif before == (Ellipsis,) and all(isinstance(part, slice) for part in after):
        axis = tensor.dim() - 1 - len(after)
    else:
        return None
    return axis, parts[number], (*before, *after)


def _is_number(part: Any) -> bool:
    is_whole = isinstance(part, Tensor) and part.dim() == 0 and not part.is_floating_point()
    return is_whole and part.dtype is not torch.bool


_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch.unbind: _unbind,
    Tensor.unbind: _unbind,
    torch.split: _split,
    Tensor.split: _split,
    torch.stack: _stack,
    torch.cat: _cat,
    torch.concat: _cat,
    torch.concatenate: _cat,
    Tensor.__getitem__: _getitem,
}
