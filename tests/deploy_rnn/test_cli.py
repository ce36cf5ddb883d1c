"""`deploy-rnn export`, `verify` and `inspect` as they are used: exit codes, messages, JSON, and no traceback."""

import inspect
import json
import os
import pty
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper
from torch import nn

from deploy_rnn.cli import main
from deploy_rnn.export import export_bundle, export_onnx, verify, write_triton_model
from deploy_rnn.export.cli import commands
from deploy_rnn.export.cli.target import from_weights
from deploy_rnn.export.forms import FORMS
from deploy_rnn.export.options import DEFAULTS
from deploy_rnn.serving import Limits, Model, Settings
from deploy_rnn.serving.cli import serve

MODULE = """
import sys

import torch
from torch import nn

print("noise while it is imported")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4)

    def forward(self, x, scale=None):
        y = self.rnn(x)[0]
        return y if scale is None else y * scale


def model():
    torch.manual_seed(1)
    return Model()


def plain():
    print("noise while it is called")
    return model(), (torch.randn(5, 2, 3),)


def keyword():
    return model(), torch.randn(5, 2, 3), {"scale": torch.randn(2, 4)}


def wide():
    return nn.GRU(9, 4), (torch.randn(5, 2, 9),)


def misfit():
    return model(), (torch.randn(5, 2, 3), None, 7)


def fails():
    return 1 / 0


def leaves():
    sys.exit(3)


def three():
    return 3


def one():
    return (model(),)


def no_model():
    return model, (torch.randn(5, 2, 3),)


def no_args():
    return model(), {"x": torch.randn(5, 2, 3)}


def no_kwargs():
    return model(), (torch.randn(5, 2, 3),), 7


instance = model()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a package of models in it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "made"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "made").mkdir()
    (tmp_path / "made/models.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(main, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def refused(*arguments: str) -> str:
    """The message for bad input: one line on stderr, with exit code 2."""
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("noise")]
    assert len(lines) == 1
    return lines[0].removeprefix("Error: ")


@pytest.fixture
def rnn(folder: Path) -> nn.RNN:
    """A layer whose weights are in rnn.pt, and which is in rnn.onnx."""
    layer = nn.RNN(3, 4, bidirectional=True).eval()
    torch.save(layer.state_dict(), "rnn.pt")
    export_onnx(layer, (torch.randn(32, 2, 3),), "rnn.onnx", form="unrolled")
    return layer


def one_weight_changed(path: str) -> None:
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if "weight_hh" in tensor.name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 0.01, weight.name))
    onnx.save(model, path)


def test_a_factory_is_exported_inspected_and_verified() -> None:
    done = run("export", "made.models:plain", "-o", "m.onnx", "--form", "scan")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "made.models:plain: Model"
    assert lines[1].startswith("m.onnx: scan, float32, ")
    assert "  input   x: float32 [T, B, 3]" in lines
    assert done.stderr == "noise while it is imported\nnoise while it is called\n"

    done = run("inspect", "m.onnx")
    assert done.exit_code == 0
    assert done.stdout.startswith("m.onnx: scan, ")
    assert "\n  dynamic  T: x axis 0, output axis 0\n" in done.stdout

    before = Path("m.onnx").read_bytes()
    done = run("verify", "m.onnx", "--against", "made.models:plain")
    assert done.exit_code == 0
    assert "CPUExecutionProvider: checked\n    output: max abs error" in done.stdout

    one_weight_changed("m.onnx")
    wrong = Path("m.onnx").read_bytes()
    assert wrong != before
    done = run("verify", "m.onnx", "--against", "made.models:plain")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "Error: m.onnx is not the model: `output` differs by " in done.stderr
    assert ", first at time step " in done.stderr
    assert Path("m.onnx").read_bytes() == wrong


def test_json_is_all_that_stdout_has(rnn: nn.RNN) -> None:
    done = run("export", "made.models:keyword", "-o", "m.onnx", "--form", "unrolled", "--json")
    assert done.exit_code == 0
    assert "noise" in done.stderr
    report = json.loads(done.stdout)
    assert (report["path"], report["form"], report["target"]) == (
        "m.onnx",
        "unrolled",
        "made.models:keyword: Model",
    )
    assert report["precision"] == "float32"
    assert [spec["name"] for spec in report["inputs"]] == ["x", "scale"]

    done = run("inspect", "m.onnx", "--json")
    assert json.loads(done.stdout)["dynamic"]["B"] == ["x axis 1", "scale axis 0", "output axis 1"]

    assert json.loads(run("verify", "m.onnx", "--against", "made.models:keyword", "--json").stdout)[
        "comparisons"
    ]

    one_weight_changed("m.onnx")
    done = run("verify", "m.onnx", "--against", "made.models:keyword", "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["error"] in done.stderr
    assert any(comparison["first_bad"] for comparison in report["comparisons"])

    done = run("inspect", "none.onnx", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout) == {"error": "there is no file 'none.onnx'."}
    assert done.stderr == "Error: there is no file 'none.onnx'.\n"


def test_a_weights_file(rnn: nn.RNN) -> None:
    before = Path("rnn.onnx").read_bytes()
    done = run("verify", "rnn.onnx", "--against", "rnn.pt", "--size", "2")
    assert done.exit_code == 0
    assert done.stdout.startswith(
        "rnn.pt: RNN(3, 4, bidirectional=True), float32; not in the file, and so assumed: "
        "tanh (--nonlinearity), batch_first=False (--batch-first)\n"
    )
    done = run("verify", "rnn.onnx", "--against", "rnn.pt", "--size", "2", "--nonlinearity", "relu")
    assert done.exit_code == 1
    assert "rnn.onnx is not the model: " in done.stderr
    assert Path("rnn.onnx").read_bytes() == before

    done = run(
        "export",
        "rnn.pt",
        "-o",
        "new.onnx",
        "--steps",
        "5",
        "--batch",
        "3",
        "--lengths",
        "--batch-first",
    )
    assert done.exit_code == 0
    assert "  input   input: float32 [B, T, 3]\n  input   lengths: int64 [B]\n" in done.stdout
    assert (
        run(
            "verify",
            "new.onnx",
            "--against",
            "rnn.pt",
            "--steps",
            "5",
            "--lengths",
            "--batch-first",
        ).exit_code
        == 0
    )


def test_options_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: dict[str, Any] = {}

    def stand_in(model: nn.Module, args: Any, path: Path, **options: Any) -> None:
        passed.update(options)
        raise ValueError("enough")

    monkeypatch.setattr("deploy_rnn.export.exporter.export_onnx", stand_in)
    message = refused("export", "made.models:plain", "-o", "m.onnx")
    assert (message, passed) == ("enough", {"kwargs": None})
    refused(
        "export", "made.models:plain", "-o", "m.onnx", "--form", "native", "--precision", "float32", "--opset", "19",
        "--atol", "0", "--rtol", "1e-3", "--size", "2", "--size", "5",
        "--dynamic", "x:1=B", "--dynamic", "x:0=T", "--dynamic", "s:-1=B",
    )  # fmt: skip
    assert passed == {
        "kwargs": None, "form": "native", "precision": "float32", "opset_version": 19, "atol": 0, "rtol": 1e-3,
        "sizes": (2, 5), "dynamic_shapes": {"x": {1: "B", 0: "T"}, "s": {-1: "B"}},
    }  # fmt: skip
    monkeypatch.setattr("deploy_rnn.export.bundle.export_bundle", stand_in)
    int8 = ("--precision", "int8", "--int8-layer", "linear", "--int8-products", "state")
    for more, precision in (((), "int8"), (("--precision", "float32"), ("int8", "float32"))):
        passed.clear()
        refused("export", "made.models:plain", "-o", "m", *int8, *more)
        assert passed == {
            "kwargs": None, "precision": precision, "int8_layers": ("linear",), "int8_products": "state",
        }  # fmt: skip


def test_every_option_is_one_of_the_function() -> None:
    parameters = {
        commands.export: {
            *inspect.signature(export_onnx).parameters,
            *inspect.signature(export_bundle).parameters,
            *inspect.signature(write_triton_model).parameters,
        },
        commands.verify: {*inspect.signature(verify).parameters},
    }
    own_options = {"target", "path", "as_json", "report_to", *commands.WEIGHTS}
    for command, names in parameters.items():
        assert {str(option.name) for option in command.params} - own_options <= names
    assert set(commands.WEIGHTS) == inspect.signature(from_weights).parameters.keys() - {"path"}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("made.nothing:x", "there is no module `made.nothing`, neither in the current folder (FOLDER) nor on Python"),
        ("nowhere.models:x", "there is no module `nowhere`, neither in the current folder"),
        ("made.models:x", "module `made.models` (FOLDER/made/models.py) has no `x`; it defines Model, model, plain, "),
        ("made:x", "module `made` (None) has no `x`; it defines no function."),
        ("made.models:instance", "`made.models:instance` is an object of type Model, not a function; name a function"),
        ("made.models:MODEL", "has no `MODEL`"),
        ("made.models:fails", "raised ZeroDivisionError: division by zero (FOLDER/made/models.py:43: `return 1 / 0`)."),
        ("made.models:leaves", "`made.models:leaves` raised SystemExit: 3 (FOLDER/made/models.py:47: `sys.exit(3)`)."),
        ("made.models:three", "returned an object of type int; return `(model, args)` or `(model, args, kwargs)`, "),
        ("made.models:one", "`made.models:one` returned a tuple of length 1; return"),
        ("made.models:no_model", "returned an object of type function as the model, not a torch.nn.Module; return"),
        ("made.models:no_args", "returned an object of type dict as the arguments, not a tuple; return"),
        ("made.models:no_kwargs", "returned an object of type int as `kwargs`, not a dict; return"),
        ("made.models", "`TARGET` (='made.models') must be `package.module:factory` or a weights file (.safetensor"),
        ("models.py:plain", "`TARGET` (='models.py:plain') must name a module without .py: `models:plain`."),
        ("made/models.py:plain", "must be `package.module:factory` or"),
        ("none.safetensors", "there is no file 'none.safetensors'."),
        ("made.models:misfit", "`args` does not fit Model.forward: too many positional arguments."),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_loaded_is_refused(target: str, message: str, folder: Path) -> None:
    assert message.replace("FOLDER", str(folder)) in refused("export", target, "-o", "m.onnx")
    assert not Path("m.onnx").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import nowhere\n",
            "importing `made.broken` raised ModuleNotFoundError: No module named 'nowhere' (FOLDER",
        ),
        (
            "x = (\n",
            "importing `made.broken` raised SyntaxError: '(' was never closed (FOLDER/made/broken.py, line 1).",
        ),
        (
            "raise SystemExit(2)\n",
            "importing `made.broken` raised SystemExit: 2 (FOLDER/made/broken.py:1: `raise SystemExit(2)`).",
        ),
    ],
)
def test_a_module_that_cannot_be_imported(text: str, message: str, folder: Path) -> None:
    Path("made/broken.py").write_text(text, encoding="utf-8")
    assert message.replace("FOLDER", str(folder)) in refused(
        "export", "made.broken:x", "-o", "m.onnx"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "nowhere/m"], "the folder around 'nowhere/m' does not exist; make it first."),
        (["-o", "made"], "exists and has no manifest.json; give another folder, or remove it."),
        (["-o", "m.onnx", "--bucket", "3"], "--bucket needs a bundle; leave it out, or give a PATH that does not end"),
        (["-o", "m.onnx", "--name", "plain"], "--name needs a bundle; leave it out, or give a PATH that does not end"),
        (
            ["-o", "m.onnx", "--precision", "int8", "--precision", "float32"],
            "a second --precision needs a bundle; leave it out, or give a PATH",
        ),
        (
            ["--triton", "models", "--precision", "int8", "--precision", "float32"],
            "--triton needs one --precision; leave the others out.",
        ),
        (["-o", "m.onnx", "--int8-products", "state"], "`--int8-products` (='state') is for precision='int8'; give"),
        (["-o", "m.onnx", "--int8-layer", "linear"], "`--int8-layer` (=('linear',)) is for precision='int8'; give"),
        (["-o", "m.onnx", "--form", "scan", "--form", "native"], "a second --form needs a bundle; leave it out, or "),
        (["-o", "m", "--require-provider", "X"], "--require-provider needs a single file; leave it out, or"),
        (["-o", "nowhere/m.onnx"], "the folder of 'nowhere/m.onnx' does not exist; make it first."),
        (["-o", "m.onnx", "--form", "x"], "`--form` (='x') is unknown; use 'unrolled' or 'scan' or 'native' or"),
        (["-o", "m.onnx", "--precision", "int4"], "`--precision` (='int4') must be 'float32', 'float64', 'float16' or"),
        (["-o", "m.onnx", "--max-error", "0.1"], "`--max-error` (=0.1) bounds what precision='int8' or precision="),
        (["-o", "m", "--precision", "float64"], "`--precision` (='float64') must be 'float32', as the model's weights"),
        (["-o", "m.onnx", "--opset", "3"], "`--opset` (=3) must be a whole number from 13 to 25."),
        (["-o", "m.onnx", "--dynamic", "y:1=B"], "`--dynamic` names `y`; the arguments are x."),
        (
            ["-o", "m.onnx", "--form", "unrolled", "--dynamic", "x:0=T"],
            "axis 0 ('T') of `x` is the time axis, which --form unrolled cannot",
        ),
        (["-o", "m.onnx", "--atol", "-1"], "`--atol` (=-1.0) must be finite and >= 0."),
        (["-o", "m.onnx", "--size", "0"], "`--size` (=(0,)) must be whole numbers from 1, such as (1, 3, 7)."),
        (
            ["-o", "m.onnx", "--steps", "3", "--batch-first"],
            "--batch-first, --steps: only for a weights file; `made.models:plain` returns its own model and example.",
        ),
    ],
)  # fmt: skip
def test_options_that_cannot_be_used(arguments: list[str], message: str) -> None:
    assert message in refused("export", "made.models:plain", *arguments)
    assert not Path("m.onnx").exists()


def test_usage_that_click_refuses() -> None:
    for arguments, message in (
        (["export", "made.models:plain"], "Missing option '-o' / '--output'"),
        (
            ["export", "made.models:plain", "-o", "m.onnx", "--dynamic", "x=B"],
            "'x=B' is not NAME:AXIS=SYMBOL, such as",
        ),
        (["verify", "m.onnx"], "Missing option '--against'"),
        (
            ["verify", "m.onnx", "--against", "x", "--report", "nowhere/r.html"],
            "the folder of 'nowhere/r.html' does not exist",
        ),
        (["explain"], "No such command 'explain'"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert message in done.stderr


def test_a_pickle_with_code_is_refused_and_does_not_run() -> None:
    class Code:
        def __reduce__(self) -> Any:
            return os.mkdir, ("ran",)

    torch.save(Code(), "w.pt")
    assert "asks for `posix.mkdir`, and a file that could run code is not loaded" in refused(
        "export", "w.pt", "-o", "m.onnx"
    )
    assert not Path("ran").exists()


def test_an_export_that_differs_is_exit_code_1_and_leaves_the_file_alone() -> None:
    Path("m.onnx").write_text("what was there", encoding="utf-8")
    arguments = ("--form", "unrolled", "--atol", "0", "--json")
    done = run("export", "made.models:plain", "-o", "m.onnx", *arguments)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"].startswith(
        "m.onnx is not the model: `output` differs by "
    )
    assert Path("m.onnx").read_text(encoding="utf-8") == "what was there"
    assert sorted(map(str, Path().iterdir())) == ["m.onnx", "made"]


def test_files_that_cannot_be_verified(rnn: nn.RNN) -> None:
    assert (
        refused("verify", "none.onnx", "--against", "made.models:plain")
        == "there is no file 'none.onnx'."
    )
    assert refused("verify", "rnn.pt", "--against", "rnn.pt") == "'rnn.pt' is not an ONNX file."
    assert "has no `x`" in refused("verify", "rnn.onnx", "--against", "made.models:x")
    for target, message in (
        ("made.models:wide", "axis 0 of `input` is 32 in the file, 5 in its example"),
        (
            "made.models:keyword",
            "the file has 1 inputs (input), the example has 2 tensors (x, scale); ",
        ),
    ):
        done = run("verify", "rnn.onnx", "--against", target)
        assert (done.exit_code, done.stdout) == (1, "")
        assert message in done.stderr


def test_a_folder_is_refused() -> None:
    assert (
        refused("verify", "made", "--against", "made.models:plain")
        == "'made' is not a bundle: manifest.json is missing."
    )
    assert refused("inspect", "made") == "'made' is not a bundle: manifest.json is missing."


def test_the_report_is_written_passed_or_failed(rnn: nn.RNN) -> None:
    done = run("verify", "rnn.onnx", "--against", "rnn.pt", "--report", "passed.html")
    assert done.exit_code == 0
    assert "PASS" in Path("passed.html").read_text(encoding="utf-8")
    done = run(
        "verify",
        "rnn.onnx",
        "--against",
        "rnn.pt",
        "--nonlinearity",
        "relu",
        "--report",
        "failed.json",
    )
    assert done.exit_code == 1
    comparisons = json.loads(Path("failed.json").read_text())["comparisons"]
    assert any(comparison["first_bad"] for comparison in comparisons)
    done = run("export", "rnn.pt", "-o", "again.onnx", "--report", "again.json")
    assert json.loads(Path("again.json").read_text())["path"] == "again.onnx"
    assert (
        "'r.txt' must end in .html or .json"
        in run("verify", "x", "--against", "y", "--report", "r.txt").stderr
    )
    assert "--report needs a single file: a bundle has its own." in refused(
        "export", "rnn.pt", "-o", "b", "--report", "r.html"
    )
    assert not Path("b").exists()


def test_names_in_a_file_do_not_command_the_terminal() -> None:
    value = onnx.helper.make_tensor_value_info("x\x1b[31m", 1, ["B\x07"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [value], [value])), "x.onnx")
    assert "x\\x1b[31m: float32 [B\\x07]" in run("inspect", "x.onnx").stdout
    torch.save({"\x1b[31m.weight": torch.zeros(2)}, "w.pt")
    assert "`weight`" in refused("export", "w.pt", "-o", "m.onnx")
    torch.save({"\x1b[31m.weight": torch.zeros(2), "y.x": torch.zeros(2)}, "w.pt")
    assert "`\\x1b[31m.weight`" in refused("export", "w.pt", "-o", "m.onnx")


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(*arguments: Any, **options: Any) -> None:
        for _ in range(2):
            warnings.warn("an axis is fixed", stacklevel=2)
        raise ValueError("enough")

    monkeypatch.setattr("deploy_rnn.export.exporter.export_onnx", stand_in)
    with warnings.catch_warnings(action="always"):
        done = run("export", "made.models:plain", "-o", "m.onnx")
    assert done.stderr.endswith("called\nWarning: an axis is fixed\nError: enough\n")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x.onnx").touch()
    for arguments, name in (
        (["inspect", "x.onnx"], "onnx"),
        (["export", "made.models:plain", "-o", "m.onnx"], "onnx_ir"),
    ):
        code = f"import sys; sys.modules[{name!r}] = None; from deploy_rnn.cli import main; main({arguments!r})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr.endswith(
            f"Error: this needs `{name}`; run: pip install 'deploy-rnn[export,onnxruntime]'\n"
        )
        assert "Traceback" not in done.stderr


def test_the_demo_of_an_installed_package_says_where_it_is() -> None:
    """The wheel leaves the example out."""
    code = (
        "import sys; sys.modules['deploy_rnn.examples'] = None\n"
        "from deploy_rnn.cli import main; main(['demo'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "Error: the demo is in the repository, not in the installed package; run: "
        "git clone https://github.com/deploy-rnn/deploy-rnn && make -C deploy-rnn demo\n"
    )


def test_a_bundle_is_exported_and_inspected(folder: Path) -> None:
    done = run(
        "export",
        "made.models:plain",
        "-o",
        "m",
        "--form",
        "scan",
        "--bucket",
        "2",
        "--name",
        "plain",
        "--precision",
        "int8",
        "--int8-products",
        "state",
        "--json",
    )
    assert done.exit_code == 0
    manifest = json.loads(done.stdout)
    assert [graph["file"] for graph in manifest["graphs"]] == ["scan.onnx", "unrolled-2.onnx"]
    shown = run("inspect", "m").stdout
    assert "  unrolled-2.onnx: unrolled, int8, 2 steps, " in shown
    assert "  scan.onnx: int8 (products: state)" in shown
    content = json.loads(run("inspect", "m", "--json").stdout)
    assert content["sha256"] == manifest["sha256"]
    assert [graph["int8_products"] for graph in content["graphs"]] == ["state", "state"]
    Path("m/scan.onnx").write_bytes(b"")
    assert "is not the file that was exported" in refused("inspect", "m")


def test_a_bundle_is_verified_graph_by_graph(rnn: nn.RNN) -> None:
    done = run("export", "rnn.pt", "-o", "m", "--steps", "5", "--bucket", "3", "--form", "scan")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    verdicts = lines[lines.index("verified:") + 1 :]
    assert verdicts[0].startswith("  scan.onnx: agrees on CPUExecutionProvider")
    assert verdicts[1].startswith("  unrolled-3.onnx: agrees on CPUExecutionProvider")
    assert verdicts[2] == f"  all of it: {Path('m/report.html')}"

    options = ("--against", "rnn.pt", "--steps", "5")
    done = run("verify", "m", *options, "--report", "passed.html")
    assert done.exit_code == 0
    assert "m: verified:\n  scan.onnx: agrees on CPUExecutionProvider" in done.stdout
    assert "unrolled-3.onnx" in Path("passed.html").read_text(encoding="utf-8")

    done = run(
        "verify", "m", *options, "--nonlinearity", "relu", "--report", "failed.json", "--json"
    )
    assert done.exit_code == 1
    fields = json.loads(done.stdout)
    assert fields["error"].startswith(
        "2 of the 2 graphs of 'm' are not the model: scan.onnx is not the model: "
    )
    assert "unrolled-3.onnx is not the model: " in fields["error"]
    assert [Path(graph["path"]).name for graph in fields["graphs"]] == [
        "scan.onnx",
        "unrolled-3.onnx",
    ]
    assert [graph["verdict"][:8] for graph in json.loads(Path("failed.json").read_text())] == [
        "differs "
    ] * 2

    Path("m/scan.onnx").write_bytes(Path("m/scan.onnx").read_bytes() + b" ")
    done = run("verify", "m", *options)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "is not the file that was exported" in done.stderr


def test_a_checkpoint_without_code_becomes_a_bundle_with_names_of_its_own() -> None:
    weights = {f"model.rnn.{name}": weight for name, weight in nn.GRU(3, 4).state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": {"lr": 0.1}}, "last.ckpt")
    done = run(
        "export", "last.ckpt", "-o", "m", "--key", "model.rnn", "--form", "native",
        "--input-names", "frames", "--output-names", "states, last",
    )  # fmt: skip
    assert done.exit_code == 0
    assert done.stdout.startswith("last.ckpt, model.rnn: GRU(3, 4), float32; ")
    assert (
        "  input   frames: float32 [T, B, 3]\n  output  states: float32 [T, B, 4]\n" in done.stdout
    )
    assert "  output  last: float32 [1, B, 4]\n" in done.stdout
    assert run("verify", "m", "--against", "last.ckpt", "--key", "rnn").exit_code == 0
    done = run("export", "made.models:plain", "-o", "m.onnx", "--input-names", "x,")
    assert done.exit_code == 2
    assert "'x,' is not NAME,NAME, such as x,lengths." in done.stderr
    assert "--key: only for a weights file" in refused(
        "export", "made.models:plain", "-o", "m.onnx", "--key", "rnn"
    )


def test_a_file_with_other_names_is_verified_by_the_names_that_are_given() -> None:
    torch.save(nn.GRU(3, 4).state_dict(), "gru.pt")
    names = ("--input-names", "frames", "--output-names", "states,last")
    assert run("export", "gru.pt", "-o", "m.onnx", "--form", "native", *names).exit_code == 0
    model = onnx.load("m.onnx")
    first, second = model.graph.output
    model.graph.output.extend([second, first])
    del model.graph.output[:2]
    onnx.save(model, "m.onnx")
    assert run("verify", "m.onnx", "--against", "gru.pt", *names).exit_code == 0
    swapped = ("--output-names", "last,states")
    assert run("verify", "m.onnx", "--against", "gru.pt", *swapped).exit_code == 1
    run("export", "gru.pt", "-o", "m", "--form", "native")
    assert "--input-names and --output-names are for a file" in refused(
        "verify", "m", "--against", "gru.pt", *names
    )


def interrupt(*arguments: Any, **options: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["export", "made.models:plain", "-o", "m.onnx"], "deploy_rnn.export.exporter.export_onnx"),
        (["export", "made.models:plain", "-o", "m"], "deploy_rnn.export.bundle.CapturedModel.of"),
        (["check", "made.models:plain"], "deploy_rnn.export.ways.export_onnx"),
        (["inspect", "made"], "deploy_rnn.bundle.Manifest.read"),
    ],
)
def test_ctrl_c_is_exit_code_130(
    command: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name, interrupt)
    done = run(*command)
    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in done.stderr
    assert [path.name for path in Path().iterdir()] == ["made"]


@pytest.mark.parametrize("output", ["m.onnx", "m"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(output: str) -> None:
    done = run("export", "made.nothing:x", "-o", output, "--report", "nowhere/r.html")
    assert done.exit_code == 2
    assert "the folder of 'nowhere/r.html' does not exist; make it first." in done.stderr


def test_help_has_an_example_and_every_form() -> None:
    for command in ("export", "verify", "inspect"):
        done = run(command, "--help")
        assert done.exit_code == 0
        assert f"\n    deploy-rnn {command} " in done.stdout
        assert f"  {command} " in run("--help").stdout
    form = next(parameter for parameter in commands.export.params if parameter.name == "forms")
    assert all(name in str(getattr(form, "help", "")) for name in FORMS)


def test_every_option_of_every_command_shows_its_default() -> None:
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        options = [option for option in command.params if isinstance(option, click.Option)]
        assert options
        for option in options:
            record = option.get_help_record(click.Context(command))
            assert record is not None
            assert option.required or "default: " in record[1], f"{name} {option.name}"


def test_the_defaults_that_are_shown_are_those_of_the_functions() -> None:
    weights = inspect.signature(from_weights).parameters
    actual: dict[str, Any] = {
        **vars(DEFAULTS),
        **{name: parameter.default for name, parameter in weights.items()},
        **vars(Limits()),
        **vars(Settings()),
        "provider": inspect.signature(Model).parameters["provider"].default,
        "forms": f"{inspect.signature(export_onnx).parameters['form'].default}; in a bundle scan and native, as far as "
        "they fit",
    }
    in_words = {
        "allowed_hosts", "atol", "batch_first", "dynamic_shapes", "input_names", "ir_version", "key", "lengths",
        "int8_layers", "max_error", "nonlinearity", "output_names", "pages", "path", "portable", "precision",
        "row_ends", "rtol", "sizes", "stream_header", "streaming", "token",
    }  # fmt: skip
    compared = set()
    for command in (commands.export, commands.verify, serve):
        for option in command.params:
            if isinstance(option, click.Option) and option.name in actual.keys() - in_words:
                assert option.show_default == str(actual[option.name]), option.name
                compared.add(option.name)
    assert compared >= {
        "forms",
        "opset_version",
        "max_nodes",
        "steps",
        "batch",
        "max_rows",
        "max_bytes",
    }
    assert DEFAULTS.sizes == (1, 3, 7)


@pytest.mark.parametrize("chosen", [None, "0"])
def test_no_command_reports_to_the_makers_of_onnxruntime(
    chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", chosen or "")
    if chosen is None:
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    CliRunner().invoke(main, ["inspect", "nothing.onnx"])
    assert os.environ["ORT_DISABLE_TELEMETRY"] == (chosen or "1")


def deploy_rnn(*arguments: str, **options: Any) -> Any:
    command = Path(sys.executable).with_name("deploy-rnn")
    return subprocess.run(
        [str(command), *arguments], stdout=subprocess.PIPE, text=True, check=False, **options
    )


def test_the_installed_command(rnn: nn.RNN) -> None:
    done = deploy_rnn(
        "verify", "rnn.onnx", "--against", "rnn.pt", "--size", "2", "--json", stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["path"] == "rnn.onnx"
    done = deploy_rnn("export", "made.models:fails", "-o", "m.onnx", stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "Error: `made.models:fails` raised ZeroDivisionError"
    )
    assert "Traceback" not in done.stderr


def test_progress_is_on_stderr_where_that_is_a_terminal(rnn: nn.RNN) -> None:
    terminal, command_side = pty.openpty()
    # Read while the command runs: a terminal holds 4 KiB, and a spinner that fills it waits for a reader.
    with ThreadPoolExecutor(1) as executor:
        shown = executor.submit(read_terminal, terminal)
        try:
            done = deploy_rnn(
                "verify", "rnn.onnx", "--against", "rnn.pt", "--size", "2", "--json",
                stderr=command_side,
            )  # fmt: skip
        finally:
            os.close(command_side)
    os.close(terminal)
    assert done.returncode == 0
    assert json.loads(done.stdout)["path"] == "rnn.onnx"
    assert "loading rnn.pt ..." in shown.result()
    assert "verifying rnn.onnx ..." in shown.result()


def read_terminal(terminal: int) -> str:
    """Everything that is written to a pseudo-terminal until its other side is closed."""
    parts = []
    while True:
        try:
            part = os.read(terminal, 1024)
        # Linux reports the end as an error, other systems as nothing to read.
        except OSError:
            part = b""
        if not part:
            return b"".join(parts).decode(errors="replace")
        parts.append(part)
