"""`Graphs.pick`: which graph runs how many steps."""

from typing import Any

import pytest

from deploy_rnn.bundle import Graph
from deploy_rnn.errors import InputError
from deploy_rnn.serving.engine.graphs import Graphs


def make_graphs(*steps: int | None) -> Any:
    each = [Graph(f"{index}.onnx", "", each, 1, float(index)) for index, each in enumerate(steps)]
    return Graphs(each[::-1], lambda graph: graph)  # type: ignore[arg-type, return-value]


def picked(graphs: Any, steps: int | None, *, may_pad: bool = True) -> tuple[str, int | None]:
    graph, run = graphs.pick(steps, may_pad=may_pad)
    return graph.file, run


def test_the_fastest_of_any_steps_and_every_bucket() -> None:
    graphs = make_graphs(None, None, 16, 8)
    assert picked(graphs, 8) == ("3.onnx", 8)
    assert picked(graphs, 16) == ("2.onnx", 16)
    assert picked(graphs, 17) == ("0.onnx", 17)
    assert picked(graphs, 9) == ("0.onnx", 9)
    assert picked(graphs, None) == ("0.onnx", None)


def test_padding_to_a_bucket_where_it_is_faster() -> None:
    graphs = make_graphs(None, 16, 8)
    graphs.prefer(16, 1.0, 2.0)
    assert [picked(graphs, steps)[1] for steps in (5, 8, 9, 15, 17)] == [5, 8, 16, 16, 17]
    assert picked(graphs, 9, may_pad=False)[1] == 9
    graphs.prefer(8, 1.0, 2.0)
    assert [picked(graphs, steps)[1] for steps in (3, 4)] == [3, 8]
    graphs.prefer(8, 3.0, 2.0)
    assert picked(graphs, 7)[1] == 7


def test_buckets_alone() -> None:
    graphs = make_graphs(8, 16)
    assert [picked(graphs, steps)[1] for steps in (1, 8, 9)] == [8, 8, 16]
    with pytest.raises(
        InputError, match="the inputs have 17 steps; the bundle's graphs take at most 16: export another"
    ):
        picked(graphs, 17)
    with pytest.raises(InputError, match="the inputs have 9 steps; the bundle's graphs take exactly 8 or 16: export"):
        picked(graphs, 9, may_pad=False)
    with pytest.raises(InputError, match="the inputs differ in their steps"):
        picked(graphs, None)
    assert picked(make_graphs(8), None) == ("0.onnx", None)


def test_several_rows_have_a_graph_of_their_own() -> None:
    graphs = make_graphs(None, None, 8)
    graphs.assign(4, graphs.dynamic[1])
    files = [graphs.pick(9, may_pad=True, rows=rows)[0].file for rows in (1, 3, 4, 32)]
    assert files == ["0.onnx", "0.onnx", "1.onnx", "1.onnx"]
    assert graphs.pick(None, may_pad=True, rows=4)[0].file == "1.onnx"
    assert graphs.pick(8, may_pad=True, rows=4)[0].file == "2.onnx"
    graphs.assign(1, graphs.dynamic[1])
    assert graphs.any_steps == graphs.dynamic[1]
