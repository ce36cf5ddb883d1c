"""One run for a batch: chunks end to end, states in and out, and each request's part of the outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deploy_rnn.errors import InputError

from ..engine.arrays import Arrays
from ..engine.batch_engine import BatchEngine
from ..engine.feeds import Feeds
from ..engine.signature import Signature
from .queue import StreamSegment
from .streams import Stream

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class BatchResult:
    """What came of a run.

    Attributes:
        outputs: of each request of each segment.
        states: of each segment's stream at its end; empty for a request of no stream.
        rows: of all segments.
        real_steps: rows times steps of the requests.
        padded_steps: rows times steps that were run besides, as padding.
    """

    outputs: Sequence[Sequence[Outputs]]
    states: Sequence[Outputs]
    rows: int
    real_steps: int
    padded_steps: int


def execute(
    engine: BatchEngine, batch: Sequence[StreamSegment], get_all_cores: Callable[[], bool]
) -> BatchResult:
    """Run a batch, each segment as one request.

    Args:
        get_all_cores: gets all cores for the run instead of one, if they are free; called only if it gains from them.

    Raises:
        InputError, RunError: as for `Engine.run`.
    """
    signature = engine.signature
    names: set[str] = set()
    for segment in batch:
        if segment[0].stream:
            names.update(signature.states.values())
        for job in segment:
            names.update(job.outputs)
    feeds = [end_to_end(segment, signature) for segment in batch]
    rows = sum(request.rows for request in feeds)
    choice = engine.choose(feeds, one_core=True)
    one_core = True
    if engine.may_gain_from_cores:
        on_all_cores = engine.choose(feeds)
        if on_all_cores.runner.gains_from_cores(rows) and get_all_cores():
            choice = on_all_cores
            one_core = False
    results = engine.run(choice, feeds, sorted(names), one_core=one_core)
    real_steps = sum(request.rows * (request.steps or 1) for request in feeds)
    all_steps = rows * (choice.steps or 1)
    outputs = []
    states = []
    for segment, result in zip(batch, results, strict=True):
        outputs.append(_split(segment, result, signature))
        states.append(_states(segment, result, signature))
    return BatchResult(outputs, states, rows, real_steps, padded_steps=all_steps - real_steps)


def end_to_end(segment: StreamSegment, signature: Signature) -> Feeds:
    """Make one request of the chunks of a segment, starting from the state of its stream."""
    first = segment[0].feeds
    stream = segment[0].stream
    if stream is None:
        return first
    arrays = dict(first.arrays)
    if len(segment) > 1:
        for spec in signature.client_inputs:
            if spec.time is not None:
                chunks = [job.feeds.arrays[spec.name] for job in segment]
                arrays[spec.name] = np.concatenate(chunks, spec.time)  # (B, T of all chunks, ...)
    if stream is not None:
        _check_states(stream, arrays)
        arrays.update(stream.states)
    steps = None if first.steps is None else sum(job.steps for job in segment)
    return replace(first, arrays=arrays, steps=steps)


def _check_states(stream: Stream, arrays: Arrays) -> None:
    """Check that a chunk has the sizes of the chunks before; `arrays` has zeros of its sizes in place of the states."""
    for name, state in stream.states.items():
        expected = arrays[name].shape
        if state.shape != expected:
            raise InputError(
                f"stream {stream.name!r} has `{name}` of shape {list(state.shape)}, this chunk needs "
                f"{list(expected)}; a stream keeps its rows."
            )


def _split(segment: StreamSegment, result: Outputs, signature: Signature) -> list[Outputs]:
    """Split the outputs of a segment into those of its chunks."""
    if len(segment) == 1:
        return [{name: result[name] for name in segment[0].outputs}]
    outputs: list[Outputs] = []
    start = 0
    for job in segment:
        stop = start + job.steps
        chunk = {name: result[name] for name in job.outputs}
        for name in chunk.keys() & signature.outputs_over_time:
            # A copy, so that one chunk's answer does not keep those of the others in memory.
            chunk[name] = chunk[name][:, start:stop].copy()  # (B, T of this chunk, ...)
        outputs.append(chunk)
        start = stop
    return outputs


def _states(segment: StreamSegment, result: Outputs, signature: Signature) -> Outputs:
    """What the next chunk of the stream starts from: the input that carries a state -> its array."""
    if segment[0].stream is None:
        return {}
    states = {}
    for state_input, state_output in signature.states.items():
        state = result[state_output]
        # Whoever gets it as an answer may change that.
        states[state_input] = state.copy() if state_output in segment[-1].outputs else state
    return states
