"""A file of rows to a file of answers."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy_rnn.errors import BundleError, InputError, RunError
from deploy_rnn.serving import score
from deploy_rnn.serving.scoring import json_lines, workers
from deploy_rnn.serving.scoring import rows as rows_module
from deploy_rnn.serving.scoring.identity import model_digest
from deploy_rnn.serving.scoring.job import Progress
from deploy_rnn.serving.scoring.json_lines import JsonLines, JsonLinesAnswers
from deploy_rnn.serving.scoring.options import Options
from deploy_rnn.serving.scoring.parts import PartFiles
from deploy_rnn.serving.scoring.scorer import Scorer
from deploy_rnn.serving.scoring.worker import Setup
from deploy_rnn.serving.scoring.workers import Workers

Rows = list[dict[str, Any]]
Answer = Callable[[dict[str, Any]], dict[str, np.ndarray]]


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check(answers: list[Any], rows: Rows, answer: Answer) -> None:
    """The answers are those of `Engine`, in the order of the rows."""
    assert len(answers) == len(rows)
    for row, values in zip(rows, answers, strict=True):
        expected = answer(row)
        assert values.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(values[name], array, atol=1e-5)


def test_every_row_has_the_answer_of_the_engine(
    bundle: Path, rows: Rows, write_lines: Callable[..., Path], answer: Answer, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    report = score(bundle, write_lines(rows), output, window=30, processes=1)
    assert (report.rows, report.failed, report.resumed) == (100, 0, 0)
    check(read_lines(output), rows, answer)
    assert not (tmp_path / "answers.jsonl.parts").exists()


def test_the_answers_do_not_depend_on_the_number_of_processes(
    bundle: Path, rows: Rows, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_lines(rows)
    for processes in (1, 2):
        score(bundle, path, tmp_path / f"{processes}.jsonl", window=20, processes=processes)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_large_inputs_have_larger_windows(bundle: Path, tmp_path: Path) -> None:
    scorer = Scorer(Options(str(bundle)))
    sizes = [None, 0, 5_000, 32_000, 10_000_000]
    assert [scorer.window(rows) for rows in sizes] == [512, 512, 512, 1000, 2048]
    assert Scorer(Options(str(bundle), window=7)).window(10_000_000) == 7
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"tokens": [1, 2, 3]}\n' * 100_000)  # more than what is looked at
    assert JsonLines(path).about_rows() == pytest.approx(100_000, rel=1e-3)
    path.write_bytes(b"{}")
    assert JsonLines(path).about_rows() == 1
    path.write_bytes(b"")
    assert JsonLines(path).about_rows() == 0


def test_a_part_that_cannot_be_written_ends_the_score(
    bundle: Path, rows: Rows, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    """Each process writes a part while it answers the next window."""
    source = JsonLines(write_lines(rows))
    files = PartFiles(tmp_path / "removed", "run", ".jsonl")
    setup = Setup(
        Options(str(bundle)), source.reader, JsonLinesAnswers(), files, model_digest(str(bundle))
    )
    running = Workers(lambda: setup, source, 1).run(source.spans(100, {}))
    with pytest.raises(FileNotFoundError, match="removed"):
        list(running)
    source.close()


BAD_ROWS = [
    ('{"tokens": [1, 2], "weight": 1', "the line is not JSON: "),
    ("[1, 2]", "the line must be an object keyed by input names, got a list of 2."),
    ({"tokens": [1, 2]}, "input `weight` is missing; the inputs are tokens, weight, lengths."),
    ({"tokens": [1], "weight": 1, "token": [1]}, "there is no input `token`; "),
    ({"tokens": [1, 20], "weight": 1}, "`tokens` has 20 at [0, 1]; must be from 0 to 19: "),
    ({"tokens": [1, -1], "weight": 1}, "`tokens` has -1 at [0, 1]; must be from 0 to 19: "),
    ({"tokens": [1.5], "weight": 1}, "`tokens` contains values that are not INT64, such as 1.5."),
    ({"tokens": "abc", "weight": 1}, '`tokens` contains values that are not INT64, such as "abc".'),
    ({"tokens": [[1], [2]], "weight": 1}, "`tokens` has shape [2, 1]; in a row, the model takes tokens: int64 [T] "),
    ({"tokens": [[1], [2, 3]], "weight": 1}, "`tokens` has data that is not a tensor: lists of different lengths."),
    ({"tokens": [], "weight": 1}, "`tokens` has shape [0]; "),
    ({"tokens": None, "weight": 1}, "input `tokens` is missing"),
    ({"tokens": [1, 2], "weight": 1, "lengths": 3}, "`lengths` has 3 in row 0; a row has 1 to 2 steps."),
    ('{"tokens": [1], "weight": NaN}', "the line is not JSON: "),
    ({"tokens": [1], "weight": 1e300}, "`weight` contains values out of range for FP32."),
]  # fmt: skip


def test_a_bad_row_is_reported_and_the_others_are_answered(
    bundle: Path, rows: Rows, write_lines: Callable[..., Path], answer: Answer, tmp_path: Path
) -> None:
    mixed: list[Any] = []
    for good, (bad, _) in zip(rows, BAD_ROWS, strict=False):
        mixed += [good, "", bad]
    output = tmp_path / "answers.jsonl"
    errors = tmp_path / "errors.jsonl"
    report = score(bundle, write_lines(mixed), output, errors=errors, window=7, processes=1)
    assert (report.rows, report.failed) == (2 * len(BAD_ROWS), len(BAD_ROWS))
    answers = read_lines(output)
    check(answers[::2], rows[: len(BAD_ROWS)], answer)
    assert answers[1::2] == [{}] * len(BAD_ROWS)
    for index, (record, (_, reason)) in enumerate(zip(read_lines(errors), BAD_ROWS, strict=True)):
        # A line with nothing on it is not a row.
        assert (record["row"], record["line"]) == (2 * index + 1, 3 * index + 3)
        assert record["reason"].startswith(reason)
    assert report.reasons[0] == (1, read_lines(errors)[0]["reason"])


def test_kept_values_are_copied_and_lengths_may_be_given(
    bundle: Path, write_lines: Callable[..., Path], answer: Answer, tmp_path: Path
) -> None:
    rows = [
        {"tokens": [1, 2, 3], "weight": 1, "lengths": 2, "id": "ü", "more": {"a": [1]}},
        {"tokens": [1, 2, 3], "weight": 1, "lengths": 9, "id": "bad"},
    ]
    output = tmp_path / "answers.jsonl"
    path = write_lines(rows)
    score(bundle, path, output, keep=["id", "more", "lengths"], outputs=["sentence"])
    good, bad = read_lines(output)
    np.testing.assert_allclose(good.pop("sentence"), answer(rows[0])["sentence"], atol=1e-5)
    assert good == {"id": "ü", "more": {"a": [1]}, "lengths": 2}
    assert bad == {"id": "bad", "more": None, "lengths": 9}


def test_a_file_as_other_systems_write_it(
    bundle: Path, answer: Answer, rows: Rows, tmp_path: Path
) -> None:
    """A byte order mark, ends of lines of Windows, and no end of the last line."""
    path = tmp_path / "rows.jsonl"
    lines = "\r\n".join(json.dumps(row) for row in rows[:3])
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    score(bundle, path, tmp_path / "answers.jsonl", window=2, processes=1)
    check(read_lines(tmp_path / "answers.jsonl"), rows[:3], answer)


def test_an_empty_file_has_no_answers(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    report = score(bundle, tmp_path / "rows.jsonl", tmp_path / "answers.jsonl")
    assert report.rows == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == b""


def test_a_line_that_is_too_long_is_not_read(
    bundle: Path,
    rows: Rows,
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_lines, "MOST_LINE_BYTES", 200)
    monkeypatch.setattr(json_lines, "WINDOW_BYTES", 300)
    short = {"tokens": [1, 2], "weight": 1}
    long = {"tokens": [1] * 500, "weight": 1}
    path = write_lines([short, long, short, long])
    report = score(bundle, path, tmp_path / "answers.jsonl", processes=1)
    assert report.reasons == (
        (1, "the line is longer than 200 bytes."),
        (3, "the line is longer than 200 bytes."),
    )
    assert [bool(values) for values in read_lines(tmp_path / "answers.jsonl")] == [True, False] * 2


def test_the_standard_librarys_json_gives_the_same(
    bundle: Path,
    rows: Rows,
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_lines([*rows[:9], '{"tokens": [NaN]}', "nothing"])
    score(bundle, path, tmp_path / "1.jsonl", errors=tmp_path / "e1.jsonl")
    monkeypatch.setattr(json_lines, "orjson", None)
    score(bundle, path, tmp_path / "2.jsonl", errors=tmp_path / "e2.jsonl")
    assert read_lines(tmp_path / "1.jsonl") == read_lines(tmp_path / "2.jsonl")
    assert len(read_lines(tmp_path / "e2.jsonl")) == 2


def save_graph(path: Path, nodes: list[onnx.NodeProto], inputs: Any, outputs: Any) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_a_plain_file_takes_a_row_as_its_graph_has_it(
    write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    model = save_graph(
        tmp_path / "model.onnx",
        [helper.make_node("Log", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "steps", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "steps", 2])],
    )
    path = write_lines([{"x": [[[1, 1], [1, 1]]]}, {"x": [[1, 1]]}, {"x": [[[0, 1]]]}])
    report = score(model, path, tmp_path / "answers.jsonl")
    assert read_lines(tmp_path / "answers.jsonl") == [{"y": [[[0, 0], [0, 0]]]}, {}, {}]
    assert report.reasons == (
        (1, "`x` has shape [1, 2]; in a row, the model takes x: float32 [1, steps, 2] with no size 0."),
        (2, "output `y` contains NaN or infinity, which JSON cannot represent; write another format."),
    )  # fmt: skip


def test_one_row_that_fails_does_not_take_others_with_it(
    bundle: Path,
    rows: Rows,
    write_lines: Callable[..., Path],
    answer: Answer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deploy_rnn.serving.engine.batch_engine import BatchEngine

    run = BatchEngine.run

    def fail_at_sevens(self: Any, choice: Any, batch: Any, *rest: Any) -> Any:
        if any(7 in feeds.arrays["tokens"] for feeds in batch):
            raise RunError("there is a seven.")
        return run(self, choice, batch, *rest)

    monkeypatch.setattr(BatchEngine, "run", fail_at_sevens)
    report = score(bundle, write_lines(rows), tmp_path / "answers.jsonl", processes=1)
    failing = [row for row in rows if 7 in row["tokens"]]
    assert report.failed == len(failing) > 0
    answers = read_lines(tmp_path / "answers.jsonl")
    assert [row for row, values in zip(rows, answers, strict=True) if not values] == failing
    good = [row for row in rows if row not in failing]
    check([values for values in answers if values], good, answer)


def test_nan_is_passed_on_or_refused(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    weights = np.array([1, np.nan], np.float32)
    np.savez(path, tokens=np.array([[1, 2], [3, 4]]), weight=weights)
    score(bundle, path, tmp_path / "answers.npz")
    with np.load(tmp_path / "answers.npz") as answers:
        assert np.isnan(answers["sentence"]).any(1).tolist() == [False, True]
    report = score(bundle, path, tmp_path / "answers.npz", finite=True)
    assert report.reasons == ((1, "`weight` contains NaN or infinity."),)


def test_stdin_and_stdout(
    bundle: Path,
    rows: Rows,
    answer: Answer,
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    data = write_lines([*rows, "no"]).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    report = score(bundle, "-", "-", window=30, processes=2, errors=tmp_path / "errors.jsonl")
    lines = capfdbinary.readouterr().out.splitlines()
    check([json.loads(line) for line in lines[:-1]], rows, answer)
    assert (report.rows, lines[-1]) == (101, b"{}")
    assert read_lines(tmp_path / "errors.jsonl")[0]["row"] == 100


def test_a_reader_of_stdout_that_leaves_ends_the_processes(
    bundle: Path, rows: Rows, write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = []
    start = workers._start

    def noted_start() -> Any:
        processes.append(start())
        return processes[-1]

    monkeypatch.setattr(workers, "_start", noted_start)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        with pytest.raises(RunError, match="whoever reads stdout has left") as raised:
            score(bundle, write_lines(rows), "-", window=10, processes=2)
    # Its traceback holds the frames, and with them whatever they have not closed.
    assert raised.tb is not None
    assert [process.returncode is None for process in processes] == [False, False]


def test_stdout_that_is_closed_is_said_at_once(
    bundle: Path, rows: Rows, write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(InputError, match="stdout is closed; give a file as `output`"):
        score(bundle, write_lines(rows), "-")


def test_progress_is_told(
    bundle: Path, rows: Rows, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    told: list[Progress] = []
    path = write_lines(rows)
    score(bundle, path, tmp_path / "answers.jsonl", window=50, processes=1, progress=told.append)
    assert [(progress.rows, progress.failed) for progress in told] == [(0, 0), (50, 0), (100, 0)]
    shares = [progress.share for progress in told]
    assert shares[0] == 0
    assert shares[2] == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": "missing.jsonl"}, FileNotFoundError, "'missing.jsonl' does not exist."),
        ({"output": "a.txt"}, ValueError, "the name 'a.txt' does not tell the format; give one of jsonl, npz, "),
        ({"output_format": "csv"}, ValueError, "the format 'csv' is unknown; must be one of jsonl, npz"),
        ({"output": "nowhere/a.jsonl"}, FileNotFoundError, "the folder of 'nowhere/a.jsonl' does not exist"),
        ({"model": "."}, BundleError, "'.' is not a bundle: manifest.json is missing."),
        ({"outputs": ["mark"]}, InputError, "there is no output `mark`; the outputs are marks, sentence."),
        ({"keep": ["marks"]}, InputError, "`keep` has 'marks', which is an output, too."),
        ({"output": "rows.jsonl"}, ValueError, "`output` (='rows.jsonl') must not be the file of `input`."),
        ({"errors": "./answers.jsonl"}, ValueError, "`errors` (='./answers.jsonl') must not be the file of `output`."),
        ({"engine": "spark"}, ValueError, "`engine` (='spark') must be one of local, ray."),
        ({"rows": 0}, ValueError, "`rows` (=0) must be a whole number from 1."),
        ({"waste": 1.0}, ValueError, "`waste` (=1.0) must be from 0 to below 1: it is a share."),
        ({"processes": 0}, ValueError, "`processes` (=0) must be a whole number from 1"),
        ({"output": "a.npz", "output_format": "npz", "keep": ["id"]}, InputError, "`keep` copies nothing to .npz"),
    ],
)  # fmt: skip
def test_arguments_are_checked(
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
    bundle: Path,
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_lines([{"tokens": [1], "weight": 1}])
    monkeypatch.chdir(tmp_path)
    arguments = {"model": bundle, "input": "rows.jsonl", "output": "answers.jsonl", **changes}
    with pytest.raises(error) as raised:
        score(**arguments)
    assert str(raised.value).startswith(message)
    assert not list(tmp_path.glob("*.parts"))


def test_numbers_of_another_dtype_are_converted_if_they_fit() -> None:
    as_array = rows_module.as_array
    assert as_array("x", np.array([1, 2], np.int32), "int64").dtype == np.int64
    assert as_array("x", np.array([1.5]), "float32").dtype == np.float32
    assert as_array("x", np.array([1, 2], np.uint8), "float32").tolist() == [1, 2]
    assert np.isinf(as_array("x", np.array([np.inf]), "float32")).all()
    for value, dtype, message in [
        (np.array([1.5]), "int64", "`x` is float64, the model takes int64."),
        (np.array([True]), "float32", "`x` is bool, the model takes float32."),
        (np.array(["a"]), "int64", "`x` is <U1, the model takes int64."),
        (np.array([300]), "int8", "`x` contains values out of range for int8."),
        (np.array([-1]), "uint64", "`x` contains values out of range for uint64."),
        (np.array([1e300]), "float32", "`x` contains values out of range for float32."),
    ]:
        with pytest.raises(InputError) as raised:
            as_array("x", value, dtype)
        assert str(raised.value) == message
