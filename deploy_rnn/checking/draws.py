"""`Draws`: calls of a model at given sizes, from random ones to its example's own values.

A model does not take every value of a size: lengths stay within the steps, a share of the longest row comes to one
step at least, a mask is true before it is false. No signature says so. So there are several calls for the same sizes,
and who asks for them runs the model on one after the other until it takes one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.trials import draw, resized

PROPORTIONS = 3
"""How many axes are tried as the one that limits whole numbers."""


@dataclass(frozen=True)
class ExampleInput:
    """An input of a file, and its tensor in the example call.

    Attributes:
        name: in the file.
        axes: in the file: a number for each fixed axis, a name for each dynamic one.
        tensor: the example.
        length_limit: of lengths of rows, the time axis or the number of steps that limits them; None for other inputs.
    """

    name: str
    axes: tuple[int | str, ...]
    tensor: Tensor
    length_limit: int | str | None

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Number of each dynamic axis -> its name."""
        return {number: axis for number, axis in enumerate(self.axes) if isinstance(axis, str)}

    def shape(self, sizes: Mapping[str, int]) -> list[int]:
        """Return the shape of the example with these sizes of the dynamic axes."""
        shape = list(self.tensor.shape)
        for number, name in self.dynamic_axes.items():
            shape[number] = sizes.get(name, shape[number])
        return shape

    @property
    def has_whole_numbers(self) -> bool:
        return not self.has_fractions and self.tensor.dtype is not torch.bool

    @property
    def has_fractions(self) -> bool:
        """Whether its numbers are not whole: floats, and complex ones."""
        return self.tensor.is_floating_point() or self.tensor.is_complex()

    @property
    def has_one_for_each_row(self) -> bool:
        """Whether it is (), (B,) or (B, 1): a number for each row, such as a length or a share."""
        return self.tensor.dim() <= 1 or self.tensor.numel() == self.tensor.size(0)


def axis_sizes(inputs: Sequence[ExampleInput]) -> dict[str, int]:
    """Return the size of each dynamic axis in the example; the first, if one name has several."""
    sizes: dict[str, int] = {}
    for input in inputs:
        for number, name in input.dynamic_axes.items():
            sizes.setdefault(name, input.tensor.size(number))
    return sizes


def with_likely_lengths(inputs: Sequence[ExampleInput]) -> list[ExampleInput]:
    """Return the inputs, those that are lengths by their numbers with a limit.

    Whole numbers, one for each row, are lengths if the largest is the size of a dynamic axis of another input.
    """
    sizes = axis_sizes(inputs)
    changed = []
    for input in inputs:
        limit = next(iter(_likely_limits(input, sizes)), None)
        is_length = isinstance(limit, str) and int(input.tensor.max()) == sizes[limit]
        if is_length and input.has_one_for_each_row:
            input = replace(input, length_limit=limit)
        changed.append(input)
    return changed


@dataclass(frozen=True)
class _Bounds:
    """The whole numbers that an input may have at some sizes, both ends included."""

    least: int
    most: int

    def draw(self, input: ExampleInput, shape: list[int], random: torch.Generator) -> Tensor:
        drawn = torch.randint(self.least, self.most + 1, shape, generator=random)
        return drawn.to(input.tensor.dtype)


class Draws:
    """Makes calls from an example.

    Args:
        call: the example.
        inputs: what its tensors are, in order.
    """

    def __init__(self, call: ExampleCall, inputs: Sequence[ExampleInput]) -> None:
        self._call = call
        self._inputs = inputs
        self._example_sizes = axis_sizes(inputs)
        # The first axis for each input of whole numbers is the likeliest.
        self._limits = [_likely_limits(input, self._example_sizes) for input in inputs]
        likely = with_likely_lengths(inputs)
        self._are_lengths = [input.length_limit is not None for input in likely]

    def calls(
        self, sizes: Mapping[str, int], random: torch.Generator
    ) -> Iterator[tuple[str, ExampleCall]]:
        """Yield calls at these sizes, with what each is called, in this order and none twice:

        1. Random values. Lengths of rows are from 1 to the number of steps, in any order, and so are whole numbers, one
           for each row, of which the largest is the size of an axis in the example. Others are drawn from the example.
        2. The same with the longest row first: the model may want them sorted.
        3. The same with a row of every step.
        4. Whole numbers drawn from the example, whatever the sizes.
        5. Whole numbers up to as many, in proportion to one of the axes, as in the example.
        6. The example stretched, and its whole numbers in proportion.
        7. The example cut, or repeated from its beginning.
        8. Of one number for each row, the larger of the example; of other whole numbers and booleans, those above 0.
        9. Of one number for each row, and of booleans, only the largest, or only the smallest.
        """
        yielded: list[list[Tensor]] = []
        for label, tensors in self._tensors(sizes, random):
            if not any(_same(tensors, earlier) for earlier in yielded):
                yielded.append(tensors)
                yield label, self._call.with_tensors(tensors)

    def examples(self, sizes: Mapping[str, int]) -> Iterator[ExampleCall]:
        """Yield calls at these sizes that are the most like the example first."""
        yield self._call.with_tensors(self._resized(sizes))
        yield self._call.with_tensors(self._stretched(sizes))
        for _, call in self.calls(sizes, torch.Generator().manual_seed(0)):
            yield call

    def _tensors(
        self, sizes: Mapping[str, int], random: torch.Generator
    ) -> Iterator[tuple[str, list[Tensor]]]:
        """The numbers of the cases are those of `calls`."""
        # Case 1.
        drawn = self._each(lambda input, number: self._drawn(input, number, sizes, random))
        yield "random", drawn
        # What follows draws from another generator, so that later sizes get the same values in any case.
        random = torch.Generator().manual_seed(0)
        # Cases 2 and 3.
        yield "random, sorted", self._with_lengths(drawn, _descending)
        for order in (_same_order, _descending):
            full = self._each(lambda input, number: self._full(input, number, drawn[number], sizes))
            label = "random, a row of every step"
            yield label, self._with_lengths(full, order)
        # Case 4.
        of_example = list(drawn)
        for number, input in enumerate(self._inputs):
            if input.length_limit is None and self._are_lengths[number]:
                of_example[number] = draw(input.tensor, input.shape(sizes), random)
        yield "random, numbers of the example", of_example
        # Case 5.
        for place in range(PROPORTIONS):
            proportional = list(drawn)
            for number, input in enumerate(self._inputs):
                bounds = self._bounds(number, sizes, place)
                if bounds is not None:
                    proportional[number] = bounds.draw(input, input.shape(sizes), random)
            yield "random, numbers in proportion", proportional
        # Cases 6 and 7.
        yield "example stretched", self._stretched(sizes)
        yield "example resized", self._resized(sizes)
        # Cases 8 and 9.
        for label, choose in _CHOICES.items():
            chosen = list(drawn)
            for number, input in enumerate(self._inputs):
                values = choose(input, self._values(number, sizes))
                if values is not None:
                    places = torch.randint(values.numel(), input.shape(sizes), generator=random)
                    chosen[number] = values[places]
            yield label, chosen

    def _each(self, tensor: Callable[[ExampleInput, int], Tensor]) -> list[Tensor]:
        return [tensor(input, number) for number, input in enumerate(self._inputs)]

    def _drawn(
        self,
        input: ExampleInput,
        number: int,
        sizes: Mapping[str, int],
        random: torch.Generator,
    ) -> Tensor:
        shape = input.shape(sizes)
        bounds = self._bounds(number, sizes) if self._are_lengths[number] else None
        if bounds is None:
            return draw(input.tensor, shape, random)
        return bounds.draw(input, shape, random)

    def _with_lengths(
        self, tensors: Sequence[Tensor], change: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        changed = list(tensors)
        for number, tensor in enumerate(tensors):
            if self._are_lengths[number]:
                changed[number] = change(tensor)
        return changed

    def _full(
        self, input: ExampleInput, number: int, drawn: Tensor, sizes: Mapping[str, int]
    ) -> Tensor:
        """`drawn` with the first length as large as it may be."""
        bounds = self._bounds(number, sizes)
        if bounds is None or not self._are_lengths[number]:
            return drawn
        full = drawn.clone()
        full.view(-1)[0] = bounds.most
        return full

    def _stretched(self, sizes: Mapping[str, int]) -> list[Tensor]:
        """The example with every axis stretched or shrunk, whole numbers in proportion: rows stay in their order."""

        def stretch(input: ExampleInput, number: int) -> Tensor:
            tensor = stretched(input.tensor, input.shape(sizes))
            limit = self._limit(number)
            if limit is None or not input.has_one_for_each_row:
                return tensor
            new, old = self._size(limit, sizes), self._size(limit, self._example_sizes)
            # Rounded up: so many steps has a mask that is stretched likewise.
            counts = (tensor.long() * new + old - 1) // old
            return counts.to(tensor.dtype)

        return self._each(stretch)

    def _resized(self, sizes: Mapping[str, int]) -> list[Tensor]:
        """The example with these sizes, cut or repeated; lengths within the steps."""

        def resize(input: ExampleInput, number: int) -> Tensor:
            tensor = resized(input.tensor, input.shape(sizes))
            limit = self._limit(number) if self._are_lengths[number] else None
            return tensor if limit is None else tensor.clamp(max=self._size(limit, sizes))

        return self._each(resize)

    def _values(self, number: int, sizes: Mapping[str, int]) -> Tensor:
        """What an input may be drawn from: every whole number within its bounds, or the values of the example."""
        input = self._inputs[number]
        bounds = self._bounds(number, sizes)
        if bounds is not None and input.has_one_for_each_row:
            return torch.arange(bounds.least, bounds.most + 1).to(input.tensor.dtype)
        return input.tensor.detach().flatten()

    def _bounds(self, number: int, sizes: Mapping[str, int], place: int = 0) -> _Bounds | None:
        """The whole numbers of an input at these sizes; None if no axis limits them.

        `place`: which of the axes that may do so, the likeliest being 0.
        """
        input = self._inputs[number]
        limit = self._limit(number, place)
        if limit is None:
            return None
        least = 1
        if input.length_limit is not None:
            return _Bounds(least, self._size(limit, sizes))
        least = min(least, int(input.tensor.min()))
        old = self._size(limit, self._example_sizes)
        most = int(input.tensor.max()) * self._size(limit, sizes) // old
        return _Bounds(least, max(least, most))

    def _size(self, limit: int | str, sizes: Mapping[str, int]) -> int:
        if isinstance(limit, int):
            return limit
        return sizes.get(limit, self._example_sizes[limit])

    def _limit(self, number: int, place: int = 0) -> int | str | None:
        limits = self._limits[number]
        return limits[min(place, len(limits) - 1)] if limits else None


def _likely_limits(input: ExampleInput, example_sizes: Mapping[str, int]) -> list[int | str]:
    """What limits an input of whole numbers, the likeliest first: dynamic axes of other inputs."""
    if input.length_limit is not None:
        return [input.length_limit]
    if not input.has_whole_numbers or int(input.tensor.min()) < 0:
        return []
    largest = int(input.tensor.max())
    own_axes = set(input.dynamic_axes.values())
    names = [name for name in example_sizes if name not in own_axes]

    def distance(name: str) -> tuple[bool, int]:
        size = example_sizes[name]
        return size < largest, abs(size - largest)

    return [*sorted(names, key=distance)]


def stretched(example: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the example with every element of an axis repeated, or some left out, as evenly as may be."""
    for axis, size in enumerate(shape):
        old_size = example.size(axis)
        if size != old_size:
            example = example.index_select(axis, torch.arange(size) * old_size // size)
    return example


def _descending(lengths: Tensor) -> Tensor:
    return lengths.flatten().sort(descending=True)[0].view_as(lengths)


def _same_order(lengths: Tensor) -> Tensor:
    return lengths


def _larger(input: ExampleInput, values: Tensor) -> Tensor | None:
    """`values`: what it may be drawn from. None for an input that stays as it is drawn."""
    if input.has_one_for_each_row:
        return values[values >= values.median()] if values.dtype is not torch.bool else values
    if input.has_fractions:
        return None
    above_zero = values[values > 0]
    return above_zero if above_zero.numel() else None


def _largest(input: ExampleInput, values: Tensor) -> Tensor | None:
    if input.has_one_for_each_row or input.tensor.dtype is torch.bool:
        return values.max().view(1)
    return _larger(input, values)


def _smallest(input: ExampleInput, values: Tensor) -> Tensor | None:
    if input.has_one_for_each_row or input.tensor.dtype is torch.bool:
        return values.min().view(1)
    return None


_CHOICES: dict[str, Callable[[ExampleInput, Tensor], Tensor | None]] = {
    "random, larger numbers": _larger,
    "random, largest numbers": _largest,
    "random, smallest numbers": _smallest,
}


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, first, second))
