"""`deploy-rnn score`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy_rnn.cli import main
from deploy_rnn.serving.scoring.job import Progress
from deploy_rnn.serving.scoring.parts import Parts
from deploy_rnn.serving.scoring.progress import Rate

Rows = list[dict[str, Any]]


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["score", *map(str, arguments)])


def test_all_rows_are_answered(
    bundle: Path, rows: Rows, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    result = run(bundle, write_lines(rows), "-o", output, "--output-name", "sentence")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert re.fullmatch(r"100 rows in [\d.]+ s, [\d,]+ rows/s\n", result.stderr)
    first = json.loads(output.read_text(encoding="utf-8").splitlines()[0])
    assert first.keys() == {"sentence"}


def test_rows_that_fail_have_an_exit_code_of_their_own(
    bundle: Path, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_lines([{"tokens": [1], "weight": 1, "id": 1}, "\x1b", {"weight": 1}])
    command = (bundle, path, "-o", tmp_path / "answers.jsonl", "--keep", "id")
    result = run(*command)
    assert result.exit_code == 3
    assert "; 2 failed\n  row 1: the line is not JSON: " in result.stderr
    assert "row 2: input `tokens` is missing" in result.stderr
    errors = tmp_path / "errors.jsonl"
    result = run(*command, "--errors", errors)
    assert result.stderr.endswith(f"Why is in {errors}.\n")
    assert len(errors.read_text(encoding="utf-8").splitlines()) == 2


def test_stdout_has_the_answers_and_nothing_else(
    bundle: Path, rows: Rows, write_lines: Callable[..., Path]
) -> None:
    lines = write_lines(rows[:3]).read_text(encoding="utf-8")
    result = CliRunner().invoke(main, ["score", str(bundle), "-", "-o", "-"], input=lines)
    assert result.exit_code == 0
    assert [json.loads(line).keys() for line in result.stdout.splitlines()] == [
        {"marks", "sentence"}
    ] * 3


def test_ctrl_c_says_how_to_go_on(
    bundle: Path,
    rows: Rows,
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(self: Any, *arguments: Any) -> None:
        raise KeyboardInterrupt

    command = (bundle, write_lines(rows), "-o", tmp_path / "answers.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "join", interrupt)
        result = run(*command)
    assert result.exit_code == 130
    assert result.stderr == (
        f"Finished windows are in {tmp_path / 'answers.jsonl.parts'}; the same command goes on after them, --restart "
        "begins anew.\nInterrupted.\n"
    )
    result = run(*command)
    assert "100 rows in " in result.stderr
    assert "; 100 of them were done before" in result.stderr


def test_bad_usage(bundle: Path, tmp_path: Path) -> None:
    result = run(bundle, tmp_path / "no.jsonl", "-o", tmp_path / "answers.jsonl")
    assert (result.exit_code, result.stderr) == (
        2, f"Error: {str(tmp_path / 'no.jsonl')!r} does not exist.\n",
    )  # fmt: skip


def test_progress_in_words() -> None:
    """The rate and the time left are those of this run."""
    rate = Rate()
    assert rate.describe(Progress(4000, 0, 4000, 0.4, 1.0)) == "4,000 rows, 40 %"
    text = rate.describe(Progress(5000, 2, 4000, 0.5, 3.0))
    assert text == "5,000 rows, 500 rows/s, 50 %, 0:00:10 left, 2 failed"
    assert rate.describe(Progress(5000, 0, 0, None, 3.0)) == "5,000 rows, 500 rows/s"
