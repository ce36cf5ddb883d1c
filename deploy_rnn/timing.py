"""Timing contestants side by side, so that they do not disturb one another."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, and the quartiles around it."""

    median: float
    low: float
    high: float


def compare(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 3,
    calls: int = 15,
    warm_up: int = 3,
    pause: float = 0.1,
    block_seconds: float = math.inf,
) -> dict[str, Timing]:
    """Time each contestant in `rounds` blocks that take turns.

    A block starts after a short pause and its first calls are not counted: the idle threads of the contestant before
    spin on for a while and take a core (the same onnxruntime graph differed from itself by 1.5x without the pause).

    Args:
        contestants: name -> a call that returns when its work is done.
        rounds: blocks of each contestant; their order is reversed every other round.
        calls: calls that count in each block.
        warm_up: calls before them that do not.
        pause: seconds of rest before a block; 0 for contestants that share their threads.
        block_seconds: a block makes no further call once its calls, or its warm-up calls, have taken as long; at least
            one of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(rounds):
        for name in order:
            time.sleep(pause)
            seconds[name] += _time_block(contestants[name], calls, warm_up, block_seconds)
        order.reverse()
    return {name: _summarize(samples) for name, samples in seconds.items()}


def quickest(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, the best of three; fewer if they take long, since long calls scatter least."""
    samples: list[float] = []
    while len(samples) < 3 and sum(samples) < 0.5:
        start = clock()
        call()
        samples.append(clock() - start)
    return min(samples)


def _time_block(
    call: Callable[[], object], calls: int, warm_up: int, block_seconds: float
) -> list[float]:
    _time_calls(call, warm_up, block_seconds)
    return _time_calls(call, calls, block_seconds)


def _time_calls(call: Callable[[], object], calls: int, limit: float) -> list[float]:
    samples: list[float] = []
    while len(samples) < calls and sum(samples) < limit:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return samples


def _summarize(seconds: list[float]) -> Timing:
    low, _, high = quantiles(seconds, n=4)
    return Timing(median(seconds), low, high)
