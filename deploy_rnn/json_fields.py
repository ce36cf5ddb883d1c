"""`JsonField`: read a JSON file from anyone, and say of a wrong value what it is and where."""

import json
import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

Result = TypeVar("Result")

MOST = 2**31 - 1
"""The largest whole number that a file may have: sizes, counts and versions are far below."""

MOST_CHARS = 2000
"""The longest text: names, digests, and sizes such as "Max(1, T//2)"."""

SHOWN_CHARS = 60
"""How much of a wrong value a message shows."""


class FieldError(ValueError):
    """A value that is missing, or is not what it must be."""


@dataclass(frozen=True)
class JsonField:
    """A value in a JSON file.

    Attributes:
        value: as `json` reads it.
        place: where it is, such as "graphs[0].steps"; empty for the whole file.
    """

    value: Any
    place: str = ""

    @classmethod
    def parse(cls, data: bytes, place: str = "") -> "JsonField":
        """Read JSON.

        Raises:
            ValueError: not JSON in UTF-8, or an object that has a key twice.
        """
        try:
            text = data.decode("utf-8")
            value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        return cls(value, place)

    def fail(self, rule: str) -> NoReturn:
        """Raise a FieldError: the value must be what `rule` says."""
        name = f"`{self.place}`" if self.place else "it"
        raise FieldError(f"{name} must be {rule}, got {shown(self.value)}")

    def fields(
        self, required: Collection[str], optional: Collection[str] = ()
    ) -> dict[str, "JsonField"]:
        """The fields of an object with these keys and no others."""
        entries = self.entries()
        for key in required:
            if key not in entries:
                raise FieldError(f"`{self._place_of(key)}` is missing")
        for key, entry in entries.items():
            if key not in required and key not in optional:
                raise FieldError(f"`{entry.place}` is unknown")
        return entries

    def entries(self) -> dict[str, "JsonField"]:
        """The fields of an object, by key."""
        if not isinstance(self.value, dict):
            self.fail("an object")
        for key in self.value:
            JsonField(key, f"the key {shown(key)} of {self.place or 'the file'}").text()
        return {key: JsonField(value, self._place_of(key)) for key, value in self.value.items()}

    def items(self, least: int = 0) -> list["JsonField"]:
        """The values of a list, of which there must be at least `least`."""
        if not isinstance(self.value, list):
            self.fail("a list")
        if len(self.value) < least:
            self.fail(f"a list of at least {least}")
        place = self.place
        return [JsonField(value, f"{place}[{index}]") for index, value in enumerate(self.value)]

    def text(self) -> str:
        """Any text but an empty one, and but half a surrogate pair, which no protocol can carry."""
        if not isinstance(self.value, str) or not 0 < len(self.value) <= MOST_CHARS:
            self.fail(f"a text of 1 to {MOST_CHARS} characters")
        if not self.value.isascii() and not _is_unicode(self.value):
            self.fail("a text of whole characters")
        return self.value

    def choice(self, choices: Collection[str]) -> str:
        """One of some texts."""
        if not isinstance(self.value, str) or self.value not in choices:
            self.fail(f"one of {', '.join(sorted(choices))}")
        return self.value

    def whole_number(self, least: int, most: int = MOST) -> int:
        """A whole number, which `true` is not."""
        if not _is_whole(self.value) or not least <= self.value <= most:
            ends = (
                f"{least} or more"
                if most == MOST and self._is_below(most)
                else f"{least} to {most}"
            )
            self.fail(f"a whole number, {ends}")
        number: int = self.value
        return number

    def name_or_number(self, least: int) -> int | str:
        """A size: a whole number, or the name of an axis."""
        if isinstance(self.value, str):
            return self.text()
        if not _is_whole(self.value):
            self.fail("a whole number or the name of an axis")
        return self.whole_number(least)

    def number(self) -> float:
        """A finite number, 0 or more."""
        is_number = _is_whole(self.value) or isinstance(self.value, float)
        if not is_number or not 0 <= self.value < math.inf:
            self.fail("a number, 0 or more")
        number: float = self.value
        return number

    def or_none(self, read: Callable[["JsonField"], Result]) -> Result | None:
        """What `read` makes of the field; None for null."""
        return None if self.value is None else read(self)

    def _place_of(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def _is_below(self, most: int) -> bool:
        return not _is_whole(self.value) or self.value <= most


def shown(value: Any) -> str:
    """A value for a message: its beginning, in ASCII where a terminal or a protocol could not show it."""
    # The text of a value can be as large as its file.
    if isinstance(value, str):
        text = repr(value[:SHOWN_CHARS])
        return text if len(value) <= SHOWN_CHARS else f"{text}..."
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if _is_whole(value) and abs(value) > MOST:
        return f"a number of {value.bit_length()} bits"
    return json.dumps(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")
