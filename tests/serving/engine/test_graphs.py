"""`Graphs.pick`: which graph runs how many steps."""

from typing import Any

import pytest

from deploy_rnn.bundle import Graph
from deploy_rnn.errors import BundleError, InputError
from deploy_rnn.serving.engine.graphs import GraphChoice, Graphs


def make_graphs(*steps: int | None) -> Any:
    """Graphs whose runners are the rows of the manifest: 0.onnx, 1.onnx ..., each slower than the one before."""
    graphs = [
        Graph(f"{index}.onnx", "", number, 1, float(index), "")
        for index, number in enumerate(steps)
    ]
    return Graphs.of_bundle(graphs[::-1], lambda graph: graph)  # type: ignore[arg-type, return-value]


def pick(
    graphs: Any, steps: int | None, *, may_pad: bool = True, rows: int = 1
) -> tuple[str, int | None]:
    choice = graphs.pick(steps, may_pad=lambda: may_pad, rows=rows)
    return choice.runner.file, choice.steps


def test_the_fastest_of_any_steps_and_every_bucket() -> None:
    graphs = make_graphs(None, None, 16, 8)
    assert pick(graphs, 8) == ("3.onnx", 8)
    assert pick(graphs, 16) == ("2.onnx", 16)
    assert pick(graphs, 17) == ("0.onnx", 17)
    assert pick(graphs, 9) == ("0.onnx", 9)
    assert pick(graphs, None) == ("0.onnx", None)


def test_padding_to_a_bucket_where_it_is_faster() -> None:
    graphs = make_graphs(None, 16, 8)
    graphs.prefer(16, 1.0, 2.0)
    assert [pick(graphs, steps)[1] for steps in (5, 8, 9, 15, 17)] == [5, 8, 16, 16, 17]
    assert pick(graphs, 9, may_pad=False)[1] == 9
    graphs.prefer(8, 1.0, 2.0)
    assert [pick(graphs, steps)[1] for steps in (3, 4)] == [3, 8]
    graphs.prefer(8, 3.0, 2.0)
    assert pick(graphs, 7)[1] == 7


def test_buckets_alone() -> None:
    graphs = make_graphs(8, 16)
    assert [pick(graphs, steps)[1] for steps in (1, 8, 9)] == [8, 8, 16]
    with pytest.raises(
        InputError,
        match="the inputs have 17 steps; the bundle's graphs take at most 16: export another",
    ):
        pick(graphs, 17)
    with pytest.raises(
        InputError,
        match="the inputs have 9 steps; the bundle's graphs take exactly 8 or 16: export",
    ):
        pick(graphs, 9, may_pad=False)
    with pytest.raises(InputError, match="the inputs differ in their steps"):
        pick(graphs, None)
    assert pick(make_graphs(8), None) == ("0.onnx", None)


def test_whether_rows_may_be_padded_is_asked_only_where_it_matters() -> None:
    def fail() -> bool:
        raise AssertionError("the answer may take trial runs")

    graphs = make_graphs(None, 16, 8)
    for steps in (None, 5, 8, 15, 16, 17):
        graphs.pick(steps, may_pad=fail)
    graphs.prefer(16, 1.0, 2.0)
    with pytest.raises(AssertionError):
        graphs.pick(9, may_pad=fail)
    with pytest.raises(AssertionError):
        make_graphs(8, 16).pick(9, may_pad=fail)


def test_several_rows_have_their_own_graph() -> None:
    graphs = make_graphs(None, None, 8)
    graphs.assign(4, graphs.dynamic[1])
    assert [pick(graphs, 9, rows=rows)[0] for rows in (1, 3, 4, 32)] == [
        "0.onnx",
        "0.onnx",
        "1.onnx",
        "1.onnx",
    ]
    assert pick(graphs, None, rows=4)[0] == "1.onnx"
    assert pick(graphs, 8, rows=4)[0] == "2.onnx"
    graphs.assign(1, graphs.dynamic[1])
    assert graphs.one_row == graphs.dynamic[1]


def test_a_single_graph_runs_everything() -> None:
    graphs: Any = Graphs.single("the graph")  # type: ignore[arg-type]
    assert graphs.one_row == "the graph"
    assert graphs.pick(9, may_pad=lambda: True, rows=4) == GraphChoice("the graph", 9)
    assert graphs.pick(None, may_pad=lambda: True) == GraphChoice("the graph", None)


def test_a_bundle_without_graphs() -> None:
    with pytest.raises(BundleError, match="a bundle must have a graph"):
        make_graphs()
