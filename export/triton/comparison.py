"""The graph that was written for Triton's onnxruntime backend, run as that backend runs it, beside the bundle."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploy_rnn.bundle import Graph
from deploy_rnn.errors import ExportError
from deploy_rnn.runtime import open_session
from deploy_rnn.serving.engine.batch_engine import BatchEngine
from deploy_rnn.serving.engine.feeds import Feeds
from deploy_rnn.serving.engine.probe import example
from deploy_rnn.tensor_spec import ANY_SIZE

from .config import State
from .graph import MODEL_FILE

ROWS = 2
CHUNKS = 2
STEPS = 4
TOLERANCE = 1e-4

Arrays = dict[str, np.ndarray]


def compare(folder: Path, engine: BatchEngine, states: Sequence[State], source: Graph) -> None:
    """Run random rows; if there are states, two chunks of them.

    Args:
        folder: has the graph that was written.
        engine: the bundle.
        source: the graph of the bundle that it came from.

    Raises:
        ExportError: an answer differs.
    """
    signature = engine.signature
    session = open_session(folder / MODEL_FILE)
    names = [output.name for output in session.get_outputs()]
    own_states: Arrays = {}
    triton_states: Arrays = {}
    for seed in range(CHUNKS if states else 1):
        feeds = example(signature, *_sizes(engine, source), seed)
        expected = _run(engine, {**feeds.arrays, **own_states})
        given = {**feeds.arrays, **triton_states}
        for name, state in zip(signature.states, states, strict=True):
            given.setdefault(state.input_name, given.pop(name))
            given.pop(name, None)
        outputs = dict(zip(names, session.run(names, given), strict=True))
        for (state_input, state_output), state in zip(
            signature.states.items(), states, strict=True
        ):
            own_states[state_input] = expected[state_output]
            triton_states[state.input_name] = outputs[state.output_name]
            outputs[state_output] = outputs.pop(state.output_name)
        _check(outputs, expected)


def _sizes(engine: BatchEngine, source: Graph) -> tuple[int, int]:
    """Rows and steps that the graph takes."""
    batch_axis = engine.signature.batch_axis
    rows = source.ranges.get(str(batch_axis), ANY_SIZE).nearest(ROWS)
    steps = source.steps or STEPS
    if source.steps is None:
        for axis in engine.signature.time_axes:
            steps = source.ranges.get(axis, ANY_SIZE).nearest(steps)
    return rows, steps


def _run(engine: BatchEngine, arrays: Arrays) -> Arrays:
    batch = [Feeds.of(arrays, engine.signature)]
    names = [spec.name for spec in engine.outputs]
    return dict(engine.run(engine.choose(batch), batch, names)[0])


def _check(outputs: Arrays, expected: Arrays) -> None:
    for name, array in expected.items():
        if not np.allclose(outputs[name], array, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            raise ExportError(
                f"output `{name}` of the graph for Triton differs from that of the bundle; use the backend 'python', "
                "and report this."
            )
