"""Files and folders that appear whole or not at all."""

import shutil
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


def folder_target(path: str | Path, marker: str) -> Path:
    """Where a folder may be made.

    Args:
        marker: a file that each such folder has; a folder without it, unless it is empty, is not ours to replace.

    Raises:
        FileNotFoundError: `path` is in no folder.
        FileExistsError: `path` is a file, or a folder of something else.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder around `path` (={str(path)!r}) does not exist; make it first.")
    if path.exists() and not (path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))):
        raise FileExistsError(f"{str(path)!r} is there and has no {marker}; give another folder, or remove it.")
    return path


def replace_folder(path: Path, write: Callable[[Path], Result]) -> Result:
    """Let `write` fill a new folder beside `path`, then move it to `path`, links followed.

    If `write` raises, `path` stays as it was, and nothing is left beside it.

    Returns:
        What `write` returned.
    """
    path = path.resolve()
    temporary, old = (path.with_name(f".{uuid4().hex}") for _ in range(2))
    temporary.mkdir()
    try:
        result = write(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
    return result
