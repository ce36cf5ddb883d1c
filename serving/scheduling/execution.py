"""One run for a batch: chunks end to end, states in and out, and each request's part of the outputs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..engine.batch_engine import BatchEngine
from ..engine.feeds import Feeds
from ..engine.signature import Signature
from .queue import StreamSegment

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class BatchResult:
    """
    Attributes:
        outputs: of each request of each segment.
        states: of each segment's stream at its end; empty for a request of no stream.
        rows: of all segments.
        real_steps: rows times steps that the requests have.
        padded_steps: rows times steps that were run besides.
    """

    outputs: Sequence[Sequence[Outputs]]
    states: Sequence[Outputs]
    rows: int
    real_steps: int
    padded_steps: int


def execute(engine: BatchEngine, batch: Sequence[StreamSegment]) -> BatchResult:
    """Run a batch.

    Raises:
        InputError, RunError: as for `Engine.run`.
    """
    signature = engine.signature
    names = {name for segment in batch for job in segment for name in job.outputs}
    if any(segment[0].stream for segment in batch):
        names.update(signature.states.values())
    feeds = [end_to_end(segment, signature) for segment in batch]
    choice = engine.choose(feeds)
    results = engine.run(choice, feeds, sorted(names))
    rows = sum(request.rows for request in feeds)
    real_steps = sum(request.rows * (request.steps or 1) for request in feeds)
    all_steps = rows * (choice.steps or 1)
    segments = list(zip(batch, results, strict=True))
    return BatchResult(
        outputs=[_split(segment, result, signature) for segment, result in segments],
        states=[_states(segment, result, signature) for segment, result in segments],
        rows=rows,
        real_steps=real_steps,
        padded_steps=all_steps - real_steps,
    )


def end_to_end(segment: StreamSegment, signature: Signature) -> Feeds:
    """Make one request of the chunks of a segment, starting from the state of its stream."""
    first = segment[0].feeds
    stream = segment[0].stream
    arrays = dict(first.arrays)
    if len(segment) > 1:
        for spec in signature.client_inputs:
            if spec.time is not None:
                chunks = [job.feeds.arrays[spec.name] for job in segment]
                arrays[spec.name] = np.concatenate(chunks, spec.time)  # (B, T of all chunks, ...)
    if stream is not None:
        arrays.update(stream.states)
    steps = None if first.steps is None else sum(job.steps for job in segment)
    return replace(first, arrays=arrays, steps=steps)


def _split(segment: StreamSegment, result: Outputs, signature: Signature) -> list[Outputs]:
    """Split the outputs of a segment into those of its chunks."""
    if len(segment) == 1:
        return [{name: result[name] for name in segment[0].outputs}]
    outputs: list[Outputs] = []
    start = 0
    for job in segment:
        stop = start + job.steps
        chunk = {}
        for name in job.outputs:
            # A copy, so that one chunk's answer does not keep those of the others in memory.
            chunk[name] = result[name][:, start:stop].copy() if name in signature.outputs_over_time else result[name]
        outputs.append(chunk)
        start = stop
    return outputs


def _states(segment: StreamSegment, result: Outputs, signature: Signature) -> Outputs:
    """What the next chunk of the stream starts from: input -> array."""
    if segment[0].stream is None:
        return {}
    return {state_input: result[state_output] for state_input, state_output in signature.states.items()}
