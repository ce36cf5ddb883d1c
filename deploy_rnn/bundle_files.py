"""The files of a bundle: read once, as they were at one moment; what is wrong with them is a `BundleError`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from deploy_rnn.errors import BundleError
from deploy_rnn.plain_files import PlainFile, folder_state, hash_plain, read_plain

Result = TypeVar("Result")

MANIFEST = "manifest.json"

MOST_MANIFEST_BYTES = 1 << 20
"""A manifest has some 400 bytes for each graph."""

MOST_GRAPH_BYTES = 2**31 - 1
"""What protobuf, the format of an .onnx file, holds at most."""

PAUSE_SECONDS = 0.1
"""Files that are being written or moved look different after this time."""

SETTLE_SECONDS = 5.0
"""How long a bundle is waited for while it is being written."""


def read_manifest_bytes(folder: Path) -> bytes:
    """Read the manifest of a bundle. Raises: BundleError: it is missing, too large, or cannot be read."""
    try:
        file = read_plain(folder, MANIFEST, most=MOST_MANIFEST_BYTES, beside=MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{str(folder)!r} is not a bundle: {MANIFEST} is missing.") from None
    except OSError as error:
        raise _unreadable(folder / MANIFEST, error) from None
    return bytes(file.data)


def read_file(
    folder: Path, name: str, most: int | None = None, keep: int | None = None
) -> PlainFile:
    """Read a file of a bundle, as `read_plain` does.

    Raises:
        BundleError: it is missing, too large, or cannot be read.
    """
    with _errors_of(folder, name):
        return read_plain(folder, name, most=most, keep=keep, beside=MANIFEST)


def hash_file(folder: Path, name: str) -> str:
    """Return the sha256 of a file of a bundle. Raises: BundleError: it is missing, or cannot be read."""
    with _errors_of(folder, name):
        return hash_plain(folder, name, beside=MANIFEST)


def read_settled(folder: str | Path, read: Callable[[Path], Result]) -> Result:
    """Read a bundle; if that fails while somebody writes or replaces it, read it again.

    A manifest names the digest of every file, so that what is read is one bundle, the old or the new one, or an error.

    Args:
        folder: the bundle.
        read: folder -> the result. A link is followed once for all files, so that it may move meanwhile.

    Raises:
        BundleError: what `read` raised last.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        target = _follow(Path(folder))
        before = folder_state(target)
        try:
            return read(target)
        except BundleError as error:
            time.sleep(PAUSE_SECONDS)
            if _follow(Path(folder)) == target and folder_state(target) == before:
                raise
            if time.monotonic() > deadline:
                raise BundleError(
                    f"{error} The folder was being written all the time; load it once that is done."
                ) from None


def _follow(folder: Path) -> Path:
    """Where a folder really is; as it was given, if that is the same."""
    try:
        target = folder.resolve()
    except (OSError, RuntimeError):
        return folder
    return folder if target == folder.absolute() else target


@contextmanager
def _errors_of(folder: Path, name: str) -> Iterator[None]:
    """Raise what goes wrong with a file as a BundleError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{str(folder)!r} lacks {name!r}, which its manifest names.") from None
    except OSError as error:
        raise _unreadable(folder / name, error) from None


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{str(path)!r} cannot be read: {error.strerror or error}.")
