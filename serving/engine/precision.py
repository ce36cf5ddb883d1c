"""Which precision of a model is opened: the one that is asked for, and never another."""

from collections.abc import Iterable
from pathlib import Path

from deploy_rnn.bundle import Manifest, weights_precision
from deploy_rnn.errors import BundleError, LoadError
from deploy_rnn.tensor_spec import TensorSpec


def chosen_precision(folder: Path, manifest: Manifest, precision: str | None) -> str:
    """Return the precision in which a bundle is opened; None for the only one.

    Raises:
        BundleError: the bundle lacks it, or has several and nobody says which.
    """
    offered = manifest.precisions
    if precision is None and len(offered) == 1:
        return offered[0]
    if precision in offered:
        return str(precision)
    names = " and ".join(offered)
    # Graphs in several precisions would race, and the numbers depend on which of them wins.
    if precision is None:
        raise BundleError(f"{str(folder)!r} has graphs in {names}; `precision` must say which.")
    raise BundleError(f"{str(folder)!r} has graphs in {names}; `precision` is {precision!r}.")


def file_precision(
    path: Path, written: str | None, outputs: Iterable[TensorSpec], precision: str | None
) -> str:
    """Return the precision of a single file.

    Args:
        path: the file.
        written: what its metadata says; None for that of the weights.
        outputs: of the file.
        precision: what is asked for; None for any.

    Raises:
        LoadError: another one is asked for.
    """
    actual = written or weights_precision(outputs)
    if precision not in (None, actual):
        raise LoadError(f"{str(path)!r} is in {actual}; `precision` is {precision!r}.")
    return actual
