"""Files and folders that appear whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

Result = TypeVar("Result")


def target(path: str | Path, example: str) -> Path:
    """Check that a file can be written at `path`.

    Args:
        example: the name of a file, for the error about a folder.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"the folder of `path` (={str(path)!r}) does not exist; make it first."
        )
    if path.is_dir():
        raise IsADirectoryError(
            f"`path` (={str(path)!r}) is a folder; give the name of a file, such as {example}."
        )
    return path


def replace_file(path: Path, write: Callable[[Path], Result]) -> Result:
    """Let `write` make a file under a temporary name in the same folder, then move it to `path`, links followed.

    If `write` raises, `path` stays as it was, and the temporary file is removed.

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
    """Check that a folder can be written at `path`.

    Args:
        marker: a file that every such folder has; an existing folder without it is replaced only if it is empty.

    Raises:
        FileNotFoundError: the folder around `path` does not exist.
        FileExistsError: `path` is a file, or a folder of something else.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"the folder around `path` (={str(path)!r}) does not exist; make it first."
        )
    if path.exists() and not _is_replaceable(path, marker):
        raise FileExistsError(
            f"{str(path)!r} exists and has no {marker}; give another folder, or remove it."
        )
    return path


def _is_replaceable(path: Path, marker: str) -> bool:
    if not path.is_dir():
        return False
    return (path / marker).is_file() or not any(path.iterdir())


def replace_folder(path: Path, write: Callable[[Path], Result]) -> Result:
    """Let `write` fill a new folder next to `path`, then move it to `path`, links followed.

    If `write` raises, `path` stays as it was, and the new folder is removed.

    Returns:
        What `write` returned.
    """
    path = path.resolve()
    temporary = path.with_name(f".{uuid4().hex}")
    old = path.with_name(f".{uuid4().hex}")
    temporary.mkdir()
    try:
        result = write(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        # The old folder was moved aside, but the new one could not take its place.
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return result
