"""The highlighter: its labels, its windows, its accuracy, and the demo as a user runs it."""

import ast
import html
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.color import Color
from rich.console import Console
from rich.style import Style
from safetensors import safe_open

from deploy_rnn.bundle import Manifest
from deploy_rnn.cli import main
from deploy_rnn.examples.highlight import demo, screen, train
from deploy_rnn.examples.highlight.annotate import annotate
from deploy_rnn.examples.highlight.labels import LABELS, label
from deploy_rnn.examples.highlight.model import (
    CHECKPOINT,
    CONTEXT,
    OTHER,
    OUTSIDE,
    WINDOW,
    Highlighter,
    encode,
    join,
    load,
    windows,
)  # fmt: skip
from deploy_rnn.timing import Timing

LETTERS = dict(zip("_ovcdkns#", LABELS, strict=True))
"""space, operator, name (v), call, definition, keyword, number, string, comment"""


def label_letters(source: str) -> str:
    return "".join(list(LETTERS)[index] for index in label(source))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\n", "v_o_n_"),
        ("def f(a): # é\n", "kkk_dovoo_###_"),
        ("class A: pass\n", "kkkkk_do_kkkk_"),
        ("f(x).g (y)", "covooc_ovo"),
        ("'''a\nb'''\n", "sssssssss_"),
        ("y = f'{x!r:>{w}} b'\n", "v_o_" + 15 * "s" + "_"),
        ("y = (f'a{f\"{z}\"}'\n  'b')\n", "v_o_o" + 12 * "s" + "___ssso_"),
        ("if x:\n\ty()\n", "kk_vo__coo_"),
        ("é = 'ü'\r\n", "v_o_sss__"),
        ("a = b\\\n+1", "v_o_vo_on"),
        ("# a\u2028b\nx = 1\n", "#####_v_o_n_"),  # a line end for str.splitlines, not for Python
    ],
)
def test_labels(source: str, expected: str) -> None:
    assert label_letters(source) == expected


def test_labels_refuse_what_is_not_python() -> None:
    with pytest.raises((tokenize.TokenError, SyntaxError)):
        label("'''never closed")


def test_annotations_are_python_and_repeatable() -> None:
    source = (
        "LIMIT = 3\n\nclass A(B):\n    def f(self, x, *args, y=1, **rest):\n        self.z = x\n"
        "        a = b = g(x, y=2)\n        return g(\n            c = 3,\n        )\n"
    )
    annotated_sources = {annotate(source, seed) for seed in range(30)}
    assert len(annotated_sources) > 20
    assert annotate(source, 7) == annotate(source, 7)
    nodes = [node for annotated in annotated_sources for node in ast.walk(ast.parse(annotated))]
    assert any(isinstance(node, ast.AnnAssign) for node in nodes)
    heads = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert any(head.returns for head in heads)
    assert any(head.args.kwonlyargs[0].annotation and head.args.kw_defaults[0] for head in heads)
    assert not any(head.args.args[0].annotation for head in heads)  # self


def test_characters_beyond_the_alphabet_are_one_number() -> None:
    codes = encode("a\té€😀\x00")
    assert codes.shape == (6,)
    assert (codes[2:] == OTHER).all()
    assert len(set(codes[:2])) == 2
    assert codes.max() < Highlighter().embed.num_embeddings
    assert encode("").shape == (0,)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 1000])
def test_windows_cover_a_file_once_and_join_puts_it_together(length: int) -> None:
    codes = np.arange(length) + 10
    parts = windows(codes)
    assert parts.shape == (-(-length // (WINDOW - 2 * CONTEXT)), WINDOW)
    assert np.array_equal(np.setdiff1d(parts, codes), [OUTSIDE])
    scores = np.eye(length + 11, dtype=np.int64)[
        parts
    ]  # the best "label" of a character is its number
    assert np.array_equal(join(scores, length), codes)


def test_the_checkpoint_is_small_and_plain() -> None:
    assert CHECKPOINT.stat().st_size < 700_000
    with safe_open(CHECKPOINT, "pt") as file:
        assert set(file.keys()) == set(Highlighter().state_dict())


def test_recurrent_weights_are_within_the_gain_they_were_trained_for() -> None:
    for name, weight in load().rnn.named_parameters():
        if name.startswith("weight_hh"):
            assert torch.linalg.matrix_norm(weight, 2) <= train.MAX_GAIN + 1e-4, name


def test_it_labels_code_that_it_has_not_seen() -> None:
    source = (
        'class Engine(Base):\n    """Runs."""\n\n'
        "    def run(self, x=0x1F):  # one step\n        return abs(x) + 1.5\n"
    )
    with torch.no_grad():
        scores = load()(torch.from_numpy(windows(encode(source)))).numpy()
    predicted = join(scores, len(source))
    visible = label(source) != LABELS.index("space")
    assert (predicted == label(source))[visible].mean() > 0.95


@pytest.mark.slow
def test_held_out_files_of_this_python_are_labelled_as_the_metrics_say() -> None:
    files = train.read(held_out=True)[:12]
    measured = train.accuracy(load(), files)
    stated = json.loads(CHECKPOINT.with_name("metrics.json").read_text(encoding="utf-8"))
    assert measured["accuracy"] > stated["accuracy"] - 0.03
    assert measured["accuracy"] > measured["majority_class"] + 0.2


@pytest.mark.slow
def test_training_learns_and_is_repeatable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [(encode(source), label(source)) for _, source in list(train.corpus())[:20] if source]
    monkeypatch.setattr(train, "read_for_training", lambda: few)
    models = [train.train(steps=12, batch=8, rate=4e-3, seed=1)[0] for _ in range(2)]
    first_weights, second_weights = (model.state_dict().values() for model in models)
    for first, second in zip(first_weights, second_weights, strict=True):
        assert torch.equal(first, second)
    untrained = train.accuracy(Highlighter().eval(), few[:3])
    assert train.accuracy(models[0], few[:3])["accuracy"] > untrained["accuracy"] + 0.1


def run_demo(
    *arguments: str | Path, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy_rnn", "demo", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_the_demo_on_its_sample(tmp_path: Path) -> None:
    """All that a newcomer sees is on one screen of 80 columns, and the commands at its end work."""
    finished = run_demo(cwd=tmp_path, COLUMNS="80")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert len(lines) <= 23  # and the prompt
    assert [line for line in lines[:-4] if len(line) > 80] == []
    assert [re.sub(r"\d+", "#", line[10:]) for line in lines[:4]] == [
        "loaded a trained highlighter: a #-layer bidirectional torch.nn.RNN",
        "compiled it",
        "exported it to ONNX in # forms, and compared each with PyTorch",
        "ran it in # ways: every time the same # labels",
    ]
    assert all(re.match(r" *\d+\.\d s  ", line) for line in lines[:4])
    assert masked(picture_lines())[:4] == masked(lines[:4])
    sample = demo.SAMPLE.read_text(encoding="utf-8")
    assert "\n".join(lines[5:10]) + "\n" == sample
    for name in ("native", "scan", "unrolled"):
        assert any(line.startswith(f"onnxruntime, {name} ") for line in lines)
    assert not finished.stderr
    folder = tmp_path / "build" / "demo"
    assert {file.name for file in folder.iterdir()} == {
        "highlight",
        "highlighted.html",
        "highlighter",
    }
    assert (folder / "highlighter" / "index.html").read_bytes() == (
        demo.SERVED_PAGE / "index.html"
    ).read_bytes()
    Manifest.read(folder / "highlight").check(folder / "highlight")
    reports = json.loads((folder / "highlight" / "report.json").read_text(encoding="utf-8"))
    assert [report["form"] for report in reports] == ["scan", "native", "unrolled"]
    assert all("CPUExecutionProvider" in report["providers"] for report in reports)
    page = (folder / "highlighted.html").read_text(encoding="utf-8")
    assert "headline" in page
    assert "<span class=" in page
    commands = [line.strip() for line in lines[-3:]]
    assert [command.split()[command.split().index("-m") + 2] if "-m" in command else command.split()[1]
            for command in commands] == ["serve", "inspect", "check"]  # fmt: skip
    for command in commands[1:]:
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    serve = commands[0].split()
    assert (tmp_path / serve[serve.index("serve") + 1] / "manifest.json").exists()
    assert (tmp_path / serve[serve.index("--page") + 1] / "index.html").exists()


def test_the_sample_is_coloured_right_and_has_every_label() -> None:
    source = demo.SAMPLE.read_text(encoding="utf-8")
    with torch.no_grad():
        scores = load()(torch.from_numpy(windows(encode(source)))).numpy()
    predicted = join(scores, len(source))
    visible = label(source) != LABELS.index("space")
    assert (predicted == label(source))[visible].all()
    assert {LABELS[index] for index in label(source)} == set(LABELS)
    assert max(map(len, source.splitlines())) <= 80


@pytest.mark.parametrize(
    ("background", "contrast"), [("#000000", 4.5), ("#292929", 3.3), ("#ffffff", 3.8)]
)
def test_every_colour_can_be_read_on_any_terminal_and_on_paper(
    background: str, contrast: float
) -> None:
    """WCAG asks for a contrast of 3 for graphics and large text; the default colour of a terminal needs none."""
    for name, style in screen.STYLES.items():
        color = Style.parse(style).color
        if color is None:
            continue
        assert color.number is not None
        assert color.number >= 16, f"{name}: a terminal's own palette may have any colour here"
        dark, light = sorted([luminance(color), luminance(Color.parse(background))])
        assert (light + 0.05) / (dark + 0.05) > contrast, name


def luminance(color: Color) -> float:
    red, green, blue = (linear(part) for part in color.get_truecolor())
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def linear(part: int) -> float:
    """A part of an sRGB colour, 0..255 -> its share of the light."""
    share = part / 255
    return float(share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4)


def runs_of(*milliseconds: float, spread: float = 1.1) -> dict[str, screen.Result]:
    """Ways of running the model, named "0", "1", ..., that took this long."""
    return {
        str(number): screen.Result(
            Timing(time / 1e3, time / 1e3, time * spread / 1e3), 1e-6, 0.1, 0
        )
        for number, time in enumerate(milliseconds)
    }


def table_lines(results: dict[str, screen.Result], *, with_speed: bool) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(screen.table(results, 5, with_speed=with_speed))
    return [re.split(r"  +", line.strip()) for line in console.export_text().splitlines()]


def test_the_table_has_ratios_only_if_nothing_disturbed_it() -> None:
    results = runs_of(10, 4, 250)
    assert table_lines(results, with_speed=True) == [
        ["5 windows in one run", "median ms", "quartiles", "speed", "nodes", "differs by"],
        ["0", "10.0", "10.0 - 11.0", "1.00x", "1.0e-06"],
        ["1", "4.0", "4.0 - 4.4", "2.50x", "1.0e-06"],
        ["2", "250", "250 - 275", "0.04x", "1.0e-06"],
    ]
    heading, *rows = table_lines(results, with_speed=False)
    assert "speed" not in heading
    assert not any("x" in cell for row in rows for cell in row)
    results["compiled"] = screen.Result(missing="needs a C++ compiler, such as g++")
    assert table_lines(results, with_speed=True)[4] == ["compiled", "not run"]


def test_what_disturbs_a_measurement_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert screen.disturbance(runs_of(10, 4), 2.0) is None
    assert screen.disturbance(runs_of(10, 4), None) is None
    assert screen.disturbance(runs_of(10, 4), 2.1) == (
        "The machine is busy (load 2.1 on 2 cores): no ratios, since times vary."
    )
    assert screen.disturbance({**runs_of(10), "scan": runs_of(4, spread=2.5)["0"]}, 0.1) == (
        "Something else ran: no ratios, since the times of scan vary."
    )


def test_the_picture_in_the_readme_is_of_the_demo_as_it_is() -> None:
    """Apart from its figures. If not: python -m deploy_rnn.examples.highlight.screenshot, on a quiet machine."""
    source = demo.SAMPLE.read_text(encoding="utf-8")
    results = dict(zip(WAYS, runs_of(5, 4, 3, 2, 1).values(), strict=True))
    for name in list(WAYS)[-3:]:
        results[name] = replace(results[name], nodes=10)
    results["torch.nn.RNN"] = replace(results["torch.nn.RNN"], difference=0.0)
    console = Console(file=io.StringIO(), width=80, record=True)
    demo._show(console, source, label(source), results, 5, None)
    bundle = Path("build/demo/highlight")
    demo._show_next(console, bundle.parent, bundle / "unrolled-128.onnx")
    console.print()  # the picture has an empty line at the end
    assert masked(picture_lines())[4:] == masked(console.export_text().splitlines())


WAYS = (
    "torch.nn.RNN", "deploy_rnn, compiled", "onnxruntime, native", "onnxruntime, scan", "onnxruntime, unrolled",
)  # fmt: skip


def picture_lines() -> list[str]:
    """The lines of the terminal in docs/demo.svg."""
    svg = (Path(__file__).parents[2] / "docs" / "demo.svg").read_text(encoding="utf-8")
    pieces = re.findall(r'<text class="\S+-r\d+" [^>]*-line-(\d+)\)">([^<]*)</text>', svg)
    lines: dict[int, str] = {}
    for number, text in pieces:
        lines[int(number)] = lines.get(int(number), "") + html.unescape(text)
    return [lines.get(number, "") for number in range(max(lines) + 1)]


def masked(lines: list[str]) -> list[str]:
    """Without white space, and what may differ from run to run: figures, and how the program is typed."""
    masked_lines = []
    for line in lines:
        text = re.sub(
            r"^ *(\S*deploy-rnn|\S+ -m deploy_rnn) ", "deploy-rnn ", line.replace("\xa0", " ")
        )
        masked_lines.append(re.sub(r"(\d[\d.,]*(e[-+]\d+)?)+", "#", "".join(text.split())))
    return masked_lines


def test_every_sentence_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert len(screen.disturbance(runs_of(10, 4), 1234.5) or "") in range(1, 81)
    for name in WAYS:
        results = {name: runs_of(10, spread=3)["0"]}
        assert len(screen.disturbance(results, None) or "") in range(1, 81)


def test_labels_that_differ_are_counted() -> None:
    results = runs_of(10, 4)
    assert screen.describe_labels(results, 1234) == "every time the same 1,234 labels"
    results["1"] = screen.Result(labels_changed=3)
    assert "3 by 1" in screen.describe_labels(results, 1234)


@pytest.mark.parametrize(("missing", "named"), [
    (["torch"], "`torch`"), (["safetensors"], "`safetensors`"), (["onnxruntime", "onnx"], "`onnx`, `onnxruntime`"),
    (["onnxscript"], "`onnxscript`"), (["onnx_ir"], "`onnx_ir`"),
])  # fmt: skip
def test_without_an_optional_package_the_demo_says_at_once_what_to_install(
    missing: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in missing:
        monkeypatch.setitem(sys.modules, module, None)
    finished = CliRunner().invoke(main, ["demo"])
    assert finished.exit_code == 2
    command = "pip install -e '.[examples,onnxruntime]'"
    assert finished.output == f"Error: the demo needs {named}; run, in the repository: {command}\n"


def test_the_commands_at_the_end_are_typed_as_this_program_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the PATH, in a virtual environment that is not active, or without a script."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "")
    assert (
        screen.next_commands(Path("out"), Path("out/highlight/g.onnx"))[2]
        == ".venv/bin/python -m deploy_rnn check --help"
    )
    script = folder / "deploy-rnn"
    script.write_text("#!/bin/sh\n", encoding="utf-8")
    script.chmod(0o755)
    assert screen.next_commands(Path("out"), Path("out/highlight/g.onnx")) == [
        ".venv/bin/deploy-rnn serve out/highlight --page out/highlighter",
        ".venv/bin/deploy-rnn inspect out/highlight/g.onnx",
        ".venv/bin/deploy-rnn check --help",
    ]
    monkeypatch.setenv("PATH", str(folder))
    assert (
        screen.next_commands(Path("a b"), Path("a b/highlight/g.onnx"))[1]
        == "deploy-rnn inspect 'a b/highlight/g.onnx'"
    )


@pytest.mark.slow
def test_the_demo_as_json_on_another_file_without_a_compiler(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_bytes("\ufeffx = 'naïve'\r\n".encode())
    finished = run_demo(
        "tiny.py", "--json", "-o", "output", cwd=tmp_path, CXX="/nowhere/g++",
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"), TORCHINDUCTOR_FORCE_DISABLE_CACHES="1",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert result["characters"] == 12
    assert tuple(result["results"]) == WAYS
    compiled = result["results"].pop("deploy_rnn, compiled")
    assert compiled["missing"] == "needs a C++ compiler, such as g++"
    for reader in result["results"].values():
        assert reader["difference"] < 1e-5
        assert reader["labels_changed"] == 0
    assert (tmp_path / "output" / "highlight" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Error: cannot read 'file.py': no such file or directory.\n"),
        (b"", "Error: 'file.py' is empty; give a file with Python source.\n"),
        (b"\xef\xbb\xbf", "Error: 'file.py' is empty; give a file with Python source.\n"),
        (b" \n\n", "Error: 'file.py' is empty; give a file with Python source.\n"),
        (
            b"\x7fELF\x00\x01",
            "Error: 'file.py' is binary, or UTF-16; give Python source in UTF-8.\n",
        ),
        (
            "x = 'a'".encode("utf-16"),
            "Error: 'file.py' is binary, or UTF-16; give Python source in UTF-8.\n",
        ),
        (
            b"x = '\xe9'",
            "Error: 'file.py' is not UTF-8 (byte 0xe9 at 5); convert it to UTF-8 first.\n",
        ),
    ],
    ids=["missing", "empty", "byte order mark", "blank", "binary", "utf-16", "latin-1"],
)
def test_a_file_that_cannot_be_read_is_one_line_and_exit_code_2(
    content: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("file.py").write_bytes(content)
    finished = CliRunner().invoke(main, ["demo", "file.py"])
    assert finished.exit_code == 2
    assert finished.output == message
    assert not Path("build").exists()


def test_a_folder_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    finished = CliRunner().invoke(main, ["demo", str(tmp_path)])
    assert finished.exit_code == 2
    assert finished.output == f"Error: cannot read {str(tmp_path)!r}: it is a folder.\n"


def test_a_pipe_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    finished = CliRunner().invoke(main, ["demo", str(tmp_path / "pipe.py")])
    assert (finished.exit_code, finished.output) == (
        2,
        f"Error: cannot read {str(tmp_path / 'pipe.py')!r}: it is a device or pipe.\n",
    )


def test_a_folder_that_cannot_be_made_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text("x = 1\n", encoding="utf-8")
    finished = CliRunner().invoke(
        main, ["demo", str(tmp_path / "tiny.py"), "-o", str(tmp_path / "tiny.py" / "sub")]
    )
    assert finished.exit_code == 2
    assert (
        finished.output
        == f"Error: cannot make the folder {str(tmp_path / 'tiny.py' / 'sub')!r}: not a directory.\n"
    )


def test_control_characters_do_not_move_the_colours() -> None:
    source = "a\x0c= 'bc'\x1b\n"
    text = screen.coloured(source, label("a = 'bc' \n"))
    assert text.plain == "a\u240c= 'bc'\u241b\n"
    assert [
        (span.start, span.end) for span in text.spans if span.style == screen.STYLES["string"]
    ] == [(4, 8)]


def test_a_runtime_that_disagrees_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.py").write_text("x = 1\n", encoding="utf-8")
    original = demo._torch_reader
    monkeypatch.setattr(
        demo, "_compiled_reader", lambda model, _: lambda batch: original(model)(batch) * 1.001
    )
    finished = CliRunner().invoke(main, ["demo", str(tmp_path / "tiny.py"), "-o", str(tmp_path)])
    assert finished.exit_code == 1
    assert re.search(
        r"Error: deploy_rnn, compiled differs from torch.nn.RNN by \d.0e-03, \d+ times what is",
        finished.output,
    )
