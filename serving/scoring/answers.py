"""`OutputFormat`: the answers of a window as bytes, and those of all windows as one file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .rows import Outputs


@dataclass(frozen=True)
class Answer:
    """What is written for a row.

    Attributes:
        outputs: by name; None if the row has no answer.
        kept: what is copied from the row, by name.
    """

    outputs: Outputs | None
    kept: Mapping[str, Any] = field(default_factory=dict)


class OutputFormat(Protocol):
    """How answers are written. `encode` is for the processes that do the work, `join` for the one at the end.

    Attributes:
        name: such as "jsonl".
        suffix: of a file with the answers of a window.
    """

    name: str
    suffix: str

    def refusal(self, outputs: Outputs) -> str | None:
        """Why the format cannot have these outputs; None if it can."""
        ...

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """The answers of a window."""
        ...

    def join(self, parts: Sequence[Path], target: Path) -> None:
        """Write one file of those that `encode` made, in their order."""
        ...
