"""Rows and answers in Parquet and Arrow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import InputError
from deploy_rnn.serving import score
from deploy_rnn.serving.scoring.answers import Answer
from deploy_rnn.serving.scoring.rows import Span

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `score`)")
pq = pytest.importorskip("pyarrow.parquet")
arrow = pytest.importorskip("deploy_rnn.serving.scoring.arrow")

Rows = list[dict[str, Any]]
Run = Callable[[dict[str, Any]], dict[str, np.ndarray]]


def table_of(rows: Rows) -> Any:
    return pa.table(
        {
            "name": [f"row {number}" for number in range(len(rows))],
            "tokens": pa.array([row["tokens"] for row in rows], pa.list_(pa.int32())),
            "weight": pa.array([row["weight"] for row in rows], pa.float64()),
        }
    )


def write_parquet(table: Any, path: Path) -> None:
    pq.write_table(table, path, row_group_size=23)


def write_file(table: Any, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=17)


def write_stream(table: Any, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=17)


def read(path: Path) -> Any:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "rows.parquet": write_parquet,
    "rows.arrow": write_file,
    "rows.arrows": write_stream,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_row_has_the_answer_of_the_engine(
    name: str, bundle: Path, rows: Rows, answer: Run, tmp_path: Path
) -> None:
    WRITERS[name](table_of(rows), tmp_path / name)
    output = tmp_path / f"answers.{name}"
    report = score(bundle, tmp_path / name, output, keep=["name"], window=30, processes=1)
    assert (report.rows, report.failed) == (100, 0)
    answers = read(output)
    assert answers.column_names == ["name", "marks", "sentence"]
    for number, (row, values) in enumerate(zip(rows, answers.to_pylist(), strict=True)):
        assert values.pop("name") == f"row {number}"
        for key, array in answer(row).items():
            np.testing.assert_allclose(values[key], array, atol=1e-5)


def test_rows_that_are_bad_are_null(bundle: Path, tmp_path: Path) -> None:
    table = pa.table(
        {
            "tokens": [[1, 2], None, [3, None], [4, 99], [5]],
            "weight": [1.0, 2.0, 3.0, 4.0, None],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    output = tmp_path / "answers.parquet"
    report = score(bundle, tmp_path / "rows.parquet", output)
    assert [row for row, _ in report.reasons] == [1, 2, 3, 4]
    reasons = [reason for _, reason in report.reasons]
    assert reasons[0].startswith("input `tokens` is missing")
    assert reasons[1] == "`tokens` contains null."
    assert reasons[2].startswith("`tokens` has 99 at ")
    assert reasons[3].startswith("input `weight` is missing")
    assert [value is None for value in read(output)["marks"].to_pylist()] == [False, *[True] * 4]


def test_the_formats_have_the_same_answers(bundle: Path, rows: Rows, tmp_path: Path) -> None:
    """Also after some windows were done before, of which none is read again."""
    write_parquet(table_of(rows), tmp_path / "rows.parquet")
    options: dict[str, Any] = {"keep": ["name"], "window": 30, "processes": 1}
    score(bundle, tmp_path / "rows.parquet", tmp_path / "answers.jsonl", **options)
    score(bundle, tmp_path / "rows.parquet", tmp_path / "answers.feather", **options)
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    for line, values in zip(lines, read(tmp_path / "answers.feather").to_pylist(), strict=True):
        expected = json.loads(line)
        assert values["name"] == expected["name"]
        np.testing.assert_array_equal(np.float32(values["marks"]), np.float32(expected["marks"]))


@pytest.mark.parametrize("name", WRITERS)
def test_windows_are_read_from_anywhere(name: str, rows: Rows, tmp_path: Path) -> None:
    WRITERS[name](table_of(rows), tmp_path / name)
    source = arrow.ArrowSource(tmp_path / name, "parquet" if "parquet" in name else "arrow")
    spans = list(source.spans(30, {30: 30}))
    assert [(span.first, span.rows) for span in spans] == [(0, 30), (60, 30), (90, 10)]
    for span in [spans[1], spans[0], spans[2], Span(7, 40, 7, 40)]:
        made = source.reader.rows(span, source.fetch(span))
        names = [row.values["name"] for row in made]
        assert names == [f"row {number}" for number in range(span.first, span.first + span.rows)]
        tokens = [row.values["tokens"].tolist() for row in made]
        expected = rows[span.first : span.first + span.rows]
        assert tokens == [row["tokens"] for row in expected]
    source.close()


TENSORS = [
    pa.array([[[1, 2], [3, 4]], [[5, 6]]], pa.list_(pa.list_(pa.float32(), 2))),
    pa.array([[[1, 2], [3, 4]], [[5, 6]]], pa.large_list(pa.list_(pa.float16()))),
    pa.array([[[1, 2], [3, 4]], [[5, 6]]], pa.list_(pa.large_list(pa.int8()))),
]


@pytest.mark.parametrize("column", TENSORS)
def test_lists_of_lists_are_tensors(column: Any) -> None:
    first, second = arrow._Numbers(column).rows()
    assert first.tolist() == [[1, 2], [3, 4]]
    assert second.tolist() == [[5, 6]]


def test_columns_of_tensors_and_what_is_none() -> None:
    storage = pa.array([[1, 2, 3, 4, 5, 6], None], pa.list_(pa.int32(), 6))
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int32(), [2, 3]), storage)
    assert [row if row is None else row.tolist() for row in arrow._Numbers(tensors).rows()] == [
        [[1, 2, 3], [4, 5, 6]],
        None,
    ]
    rows = arrow._Numbers(pa.array([[[1], [2, 3]], [[4], None], [[5], [None]], [], [[6]]])).rows()
    reasons = [row.reason if isinstance(row, arrow._Broken) else row.tolist() for row in rows]
    assert reasons == [
        "has data that is not a tensor: lists of different lengths.",
        "contains null.",
        "contains null.",
        [],
        [[6]],
    ]


def test_outputs_of_any_shape_are_lists(tmp_path: Path) -> None:
    outputs = [
        Tensor("a", "float32", ()),
        Tensor("b", "bool", ("T",)),
        Tensor("c", "int8", ("N", 2, "M")),
    ]
    form = arrow.ArrowAnswers("arrow", outputs, [])
    values = [
        {"a": np.array(1.5, np.float32), "b": np.array([True]), "c": np.ones((1, 2, 3), np.int8)},
        {"a": np.array(2.5, np.float32), "b": np.array([], bool), "c": np.ones((0, 2, 1), np.int8)},
    ]
    answers = [Answer(values[0]), Answer(None), Answer(values[1])]
    (tmp_path / "part").write_bytes(form.encode(answers))
    form.join([tmp_path / "part"], tmp_path / "whole.arrow")
    assert read(tmp_path / "whole.arrow").to_pylist() == [
        {"a": 1.5, "b": [True], "c": [[[1, 1, 1], [1, 1, 1]]]},
        {"a": None, "b": None, "c": None},
        {"a": 2.5, "b": [], "c": []},
    ]


@pytest.mark.parametrize(
    ("columns", "keep", "message"),
    [
        ({"tokens": [["a"]], "weight": [1.0]}, (), "`tokens` is not of numbers, the model takes int64."),
        ({"tokens": [[1.5]], "weight": [1.0]}, (), "`tokens` is float64, the model takes int64."),
        ({"tokens": [[1]], "weight": [1.0], "id": [1]}, (), "there is no input `id`; the inputs are tokens, weight, "),
        ({"tokens": [[1]]}, (), "input `weight` is missing"),
        ({"tokens": [[1]], "weight": [1.0]}, ("id",), "`keep` has 'id', which is not in "),
    ],
)  # fmt: skip
def test_columns_are_checked_at_once(
    columns: dict[str, Any], keep: Any, message: str, bundle: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(InputError) as raised:
        score(bundle, tmp_path / "rows.parquet", tmp_path / "answers.parquet", keep=keep)
    assert str(raised.value).startswith(message)


def test_files_of_another_kind_are_refused(bundle: Path, tmp_path: Path) -> None:
    for name, kind in (("rows.parquet", "a Parquet"), ("rows.arrow", "an Arrow")):
        (tmp_path / name).write_text("nothing", encoding="utf-8")
        with pytest.raises(InputError, match=f"{name}' is not {kind} file: "):
            score(bundle, tmp_path / name, tmp_path / "answers.jsonl")
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"tokens": [1], "weight": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match="`keep` copies columns to parquet from Parquet and Arrow"):
        score(bundle, lines, tmp_path / "answers.parquet", keep=["id"])


def test_an_empty_file_has_an_empty_one(bundle: Path, rows: Rows, tmp_path: Path) -> None:
    pq.write_table(table_of(rows)[:0], tmp_path / "rows.parquet")
    score(bundle, tmp_path / "rows.parquet", tmp_path / "answers.parquet", keep=["name"])
    answers = read(tmp_path / "answers.parquet")
    assert (answers.num_rows, answers.column_names) == (0, ["name", "marks", "sentence"])
