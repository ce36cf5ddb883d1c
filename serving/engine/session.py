"""`Runner`: one opened graph, in its own layout."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Protocol

import numpy as np
import onnxruntime

from deploy_rnn.errors import InputError, RunError
from deploy_rnn.runtime import TensorSpec, specs

LARGE = 16_384
"""Rows times steps above which a run gives its memory back to the system when it ends: onnxruntime would keep what the
largest run ever needed. After 16 x 4,000 steps of a two-layer bidirectional GRU, H = 128, 361 MB stay instead of 747.
Small runs keep theirs, since fetching it again took up to ten times as long as the run."""


class Runner(Protocol):
    """Runs one graph; may be called from several threads at once.

    Attributes:
        rounds_rows: whether it had better be given few different numbers of rows.
    """

    prefers_few_row_counts: bool

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """
        Raises:
            InputError: onnxruntime refuses what is in the inputs, such as an index beyond a table.
            RunError: it failed for another reason.
        """
        ...

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """What the graph takes, and what it gives."""
        ...


class Session:
    """A graph on any provider.

    Args:
        session: of the graph.
        arenas: the memory that a large run gives back; see `Provider.arenas`.
    """

    prefers_few_row_counts = False

    def __init__(self, session: onnxruntime.InferenceSession, arenas: str) -> None:
        self._session = session
        self._small, self._large = quiet(), quiet()
        self._large.add_run_config_entry("memory.enable_memory_arena_shrinkage", arenas)

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        large = any(prod(array.shape[:2]) > LARGE for array in feeds.values())
        options = self._large if large else self._small
        return guarded(lambda: self._session.run(list(outputs), contiguous(feeds), options))

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        return specs(self._session)


def contiguous(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In the order of memory that onnxruntime reads."""
    return {name: np.ascontiguousarray(array) for name, array in feeds.items()}


def quiet() -> onnxruntime.RunOptions:
    """Options of a run that does not write to stderr: its errors are raised, and any client can cause them."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


def guarded(run: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """`run`, with onnxruntime's errors as ours."""
    try:
        return run()
    except Exception as error:  # onnxruntime has a dozen types, with no base of their own
        if type(error).__name__ == "InvalidArgument":
            raise InputError(f"the graph cannot take these inputs: {error}") from error
        raise RunError(f"onnxruntime failed: {error}") from error
