"""`RoundingCost`: how far rounding moves the outputs of a model, compared with the model itself in float64."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Deviation:
    """How far rounding has moved the outputs of one call: the simulation, and the model in float64.

    Attributes:
        case: which call, such as "random, B=3, T=7".
        rounded, exact: each output, of the simulation and of the model.
    """

    case: str
    rounded: Sequence[np.ndarray]
    exact: Sequence[np.ndarray]


@dataclass(frozen=True)
class RoundingCost:
    """What rounding costs at one output, over everything that a file was checked on.

    Attributes:
        output: its name in the graph.
        largest: the largest absolute difference.
        case: where that is, such as "random, B=3, T=7".
        rms: the root of the mean square of all differences.
        changed: the share of rows along the last axis whose largest element, such as the class of a classifier, is
            another one; None if that axis has one element only, the output has no axes, or it is a hidden state.
        over_time: the root of the mean square at each step, in the case with the most steps; empty if the output has no
            time axis.
    """

    output: str
    largest: float
    case: str
    rms: float
    changed: float | None
    over_time: tuple[float, ...]

    def __str__(self) -> str:
        text = f"{self.output}: at most {self.largest:.1e} ({self.case}), rms {self.rms:.1e}"
        if self.over_time:
            first, last = self.over_time[0], self.over_time[-1]
            text += f", {first:.1e} at the first step and {last:.1e} at step {len(self.over_time)}"
        if self.changed is not None:
            text += f"; another largest element in {self.changed:.2%} of rows"
        return text


def rounding_costs(
    deviations: Sequence[Deviation],
    outputs: Sequence[str],
    time: Mapping[str, int],
    hidden: Collection[str] = (),
) -> tuple[RoundingCost, ...]:
    """The cost at each output of floating point.

    Args:
        deviations: of the calls.
        outputs: their names.
        time: an output -> its time axis.
        hidden: outputs that are hidden states: their largest element means nothing.
    """
    costs = []
    for number, name in enumerate(outputs):
        pairs = [
            (deviation.case, deviation.rounded[number], deviation.exact[number])
            for deviation in deviations
            if number < len(deviation.rounded)
        ]
        if pairs and np.issubdtype(pairs[0][1].dtype, np.floating):
            cost = _cost(name, pairs, time.get(name))
            costs.append(replace(cost, changed=None) if name in hidden else cost)
    return tuple(costs)


def _cost(
    name: str, pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], time: int | None
) -> RoundingCost:
    differences = {case: np.abs(exact - rounded) for case, rounded, exact in pairs}
    worst = max(differences, key=lambda case: differences[case].max(initial=0))
    all_differences = np.concatenate([array.ravel() for array in differences.values()])
    changed = [_changed(rounded, exact) for _, rounded, exact in pairs]
    known = np.concatenate([array for array in changed if array is not None] or [np.zeros(0)])
    over_time: tuple[float, ...] = ()
    if time is not None:
        longest = max(
            (array for array in differences.values() if array.ndim > time),
            key=lambda array: array.shape[time],
        )
        by_step = np.moveaxis(longest, time, 0).reshape(longest.shape[time], -1)
        over_time = tuple(np.sqrt((by_step**2).mean(axis=1)).tolist())
    return RoundingCost(
        output=name,
        largest=float(differences[worst].max(initial=0)),
        case=worst,
        rms=float(np.sqrt((all_differences**2).mean())) if all_differences.size else 0.0,
        changed=float(known.mean()) if known.size else None,
        over_time=over_time,
    )


def _changed(rounded: np.ndarray, exact: np.ndarray) -> np.ndarray | None:
    """Whether each row has another largest element."""
    if exact.ndim == 0 or exact.shape[-1] < 2 or not exact.size:
        return None
    changed: np.ndarray = rounded.argmax(axis=-1) != exact.argmax(axis=-1)
    return changed.ravel()
