"""`Runner`: one opened graph, in its own layout; `Session`: the one for any provider."""

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Protocol

import numpy as np
import onnxruntime

from deploy_rnn.errors import InputError, RunError
from deploy_rnn.runtime import Specs, properties, specs

from .arrays import Arrays

LARGE_RUN = 16_384
"""Rows times steps above which a run gives its memory back to the system when it ends: onnxruntime would keep what the
largest run ever needed. After 16 x 4,000 steps of a two-layer bidirectional GRU, H = 128, 361 MB stay instead of 747.
Small runs keep theirs, since fetching it again took up to ten times as long as the run."""


class Runner(Protocol):
    """Runs one graph; `run` may be called from several threads at once.

    Attributes:
        prefers_few_row_counts: whether each new number of rows costs time and memory once, so that rows are worth
            adding to avoid it.
    """

    prefers_few_row_counts: bool

    def run(
        self, feeds: Arrays, outputs: Sequence[str], *, one_core: bool = False
    ) -> list[np.ndarray]:
        """Run the graph once.

        Args:
            one_core: use one core only, since other runs have the others.

        Raises:
            InputError: onnxruntime refuses what is in the inputs, such as an index beyond a table.
            RunError: it failed for another reason.
        """
        ...

    def gains_from_cores(self, rows: int) -> bool:
        """Return whether a run of these rows is so much faster with all cores than with one that others should wait."""
        return False

    def specs(self) -> tuple[Specs, Specs]:
        """Return the inputs and the outputs of the graph."""
        ...

    def metadata(self) -> Mapping[str, str]:
        """Return the metadata properties of the file."""
        ...

    def tune(
        self,
        example: Callable[[int], Arrays],
        outputs: Sequence[str],
        batch_axes: Mapping[str, int],
        row_counts: Sequence[int],
    ) -> dict[int, float]:
        """Measure which way to run is the fastest for each number of rows, and use it from now on.

        Args:
            example: number of rows -> inputs.
            outputs: the names of all outputs.
            batch_axes: of every input and output; empty if rows must stay together.
            row_counts: the numbers of rows to measure, from 1 upwards.

        Returns:
            Rows -> seconds of one run in the fastest way. Empty if there is only one way, and nothing was measured.
        """
        return {}


class Session(Runner):
    """A graph on any provider.

    Args:
        session: of the graph.
        arenas: the memory that a large run gives back; see `Provider.arenas`.
    """

    prefers_few_row_counts = False

    def __init__(self, session: onnxruntime.InferenceSession, arenas: str) -> None:
        self._session = session
        self._options = quiet_options()
        self._large_run_options = quiet_options()
        self._large_run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arenas)

    def run(
        self, feeds: Arrays, outputs: Sequence[str], *, one_core: bool = False
    ) -> list[np.ndarray]:
        is_large = any(prod(array.shape[:2]) > LARGE_RUN for array in feeds.values())
        options = self._large_run_options if is_large else self._options
        names = list(outputs)
        return translate_errors(lambda: self._session.run(names, contiguous(feeds), options))

    def specs(self) -> tuple[Specs, Specs]:
        return specs(self._session)

    def metadata(self) -> Mapping[str, str]:
        return properties(self._session)


def contiguous(feeds: Arrays) -> dict[str, np.ndarray]:
    """Return the arrays in the order of memory that onnxruntime reads."""
    # `ascontiguousarray` would give a tensor of no axes one.
    return {name: np.asarray(array, order="C") for name, array in feeds.items()}


def quiet_options() -> onnxruntime.RunOptions:
    """Return options of a run that does not log to stderr: its errors are raised, and any client can cause them."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # fatal errors only
    return options


def translate_errors(run: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """Call `run`, and raise onnxruntime's errors as an InputError or a RunError."""
    try:
        return run()
    except Exception as error:  # onnxruntime has a dozen exception types without a common base
        if _is_fault_of_inputs(error):
            raise InputError(f"the graph cannot take these inputs: {error}") from error
        raise RunError(f"onnxruntime failed: {error}") from error


def _is_fault_of_inputs(error: Exception) -> bool:
    """Return whether onnxruntime refuses the inputs, and not the machine the run.

    A node that gets sizes which do not fit together fails with any of several exception types; its message tells.
    """
    if type(error).__name__ == "InvalidArgument":
        return True
    # The names of nodes, which can be any words, come before the reason.
    before, found, reason = str(error).rpartition("Status Message:")
    return bool(found) and "while running" in before and not _MACHINE_FAULT.search(reason)


_MACHINE_FAULT = re.compile(
    r"memory|alloc|CUDA|CUDNN|CUBLAS|CUFFT|device|driver|implemented|terminate", re.IGNORECASE
)
"""In the reason of an error that any inputs may meet: memory that runs out, a device that fails."""
