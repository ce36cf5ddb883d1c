"""Files that appear whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

Result = TypeVar("Result")


def replace_file(path: Path, write: Callable[[Path], Result]) -> Result:
    """Let `write` make a file under a temporary name in the same folder, then move it to `path`.

    If `write` raises, `path` stays as it was, and nothing is left beside it.

    Returns:
        What `write` returned.
    """
    temporary = path.with_name(f".{path.stem}.{uuid4().hex}{path.suffix}")
    try:
        result = write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return result
