"""Files and folders that appear whole or not at all."""

import errno
import os
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
        TypeError: not a path.
        FileNotFoundError: the folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.
        FileExistsError: `path` is a device or another special file, which a file must not replace.
        PermissionError: nothing can be written in the folder.
    """
    path = _as_path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {str(path)!r} does not exist; make it first.")
    if path.is_dir():
        raise IsADirectoryError(
            f"{str(path)!r} is a folder; give the name of a file, such as {example}."
        )
    if path.exists() and not path.is_file():
        raise FileExistsError(
            f"{str(path)!r} is not an ordinary file, and must not be replaced; give another path."
        )
    _check_writable(path.resolve().parent)
    return path


def _as_path(path: str | Path) -> Path:
    if not isinstance(path, (str, Path)):
        raise TypeError(f"a path must be a string or a Path, got {type(path).__name__}.")
    return Path(path)


def _check_writable(folder: Path) -> None:
    """A new file is made there and then moved, so that the folder itself must be writable."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"nothing can be written in {str(folder)!r}; give another folder.")


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
    except OSError as error:
        raise _about(error, temporary, path) from error
    finally:
        temporary.unlink(missing_ok=True)
    return result


def _about(error: OSError, temporary: Path, path: Path) -> OSError:
    """The error about `path` if it is one about the file or folder of a temporary name; else the error itself."""
    name = error.filename
    if name is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return type(error)(error.errno, error.strerror, str(path))
    if name is not None and os.fspath(name).startswith(str(temporary)):
        return type(error)(error.errno, error.strerror, str(path))
    return error


def folder_target(path: str | Path, marker: str) -> Path:
    """Check that a folder can be written at `path`.

    Args:
        marker: a file that every such folder has; an existing folder without it is replaced only if it is empty.

    Raises:
        TypeError: not a path.
        FileNotFoundError: the folder around `path` does not exist.
        FileExistsError: `path` is a file, or a folder of something else.
        PermissionError: nothing can be written in the folder around it.
    """
    path = _as_path(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder around {str(path)!r} does not exist; make it first.")
    if path.is_file():
        raise FileExistsError(f"{str(path)!r} is a file; give a folder, which need not exist yet.")
    if path.exists() and not _is_replaceable(path, marker):
        raise FileExistsError(
            f"{str(path)!r} exists and has no {marker}; give another folder, or remove it."
        )
    _check_writable(path.resolve().parent)
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
    except OSError as error:
        raise _about(error, temporary, path) from error
    finally:
        # The old folder was moved aside, but the new one could not take its place.
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return result
