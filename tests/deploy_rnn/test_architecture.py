"""The house: which part may know which, what an import brings in, and the public names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deploy_rnn
import deploy_rnn.export
import deploy_rnn.serving

ROOT = Path(__file__).parents[2]

LAZY = {
    "RNN": "deploy_rnn.rnn",
    "GRU": "deploy_rnn.gru",
    "LSTM": "deploy_rnn.lstm",
    "Cell": "deploy_rnn.cells",
    "Recurrent": "deploy_rnn.recurrent",
    "convert": "deploy_rnn.conversion",
    "compile": "deploy_rnn.compilation",
    "package": "deploy_rnn.packaging",
    "Package": "deploy_rnn.packaging",
}

# The arrows of docs/architecture.md; a part always knows itself and what has no heavy dependency of its own.
LIGHT = {"deploy_rnn"} | {
    f"deploy_rnn.{name}" for name in ("errors", "lazy", "files", "timing", "tensor_spec", "console")
}
MAY_IMPORT = {
    "deploy_rnn": LIGHT | {f"deploy_rnn.{path.stem}" for path in (ROOT / "deploy_rnn").glob("*.py")},
    "export": LIGHT
    | {"deploy_rnn.bundle"}
    | {f"deploy_rnn.{name}" for name in ("cells", "recurrent", "lstm", "conversion", "runtime")}
    | {f"deploy_rnn.{name}" for name in ("call", "comparison", "trials")},
    "serving": LIGHT | {"deploy_rnn.runtime", "deploy_rnn.bundle"},
}
FOREIGN = {"export": set(), "serving": {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors"}}


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """The absolute modules that a file imports; `top_level`: only those outside functions and TYPE_CHECKING."""
    return imported(path.read_text(encoding="utf-8"), package_of(path), top_level=top_level)


def package_of(path: Path) -> list[str]:
    """The package that a file belongs to, as it is imported: export/forms/unrolled.py -> deploy_rnn.export.forms"""
    parts = list(path.relative_to(ROOT).parent.parts)
    return parts if parts[0] == "deploy_rnn" else ["deploy_rnn", *parts]


def imported(source: str, package: list[str], *, top_level: bool = False) -> set[str]:
    tree = ast.parse(source)
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from deploy_rnn import RNN` loads the module that the name stands for
            found |= {LAZY.get(alias.name, module) for alias in node.names} if module == "deploy_rnn" else {module}
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_the_arrows(part: str) -> None:
    files = list((ROOT / part).rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path):
            if (
                module.startswith("deploy_rnn")
                and path.name not in ("cli.py", "commands.py")
                and not _type_checking_only(path, module)
            ):
                assert allowed(part, module), f"{path.relative_to(ROOT)} imports {module}"
            assert module.partition(".")[0] not in FOREIGN.get(part, set()), f"{path.relative_to(ROOT)}: {module}"


def allowed(part: str, module: str) -> bool:
    return module in MAY_IMPORT[part] or module.startswith(f"deploy_rnn.{part}")


@pytest.mark.parametrize(
    "line",
    [
        "from deploy_rnn import RNN", "from ..rnn import RNN", "from .. import compile", "import deploy_rnn.export",
        "from ..export import export_onnx", "from ..export.report import Report", "def f():\n  from ..rnn import RNN",
    ],
)  # fmt: skip
def test_a_forbidden_arrow_is_seen(line: str) -> None:
    assert not all(allowed("serving", module) for module in imported(line, ["deploy_rnn", "serving"]))


def _type_checking_only(path: Path, module: str) -> bool:
    """The one exception: a type that is named in an annotation and never loaded."""
    return path.name == "errors.py" and module == "deploy_rnn.export"


@pytest.mark.parametrize(
    "file", ["deploy_rnn/cli.py", "deploy_rnn/console.py", "export/cli/commands.py", "serving/cli.py"]
)
def test_the_command_line_loads_nothing_but_click(file: str) -> None:
    heavy = {"torch", "onnx", "onnxruntime", "rich", "numpy", "starlette", "uvicorn", "grpc"}
    assert not {module.partition(".")[0] for module in imports(ROOT / file, top_level=True)} & heavy


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("deploy_rnn", "torch onnx onnxscript onnxruntime numpy"),
        ("deploy_rnn.cli", "torch onnx onnxscript onnxruntime numpy"),
        ("deploy_rnn.export.cli.commands", "torch onnx onnxscript onnxruntime numpy rich"),
        ("deploy_rnn.export.onnx_file", "torch onnxscript onnxruntime"),
        ("deploy_rnn.serving", "torch onnx onnxscript starlette uvicorn grpc google.protobuf prometheus_client"),
        ("deploy_rnn.serving.cli", "torch onnx onnxscript onnxruntime numpy rich starlette uvicorn grpc"),
        ("deploy_rnn.serving.server", "torch onnx onnxscript tritonclient"),
        ("deploy_rnn.export", "torch onnx onnxscript onnxruntime"),
        ("deploy_rnn.serving.engine.engine", "torch onnx onnxscript starlette grpc"),
        ("deploy_rnn.serving.scheduling.model", "torch onnx onnxscript starlette grpc"),
    ],
)
def test_what_an_import_brings_in(module: str, absent: str) -> None:
    code = f"import {module}, sys; print([name for name in {absent.split()} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_public_names() -> None:
    assert dir(deploy_rnn) == [
        "Cell", "DeployError", "GRU", "LSTM", "Package", "RNN", "Recurrent", "__version__", "compile", "convert",
        "package",
    ]  # fmt: skip
    assert dir(deploy_rnn.export) == [
        "DynamicAxisError", "ExportError", "Manifest", "Report", "VerificationError", "export_bundle", "export_onnx",
        "reports_html",
        "verify",
    ]  # fmt: skip
    assert dir(deploy_rnn.serving) == [
        "BundleError", "BusyError", "ClosedError", "DeadlineError", "Engine", "InputError", "Limits", "LoadError",
        "Model", "ProviderError", "Request", "Response", "RunError", "Statistics", "StreamError",
    ]  # fmt: skip
    for package in (deploy_rnn, deploy_rnn.export, deploy_rnn.serving):
        assert sorted(package.__all__) == dir(package)
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            getattr(package, "nonsense")  # noqa: B009


def test_a_missing_package_is_named_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import deploy_rnn\n"
        "try: deploy_rnn.RNN\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
    assert said == "`deploy_rnn.RNN` needs `torch`, which is not installed; run: pip install 'deploy-rnn[torch]'"
