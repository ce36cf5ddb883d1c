"""Files that appear whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

Result = TypeVar("Result")


def target(path: str | Path, example: str) -> Path:
    """Where a file may be made.

    Raises:
        FileNotFoundError, IsADirectoryError: `path` is in no folder, or is one; `example` is a name to give instead.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of `path` (={str(path)!r}) does not exist; make it first.")
    if path.is_dir():
        raise IsADirectoryError(f"`path` (={str(path)!r}) is a folder; give the name of a file, such as {example}.")
    return path


def replace_file(path: Path, write: Callable[[Path], Result]) -> Result:
    """Let `write` make a file under a temporary name in the same folder, then move it to `path`, links followed.

    If `write` raises, `path` stays as it was, and nothing is left beside it.

    Returns:
        What `write` returned.
    """
    path = path.resolve()
    temporary = path.with_name(f".{uuid4().hex}{path.suffix[:16]}")
    try:
        result = write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return result
