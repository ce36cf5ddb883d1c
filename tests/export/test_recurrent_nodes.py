"""What is read off ONNX's own recurrent operators, for the table of what runtimes get wrong."""

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from deploy_rnn.export.recurrent_nodes import RecurrentFacts

INPUT, HIDDEN = 4, 5
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def facts(
    op_type: str,
    shape: Sequence[str | int],
    before: Sequence[NodeProto] = (),
    *,
    outputs: Sequence[str] = ("y",),
    states: bool = False,
    returned: str = "y",
    **attributes: object,
) -> RecurrentFacts:
    """Of a model with one operator, which reads `x`: the last output of `before`, or the input itself."""
    rows = GATES[op_type] * HIDDEN
    weights = {
        "W": np.zeros((1, rows, INPUT), np.float32),
        "R": np.zeros((1, rows, HIDDEN), np.float32),
        "table": np.zeros((20, INPUT), np.float32),
    }
    inputs = ["x", "W", "R", "", "", *(["h", "c"] if op_type == "LSTM" else ["h"])]
    node = helper.make_node(
        op_type, inputs if states else inputs[:3], outputs, hidden_size=HIDDEN, **attributes
    )
    name = before[0].input[-1] if before else "x"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
    if states:
        for state in inputs[5:]:
            values.append(helper.make_tensor_value_info(state, TensorProto.FLOAT, [1, "B", HIDDEN]))
    nodes = [*before, node]
    graph = helper.make_graph(
        nodes,
        "graph",
        values,
        [helper.make_tensor_value_info(returned, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return RecurrentFacts.of(model, nodes)


TURN = helper.make_node("Transpose", ["in"], ["x"], perm=[1, 0, 2])
ADD = helper.make_node("Relu", ["in"], ["x"])


@pytest.mark.parametrize(
    ("shape", "before", "is_single"),
    [
        (["T", "B", INPUT], [], True),
        (["T", 3, INPUT], [], True),
        ([6, "B", INPUT], [], False),
        ([1, "B", INPUT], [], False),
        # Of what is computed, a converter knows the shape where nothing else is dynamic.
        (["T", 3, INPUT], [ADD], True),
        (["T", "B", INPUT], [ADD], False),
        (["B", "T", INPUT], [TURN], False),
        (["B", 6, INPUT], [TURN], False),
        ([3, "T", INPUT], [TURN], False),
    ],
)
def test_steps_that_are_the_first_axis_of_an_input(
    shape: list[str | int], before: list[NodeProto], is_single: bool
) -> None:
    assert facts("GRU", shape, before).single_step == ({"GRU"} if is_single else set())
    assert not facts("RNN", shape, before).single_step
    assert not facts("LSTM", shape, before).single_step
    found = facts("LSTM", shape, before, states=True).single_step
    assert found == ({"LSTM"} if is_single else set())
    assert not facts("LSTM", shape, before, states=True, direction="bidirectional").single_step


def test_outputs_that_are_left_out() -> None:
    shape = [6, 3, INPUT]
    assert facts("LSTM", shape).unlisted_outputs == {"LSTM"}
    assert not facts("LSTM", shape, outputs=["y", "", "c"]).unlisted_outputs
    assert facts("GRU", shape, outputs=["", "h"], returned="h").final_only == {"GRU"}
    assert not facts("GRU", shape, outputs=["y", "h"], returned="h").final_only


def test_a_constant_batch_in_a_table_is_known() -> None:
    """As of an embedding: weights are not read, only their shapes."""
    gather = helper.make_node("Gather", ["table", "in"], ["x"])
    before = facts("GRU", ["T", 3], [gather])
    assert before.single_step == {"GRU"}
