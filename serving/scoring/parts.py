"""`Parts`: the folder of a score that is under way, with a file of answers for each window that is done.

A part appears by a move, and its name says which rows it has. So what is done is what is there, however the process
ended, and a score that goes on begins with the first window that is missing. Its journal says what the parts are of.
"""

import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from deploy_rnn.errors import InputError
from deploy_rnn.files import replace_file

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

JOURNAL = "journal.json"
LOCK = "lock"

ERRORS = ".errors.jsonl"
"""The end of the name of a file with the rows of a window that have no answer, an object on a line for each."""


_OWN_NAME = re.compile(r"journal\.json|[0-9a-f]{8}-\d+-\d+(\.\w+)+|\.[0-9a-f]{32}\.\w+")
"""What is in the folder besides the lock: the journal, parts, and what is being written."""


class Part(NamedTuple):
    """The answers of a window.

    Attributes:
        first: number of its first row.
        rows: how many it has.
        path: the file.
    """

    first: int
    rows: int
    path: Path

    @property
    def errors(self) -> Path:
        """The file of its rows that have no answer; it is missing if all have one."""
        return self.path.with_name(self.path.name.removesuffix(self.path.suffix) + ERRORS)


@dataclass(frozen=True)
class PartFiles:
    """Where the answers of windows go; it is sent to the processes that answer them.

    Attributes:
        folder: of the parts.
        run: what the names of the parts begin with. Each score has its own, so that a process which outlives its
            parent for a moment cannot write into another score.
        suffix: what they end with.
    """

    folder: Path
    run: str
    suffix: str

    def path(self, first: int, rows: int) -> Path:
        """The file of a part."""
        return self.folder / f"{self.run}-{first}-{rows}{self.suffix}"

    def write(self, first: int, rows: int, answers: bytes, errors: bytes) -> Part:
        """Write a part; it is there at once and whole."""
        part = Part(first, rows, self.path(first, rows))
        # First the errors: the answers say that the part is done.
        if errors:
            _write(part.errors, errors)
        _write(part.path, answers)
        return part

    def done(self) -> dict[int, Part]:
        """The parts that are there, by their first row."""
        pattern = re.compile(rf"{self.run}-(\d+)-(\d+){re.escape(self.suffix)}")
        parts = {}
        for path in self.folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match:
                first = int(match[1])
                parts[first] = Part(first, int(match[2]), path)
        return parts


class Parts:
    """The folder of a score, held by one process at a time.

    Args:
        folder: made if it is missing.
        lock: its journal, opened and locked.
        files: where the answers go.
        journal: what is in the journal.
    """

    def __init__(
        self, folder: Path, lock: BinaryIO, files: PartFiles, journal: dict[str, Any]
    ) -> None:
        self.folder = folder
        self.files = files
        self.journal = journal
        self._lock = lock

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any], suffix: str, *, restart: bool) -> Self:
        """Begin a score, or go on with the one that was begun.

        Args:
            folder: of the score.
            identity: what the answers depend on; a score goes on only if all of it is the same.
            suffix: of the parts.
            restart: drop the parts of an earlier score, whatever they are of.

        Raises:
            InputError: the folder has parts of something else, or another process is at work in it.
        """
        folder.mkdir(exist_ok=True)
        lock = (folder / LOCK).open("ab")
        try:
            _lock(lock, folder)
            return cls._locked(folder, lock, identity, suffix, restart)
        except BaseException:
            lock.close()
            raise

    @classmethod
    def _locked(
        cls, folder: Path, lock: BinaryIO, identity: Mapping[str, Any], suffix: str, restart: bool
    ) -> Self:
        journal = None if restart else _read_journal(folder)
        if journal is None:
            _clear(folder)
            journal = {"run": secrets.token_hex(4), **identity}
            parts = cls(folder, lock, PartFiles(folder, journal["run"], suffix), journal)
            parts.note()
            return parts
        _compare(folder, journal, identity)
        for path in folder.glob(".*"):
            path.unlink(missing_ok=True)  # what was being written
        files = PartFiles(folder, journal["run"], suffix)
        return cls(folder, lock, files, journal)

    def note(self, **facts: Any) -> None:
        """Write something down that a score which goes on has to know."""
        self.journal |= facts
        text = json.dumps(self.journal, indent=2) + "\n"
        _write(self.folder / JOURNAL, text.encode())

    def join(self, target: Path, errors: Path | None, join_answers: Any) -> None:
        """Make the files of all parts, each whole by a move: first that of the rows without an answer."""
        if errors is not None:
            self.join_errors(errors)
        paths = [part.path for part in self._in_order()]
        replace_file(target, lambda path: join_answers(paths, path))

    def join_errors(self, target: Path) -> None:
        """Make the file of all rows without an answer."""
        files = []
        for path in self.folder.glob(f"{self.files.run}-*{ERRORS}"):
            first = int(path.name.split("-")[1])
            files.append((first, path))
        paths = [path for _, path in sorted(files)]
        replace_file(target, lambda whole: _join_errors(paths, whole))

    def _in_order(self) -> list[Part]:
        """All parts, in the order of their rows."""
        parts = sorted(self.files.done().values())
        row = 0
        for part in parts:
            if part.first != row:
                raise RuntimeError(f"rows {row} to {part.first - 1} are missing in {self.folder}.")
            row += part.rows
        return parts

    def close(self) -> None:
        """Let others have the folder; it stays."""
        self._lock.close()

    def remove(self) -> None:
        """Remove the folder, of a score that is done."""
        with suppress(OSError, InputError):
            _clear(self.folder)
            (self.folder / LOCK).unlink()
            self.folder.rmdir()
        self._lock.close()


def _clear(folder: Path) -> None:
    """Remove the files of a score. Raises: InputError: there are others, too."""
    paths = [path for path in folder.iterdir() if path.name != LOCK]
    for path in paths:
        if not _OWN_NAME.fullmatch(path.name):
            raise InputError(
                f"{str(folder)!r} has {path.name!r}, which is not of a score; give another output, or move it away."
            )
    for path in paths:
        path.unlink(missing_ok=True)


def _lock(lock: BinaryIO, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(
            f"another process is at work in {str(folder)!r}; wait for it, or give another output."
        ) from None


def _read_journal(folder: Path) -> dict[str, Any] | None:
    """What an earlier score wrote down; None if there is none."""
    try:
        journal = json.loads((folder / JOURNAL).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        journal = None
    if not isinstance(journal, dict) or not isinstance(journal.get("run"), str):
        raise InputError(
            f"{str(folder / JOURNAL)!r} is not a journal of a score; give another output, or restart (--restart)."
        )
    return journal


def _compare(folder: Path, journal: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    differences = []
    for name, value in identity.items():
        if journal.get(name) != value:
            differences.append(f"`{name}` was {_shown(journal.get(name))} and is {_shown(value)}")
    if differences:
        raise InputError(
            f"{str(folder)!r} has parts of another score: {'; '.join(differences)}. Give another output, or restart "
            "(--restart), which drops these parts."
        )


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _write(path: Path, data: bytes) -> None:
    """Write a file that is there at once and whole, even if the machine stops."""

    def write_to_disk(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    replace_file(path, write_to_disk)


def _join_errors(paths: Sequence[Path], target: Path) -> None:
    with target.open("wb") as whole:
        for path in paths:
            whole.write(path.read_bytes())
