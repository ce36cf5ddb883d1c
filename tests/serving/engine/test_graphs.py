"""`Graphs.pick`: which graph runs how many steps."""

from typing import Any

import pytest

from deploy_rnn.bundle import Graph
from deploy_rnn.errors import InputError
from deploy_rnn.serving.engine.graphs import Graphs


def graphs(*steps: int | None) -> Any:
    each = [Graph(f"{index}.onnx", "", each, 1, float(index)) for index, each in enumerate(steps)]
    return Graphs(each[::-1], lambda graph: graph)  # type: ignore[arg-type, return-value]


def picked(graphs: Any, steps: int | None, *, may_pad: bool = True) -> tuple[str, int | None]:
    graph, run = graphs.pick(steps, may_pad=may_pad)
    return graph.file, run


def test_the_fastest_of_any_steps_and_every_bucket() -> None:
    two = graphs(None, None, 16, 8)
    assert picked(two, 8) == ("3.onnx", 8)
    assert picked(two, 16) == ("2.onnx", 16)
    assert picked(two, 17) == ("0.onnx", 17)
    assert picked(two, 9) == ("0.onnx", 9)
    assert picked(two, None) == ("0.onnx", None)


def test_padding_to_a_bucket_where_it_is_faster() -> None:
    two = graphs(None, 16, 8)
    two.prefer(16, 1.0, 2.0)
    assert [picked(two, steps)[1] for steps in (5, 8, 9, 15, 17)] == [5, 8, 16, 16, 17]
    assert picked(two, 9, may_pad=False)[1] == 9
    two.prefer(8, 1.0, 2.0)
    assert [picked(two, steps)[1] for steps in (3, 4)] == [3, 8]
    two.prefer(8, 3.0, 2.0)
    assert picked(two, 7)[1] == 7


def test_buckets_alone() -> None:
    two = graphs(8, 16)
    assert [picked(two, steps)[1] for steps in (1, 8, 9)] == [8, 8, 16]
    with pytest.raises(
        InputError, match="the inputs have 17 steps; the bundle's graphs take at most 16: export another"
    ):
        picked(two, 17)
    with pytest.raises(InputError, match="the inputs have 9 steps; the bundle's graphs take exactly 8 or 16: export"):
        picked(two, 9, may_pad=False)
    with pytest.raises(InputError, match="the inputs differ in their steps"):
        picked(two, None)
    assert picked(graphs(8), None) == ("0.onnx", None)


def test_several_rows_have_a_graph_of_their_own() -> None:
    two = graphs(None, None, 8)
    two.assign(4, two.dynamic[1])
    files = [two.pick(9, may_pad=True, rows=rows)[0].file for rows in (1, 3, 4, 32)]
    assert files == ["0.onnx", "0.onnx", "1.onnx", "1.onnx"]
    assert two.pick(None, may_pad=True, rows=4)[0].file == "1.onnx"
    assert two.pick(8, may_pad=True, rows=4)[0].file == "2.onnx"
    two.assign(1, two.dynamic[1])
    assert two.any_steps == two.dynamic[1]
