"""`random_state_kept`: run a model without a trace in the random numbers of the process."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Let every random generator go on as if nothing had been drawn: those of PyTorch, Python and numpy."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
