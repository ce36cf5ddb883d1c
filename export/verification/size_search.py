"""`SizeSearch`: runs a model at the sizes that were asked for, and at others where it refuses them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from deploy_rnn.errors import ExportError
from deploy_rnn.model_errors import error_text, raising_line

Sizes = Mapping[str, int]
"""The size of each dynamic axis."""

T = TypeVar("T")


def sizes_text(sizes: Sizes) -> str:
    """Such as "B=1, T=3"."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


class RefusedError(ExportError):
    """The model does not take a call; the text has its line and its own error.

    Attributes:
        place: the line that raised, and the type of the error; equal for what is refused for the same reason.
    """

    def __init__(self, text: str, place: str) -> None:
        super().__init__(text)
        self.place = place

    @classmethod
    def of(cls, error: Exception) -> "RefusedError":
        """`error`: what the model's own code raised."""
        return cls(error_text(error), f"{raising_line(error)} {type(error).__name__}")


class SizeSearch(Generic[T]):
    """Finds sizes of the dynamic axes that a model takes.

    Args:
        example: the sizes in the example, which the model takes.
        run: what the model gives at some sizes. Raises: RefusedError: it does not take them.

    Attributes:
        refused: sizes that were asked for and that the model refuses, such as "T=3" -> why.
        unchanged: axes for which the model takes no other size than the example's that was tried -> why.
    """

    def __init__(self, example: Sizes, run: Callable[[Sizes], T]) -> None:
        self.refused: dict[str, str] = {}
        self.unchanged: dict[str, str] = {}
        self._example = example
        self._run = run
        # For the sizes of every axis: whether the model took them.
        self._tried: dict[tuple[int, ...], bool] = {}
        self._reasons: dict[tuple[int, ...], str] = {}
        # Axes for which no other size was found; they are not searched again.
        self._stuck: set[str] = set()

    def at(self, sizes: Sizes) -> Iterator[T]:
        """Run the model at these sizes.

        If it refuses them, each axis gets its size alone, others being as in the example; one that the model refuses
        alone gets another size in its place. What it then takes is also tried together.
        """
        sizes = {**self._example, **sizes}
        yield from self._new(sizes)
        if self._takes(sizes):
            return
        taken: dict[str, int] = {}
        refused: list[str] = []
        for name, size in sizes.items():
            alone = {**self._example, name: size}
            yield from self._new(alone)
            if self._takes(alone):
                taken[name] = size
                continue
            refused.append(name)
            yield from self._in_place_of(name, size, taken)
        for name in refused:
            self._note({name: sizes[name]}, {**self._example, name: sizes[name]})
        if not refused:
            self._note(sizes, sizes)
        yield from self._new({**self._example, **taken})

    def if_taken(self, sizes: Sizes) -> Iterator[T]:
        """Run the model at these sizes, if it takes them and has not run at them."""
        yield from self._new({**self._example, **sizes})

    def at_another_size(self, name: str) -> Iterator[T]:
        """Run the model at a second size of an axis, unless it has; it may take none, see `unchanged`.

        An axis that the model does not let change alone may have to grow with others: it is doubled and halved with one
        of them, then with all.
        """
        if self._has_varied(name):
            return
        size = self._example[name]
        yield from self._in_place_of(name, size, {})
        if self._has_varied(name):
            return
        for names in self._groups(name):
            for scaled in self._scaled(names):
                yield from self._new(scaled)
                if self._has_varied(name):
                    return
        reasons = [
            reason
            for sizes, reason in self._reasons.items()
            if dict(zip(self._example, sizes, strict=True))[name] != size
        ]
        reason = reasons[0] if reasons else "no other was tried"
        self.unchanged[name] = f"{name} other than {size}: {reason}"

    def _in_place_of(self, name: str, size: int, taken: dict[str, int]) -> Iterator[T]:
        """Run the model at another size of one axis, which is added to `taken`."""
        if name in self._stuck:
            return
        for other in self._others(name, size):
            replaced = {**self._example, name: other}
            yield from self._new(replaced)
            if self._takes(replaced):
                taken[name] = other
                return
        self._stuck.add(name)

    def _new(self, sizes: Sizes) -> Iterator[T]:
        """Run the model at these sizes, unless it has run at them; nothing if it refuses."""
        key = self._key(sizes)
        if key in self._tried:
            return
        try:
            result = self._run(sizes)
        except RefusedError as error:
            self._tried[key] = False
            self._reasons[key] = str(error)
            return
        self._tried[key] = True
        yield result

    def _takes(self, sizes: Sizes) -> bool:
        """Whether the model takes these sizes; the example's, or some that were tried."""
        return sizes == self._example or self._tried.get(self._key(sizes), False)

    def _key(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(sizes[name] for name in self._example)

    def _note(self, label: Sizes, sizes: Sizes) -> None:
        self.refused[sizes_text(label)] = self._reasons[self._key(sizes)]

    def _has_varied(self, name: str) -> bool:
        place = list(self._example).index(name)
        return any(
            taken and sizes[place] != self._example[name] for sizes, taken in self._tried.items()
        )

    def _others(self, name: str, size: int) -> list[int]:
        """Sizes to try in the place of one: its multiples, then neighbours, multiples and the half of the example's."""
        example = self._example[name]
        wanted = [example + 1, example - 1, 2 * example, 3 * example]
        if size != example:
            wanted = [2 * size, 4 * size, *wanted]
        if example % 2 == 0:
            wanted.append(example // 2)
        return [other for other in dict.fromkeys(wanted) if other not in (0, size, example)]

    def _groups(self, name: str) -> list[tuple[str, ...]]:
        """Axes that may have to grow together with this one: with another, then with all others."""
        others = [other for other in self._example if other != name]
        groups: list[tuple[str, ...]] = [(name, other) for other in others]
        if len(others) > 1:
            groups.append((name, *others))
        return groups

    def _scaled(self, names: Sequence[str]) -> Iterator[dict[str, int]]:
        sizes = [self._example[name] for name in names]
        scaled = [[2 * size for size in sizes]]
        if all(size % 2 == 0 for size in sizes):
            scaled.append([size // 2 for size in sizes])
        for new_sizes in scaled:
            yield {**self._example, **dict(zip(names, new_sizes, strict=True))}
