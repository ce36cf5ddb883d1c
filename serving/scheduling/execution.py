"""One run for several lanes: chunks end to end, states in and out, and each request's part of the outputs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from ..engine.engine import Engine
from ..engine.feeds import Feeds
from ..engine.signature import Signature
from .job import StreamSegment

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class BatchResult:
    """
    Attributes:
        outputs: of each request of each lane.
        states: of each lane at its end; empty if it is of no stream.
        rows: of all lanes.
        real, padded: rows times steps that were asked for, and that were run besides.
    """

    outputs: Sequence[Sequence[Outputs]]
    states: Sequence[Outputs]
    rows: int
    real: int
    padded: int


def execute(engine: Engine, lanes: Sequence[StreamSegment]) -> BatchResult:
    """
    Raises:
        InputError, RunError: as for `Engine.run`.
    """
    signature = engine.signature
    names = {name for lane in lanes for job in lane for name in job.outputs}
    if any(lane[0].stream for lane in lanes):
        names.update(signature.states.values())
    batch = [end_to_end(lane, signature) for lane in lanes]
    results = engine.run_together(batch, sorted(names))
    rows, real = sum(each.rows for each in batch), sum(each.rows * (each.steps or 1) for each in batch)
    return BatchResult(
        [_parts(lane, result, signature) for lane, result in zip(lanes, results, strict=True)],
        [_states(lane, result, signature) for lane, result in zip(lanes, results, strict=True)],
        rows,
        real,
        rows * (engine.steps_of(batch) or 1) - real,
    )


def end_to_end(lane: StreamSegment, signature: Signature) -> Feeds:
    """The chunks of a lane as one request, from the state of its stream."""
    first, stream = lane[0].feeds, lane[0].stream
    arrays = dict(first.arrays)
    if len(lane) > 1:
        for spec in signature.outer_inputs:
            if spec.time is not None:
                arrays[spec.name] = np.concatenate([job.feeds.arrays[spec.name] for job in lane], spec.time)
    if stream is not None:
        arrays.update(stream.states)
    return replace(first, arrays=arrays, steps=first.steps and sum(job.steps for job in lane))


def _parts(lane: StreamSegment, result: Outputs, signature: Signature) -> list[Outputs]:
    if len(lane) == 1:
        return [{name: result[name] for name in lane[0].outputs}]
    ends = pairwise(accumulate((job.steps for job in lane), initial=0))
    return [
        {
            name: result[name][:, start:stop].copy() if name in signature.in_time else result[name]
            for name in job.outputs
        }
        for job, (start, stop) in zip(lane, ends, strict=True)
    ]


def _states(lane: StreamSegment, result: Outputs, signature: Signature) -> Outputs:
    return {first: result[last] for first, last in signature.states.items()} if lane[0].stream else {}
