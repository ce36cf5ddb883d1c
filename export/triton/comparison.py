"""The graph that was written for Triton's onnxruntime backend, run as that backend runs it, beside the bundle."""

from collections.abc import Sequence

import numpy as np
import onnxruntime

from deploy_rnn.bundle import Graph
from deploy_rnn.errors import ExportError
from deploy_rnn.serving.engine.batch_engine import BatchEngine
from deploy_rnn.serving.engine.feeds import Feeds
from deploy_rnn.serving.engine.probe import example
from deploy_rnn.tensor_spec import ANY_SIZE

from .config import State, names_of

ROWS = 2
CHUNKS = 2
STEPS = 4
TOLERANCE = 1e-4

Arrays = dict[str, np.ndarray]


def compare(
    session: onnxruntime.InferenceSession,
    engine: BatchEngine,
    states: Sequence[State],
    source: Graph,
) -> None:
    """Run random rows; if there are states, two chunks of them.

    Args:
        session: of the graph that was written.
        engine: the bundle.
        source: the graph of the bundle that it came from.

    Raises:
        ExportError: an answer differs.
    """
    signature = engine.signature
    new_names = names_of(states)
    output_names = [output.name for output in session.get_outputs()]
    own_states: Arrays = {}
    triton_states: Arrays = {}
    for seed in range(CHUNKS if states else 1):
        feeds = example(signature, *_sizes(engine, source), seed)
        expected = _run(engine, {**feeds.arrays, **own_states})
        given = {new_names.get(name, name): array for name, array in feeds.arrays.items()}
        answers = session.run(output_names, {**given, **triton_states})
        outputs = dict(zip(output_names, answers, strict=True))
        for name, array in expected.items():
            _check(name, outputs[new_names.get(name, name)], array)
        for state in states:
            own_states[state.bundle_input] = expected[state.bundle_output]
            triton_states[state.input_name] = outputs[state.output_name]


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


def _check(name: str, output: np.ndarray, expected: np.ndarray) -> None:
    if not np.allclose(output, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        raise ExportError(
            f"output `{name}` of the graph for Triton differs from that of the bundle; use the backend 'python', and "
            "report this."
        )
