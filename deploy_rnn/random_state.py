"""`random_state_kept`: run a model without a trace in the random numbers of the process; and what drew some."""

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


def generator_states() -> dict[str, bytes]:
    """Each random generator of the process, by its name in a message -> its state."""
    generators = {"PyTorch's generator": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        for number in range(torch.cuda.device_count()):
            generators[f"PyTorch's generator of GPU {number}"] = torch.cuda.get_rng_state(number)
    states = {name: state.numpy().tobytes() for name, state in generators.items()}
    return states | {
        "Python's `random`": repr(random.getstate()).encode(),
        "`numpy.random`": repr(np.random.get_state()).encode(),
    }


def changed_generators(before: dict[str, bytes]) -> list[str]:
    """The names of the generators that something was drawn from since `before`."""
    return [name for name, state in generator_states().items() if state != before.get(name)]
