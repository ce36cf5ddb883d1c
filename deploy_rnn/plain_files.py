"""Read the files of a folder that may come from anyone: plain names, ordinary files, each read once."""

import errno
import hashlib
import io
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 22

FolderState = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True, eq=False)
class PlainFile:
    """A file that has been read.

    Attributes:
        data: its bytes; they begin at a page, as those of a file that is mapped into memory.
        sha256: their digest in hexadecimal.
    """

    data: memoryview
    sha256: str


def is_plain(name: str) -> bool:
    """Return whether a name is that of a file in a folder, and not a path, whatever the system."""
    has_separator = any(char in name for char in "/\\:\0")
    return bool(name) and name not in (".", "..") and not has_separator


def open_plain(folder: Path, name: str, beside: str | None = None) -> io.BufferedReader:
    """Open an ordinary file of a folder for reading.

    It may be a link to another file of the folder, or to one where the file `beside` really is: a cache of downloads
    has links to all files of a model, which lie together elsewhere.

    Raises:
        OSError: it is missing, a folder, a device or a pipe, a link that leads elsewhere, or cannot be read.
        ValueError: not a plain name.
    """
    if not is_plain(name):
        raise ValueError(f"{name!r} is not the name of a file in a folder")
    path = _real_path(folder / name)
    homes = [_real_path(folder)]
    if beside is not None:
        homes.append(_real_path(folder / beside).parent)
    if not any(path.is_relative_to(home) for home in homes):
        raise OSError(errno.EXDEV, "it is a link that leads out of the folder")
    # A device is not even opened: that alone can do something.
    _check_ordinary(path.stat())
    flags = os.O_RDONLY
    for extra in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, extra, 0)
    descriptor = os.open(path, flags)
    try:
        _check_ordinary(os.fstat(descriptor))
        return io.BufferedReader(io.FileIO(descriptor))
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(
    folder: Path,
    name: str,
    *,
    most: int | None = None,
    keep: int | None = None,
    beside: str | None = None,
) -> PlainFile:
    """Read an ordinary file of a folder, once.

    Args:
        folder, name, beside: as for `open_plain`.
        most: how many bytes it may have.
        keep: how many bytes to keep, from its beginning; the digest is always that of all. None for all.

    Raises:
        OSError, ValueError: as for `open_plain`; or it is too large, or is being written.
    """
    with open_plain(folder, name, beside) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and may have {most:,}")
        data = _memory(size if keep is None else min(size, keep))
        digest = hashlib.sha256()
        position = 0
        while position < len(data):
            chunk = data[position : position + CHUNK_BYTES]
            count = file.readinto(chunk)
            if not count:
                raise OSError(errno.EIO, "its size changed while it was read")
            digest.update(chunk[:count])
            position += count
        while rest := file.read(CHUNK_BYTES):
            digest.update(rest)
            position += len(rest)
        if position != size:
            raise OSError(errno.EIO, "its size changed while it was read")
    return PlainFile(data, digest.hexdigest())


def hash_plain(folder: Path, name: str, beside: str | None = None) -> str:
    """Return the sha256 of an ordinary file of a folder, in hexadecimal. Raises: as `open_plain`."""
    with open_plain(folder, name, beside) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_state(folder: Path) -> FolderState:
    """Return what changes when somebody writes, moves or replaces the files of a folder; empty if it is not there."""
    rows = []
    try:
        folder = folder.resolve()
        for path in (folder, *folder.iterdir()):
            status = path.stat()
            # A file that is moved away and back has the same bytes, and another time of change.
            times = (status.st_mtime_ns, status.st_ctime_ns)
            rows.append((str(path), status.st_ino, status.st_size, *times))
    except (OSError, RuntimeError):
        pass  # it changes at this moment, or cannot be read: then what was found says enough
    return tuple(sorted(rows))


def _real_path(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError:  # until Python 3.13, links that go round in a circle
        raise OSError(errno.ELOOP, "its links go round in a circle") from None


def _check_ordinary(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not an ordinary file")


def _memory(size: int) -> memoryview:
    """Return zeroed memory of this process alone. Raises: OSError: there is too little."""
    flags = {}
    if hasattr(mmap, "MAP_ANONYMOUS"):
        flags["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        memory = mmap.mmap(-1, max(size, 1), **flags)
    except (OSError, OverflowError, ValueError):
        raise OSError(errno.ENOMEM, f"it needs {size:,} bytes of memory") from None
    return memoryview(memory)[:size]
