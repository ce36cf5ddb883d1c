"""`deploy-rnn check`: a line for each way, exit code 0 for refusals, 2 for what cannot be judged."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy_rnn.cli import main
from deploy_rnn.errors import ExportError
from deploy_rnn.export import ways
from deploy_rnn.export.cli import check as command
from deploy_rnn.export.cli.target import Target
from deploy_rnn.export.ways import Check, Way
from deploy_rnn.tensor_spec import TensorSpec

REASON = "`rnn` is bidirectional, and cannot stream: its reverse direction starts at the last step of a sequence."
FOUND = Check(
    inputs=(TensorSpec("x", "float32", (2, 6, 3)),),
    milliseconds=123.4,
    ways=(
        Way("compile", reason="no compiler.", message="no compiler. Install one."),
        Way(".pt2", reason="no compiler.", message="no compiler. Install one."),
        Way("native", 0.1234, open=("B", "T")),
        Way("unrolled", 12.34, open=("B",), fixed={"T": 6}),
        Way("streaming", reason=REASON, message=REASON),
    ),
)
MODULE = """
import torch


def model():
    return torch.nn.GRU(3, 4), (torch.randn(6, 2, 3),)


def wrong_example():
    return torch.nn.GRU(3, 4), (torch.randn(6, 2, 7),)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of models in it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.delitem(sys.modules, "made_for_check", raising=False)
    (tmp_path / "made_for_check.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(monkeypatch: pytest.MonkeyPatch, *, columns: int, terminal: bool = True) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    target = Target(None, None, None, "made:model: Model")  # type: ignore[arg-type]
    return list(command._lines(FOUND, target, "made:model"))


def test_in_a_pipe_each_way_is_one_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, columns=40, terminal=False) == [
        "made:model: Model; x: float32 [2, 6, 3]",
        "  PyTorch                   123 ms",
        "  compile    refused  no compiler.",
        "  .pt2       refused  for the reason of compile",
        "  native     goes         0.123 ms   any B and T",
        "  unrolled   goes          12.3 ms   any B, T=6 only",
        f"  streaming  refused  {REASON}",
        "",
        "Next: deploy-rnn export made:model -o model.onnx",
    ]


@pytest.mark.parametrize("columns", [80, 120])
def test_in_a_terminal_lines_break_at_its_width(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = lines(monkeypatch, columns=columns)
    assert max(map(len, shown)) <= columns
    assert "\x1b" not in "".join(shown)
    start = shown.index(next(line for line in shown if line.startswith("  streaming")))
    assert shown[start + 1].startswith(" " * 22)
    text = " ".join(line.strip() for line in shown[start : shown.index("")])
    assert text == f"streaming  refused  {REASON}"


def test_colours_are_two_and_add_nothing_to_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    colored = lines(monkeypatch, columns=80)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = lines(monkeypatch, columns=80)
    codes = ("\x1b[31m", "\x1b[32m", "\x1b[0m")
    assert all(code in "\n".join(colored) for code in codes)
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in colored] == plain


def test_what_to_type_next_has_the_options_of_the_weights() -> None:
    options = {"key": "my model.rnn", "batch_first": True, "steps": 5}
    assert command._as_given("w.ckpt", options) == (
        "w.ckpt --key 'my model.rnn' --batch-first --steps 5"
    )


def test_refusals_are_results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        print("noise")
        raise ExportError("no. Do something else.")

    for name in ("compile", "package", "export_onnx"):
        monkeypatch.setattr(ways, name, refuse)
    done = CliRunner().invoke(main, ["check", "made_for_check:model"])
    assert done.exit_code == 0
    assert (
        "\n  compile    refused  no.\n  .pt2       refused  for the reason of compile\n"
        in done.stdout
    )
    assert "Next" not in done.stdout
    assert "noise" in done.stderr
    assert [path.name for path in Path().iterdir()] == ["made_for_check.py"]

    done = CliRunner().invoke(main, ["check", "made_for_check:model", "--json"])
    assert done.exit_code == 0
    fields = json.loads(done.stdout)
    assert fields["target"] == "made_for_check:model: GRU"
    assert [way["message"] for way in fields["ways"]] == ["no. Do something else."] * 7
    assert fields["inputs"] == [{"name": "input", "dtype": "float32", "shape": [6, 2, 3]}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere:model"], "there is no module `nowhere`"),
        (["made_for_check:model", "--steps", "3"], "--steps: only for a weights file"),
        (
            ["made_for_check:wrong_example"],
            "the model itself fails on its arguments: RuntimeError: ",
        ),
        (["none.pt"], "there is no file 'none.pt'."),
        ([], "Missing argument 'TARGET'"),
    ],
)
def test_what_cannot_be_judged_is_exit_code_2(
    arguments: list[str], message: str, folder: Path
) -> None:
    done = CliRunner().invoke(main, ["check", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
