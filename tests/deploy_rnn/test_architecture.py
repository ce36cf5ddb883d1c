"""The house: which part may know which, what an import brings in, and the public names."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deploy_rnn
import deploy_rnn.export
import deploy_rnn.serving

ROOT = Path(__file__).parents[2]

LAZY = {
    "RNN": "deploy_rnn.nn.rnn",
    "GRU": "deploy_rnn.nn.gru",
    "LSTM": "deploy_rnn.nn.lstm",
    "RNNCell": "deploy_rnn.nn.single_step",
    "GRUCell": "deploy_rnn.nn.single_step",
    "LSTMCell": "deploy_rnn.nn.single_step",
    "Cell": "deploy_rnn.nn.cells",
    "Recurrent": "deploy_rnn.nn.recurrent",
    "convert": "deploy_rnn.conversion",
    "scan": "deploy_rnn.nn.loops",
    "check": "deploy_rnn.export.ways",
    "Check": "deploy_rnn.export.ways",
    "compile": "deploy_rnn.compilation",
    "package": "deploy_rnn.packaging.package",
    "Package": "deploy_rnn.packaging.package",
}

# The arrows of docs/architecture.md: what each room may import, besides itself and the light modules.
LIGHT = {
    "errors", "lazy", "files", "timing", "tensor_spec", "console", "model_errors", "json_fields", "plain_files",
    "onnx_bytes", "number_fields",
}  # fmt: skip
ARROWS = {
    "nn": set(),
    "copying": {"held_layers"},
    "random_state": set(),
    "half_precision": set(),
    "held_layers": set(),
    "renewed_code": set(),
    "renewed_modules": {"held_layers", "nn", "renewed_code", "subclasses"},
    "subclasses": {"nn", "renewed_code"},
    "type_tests": {"held_layers", "renewed_code"},
    "checking": {"nn", "copying", "random_state", "half_precision"},
    "bundle": {"bundle_files"},
    "bundle_files": set(),
    "metadata": set(),
    "runtime": set(),
    "conversion": {
        "nn", "checking", "copying", "held_layers", "renewed_modules", "subclasses", "type_tests",
    },
    "call_results": {"copying", "half_precision"},
    "first_call": {"call_results", "checking", "copying", "random_state", "half_precision"},
    "compiled_checks": {"call_results", "random_state"},
    "compiled_function": {"compiled_checks"},
    "packing": {"nn"},
    "any_size": {"known_numbers", "pooling"},
    "pooling": set(),
    "known_numbers": set(),
    "inductor": {"loop_blocks", "nn", "own_gradients"},
    "loop_blocks": set(),
    "own_gradients": set(),
    "compilation": {
        "compiled_function", "conversion", "copying", "first_call", "held_layers", "inductor", "nn", "packing",
        "pooling",
    },
    "packaging": {"any_size", "nn", "conversion", "inductor", "checking", "packing"},
    "cli": {"examples"},
    "export.stack": {"nn"},
    "export.size_limits": {"checking"},
    "export.torch_onnx": {"export.size_limits", "export.translations"},
    "export.translations": set(),
    "export.onnx_file": {"metadata", "export.recurrent_nodes"},
    "export.recurrent_nodes": set(),
    "export.bare_layer": {"nn", "checking"},
    "export.options": {"checking", "export.forms", "export.opset", "export.precision", "export.runtimes"},
    "export.runtimes": {"export.onnx_file"},
    "export.opset": set(),
    "export.shared_weights": set(),
    "export.saving": set(),
    "export.precision": {"checking", "conversion", "copying", "nn"},
    "export.forms": {"nn", "export.precision", "export.recurrent_nodes", "export.stack", "export.torch_onnx"},
    "export.capture": {
        "nn", "copying", "metadata", "conversion", "checking", "export.stack", "export.forms", "export.torch_onnx",
        "export.bare_layer", "export.options", "export.opset", "export.size_limits", "packing",
        "any_size", "export.precision",
    },
    "export.verification": {
        "nn", "bundle", "checking", "runtime", "export.onnx_file", "export.bare_layer", "export.precision",
        "export.runtimes",
    },
    "export.auto": {
        "checking", "runtime", "export.capture", "export.forms", "export.onnx_file", "export.runtimes", "export.saving",
        "export.verification",
    },
    "export.exporter": {
        "checking", "export.auto", "export.capture", "export.forms", "export.options", "export.saving",
        "export.precision", "export.verification",
    },
    "export.bundle_parts": {
        "bundle", "checking", "runtime", "export.capture", "export.forms", "export.onnx_file", "export.options",
        "export.precision", "export.runtimes", "export.saving", "export.shared_weights", "export.verification",
    },
    "export.bundle": {
        "bundle", "checking", "export.bundle_parts", "export.capture", "export.forms", "export.options",
        "export.precision", "export.verification",
    },
    "export.ways": {
        "checking", "compilation", "conversion", "copying", "packaging", "runtime", "export.bare_layer",
        "export.exporter", "export.verification",
    },
    "export.triton": {
        "bundle", "metadata", "runtime", "export.saving", "export.shared_weights", "serving.engine",
        "serving.scheduling",
    },
    "export.cli": {
        "bundle", "export", "export.onnx_file", "export.runtimes", "export.triton", "export.ways",
    },
    "serving.engine": {"bundle", "bundle_files", "metadata", "runtime"},
    "serving.scheduling": {"runtime", "serving.engine"},
    "serving.settings": set(),
    "serving.loads": set(),
    "serving.open_files": set(),
    "serving.repository": {"bundle", "serving.loads", "serving.scheduling"},
    "serving.metrics": {"serving.repository", "serving.scheduling"},
    "serving.protocol": {"serving.repository", "serving.scheduling", "serving.settings"},
    "serving.scoring": {"bundle", "bundle_files", "runtime", "serving.engine", "serving.protocol"},
    "serving.rest": {
        "serving.protocol", "serving.repository", "serving.scheduling", "serving.settings", "serving.metrics",
    },
    "serving.grpc": {"serving.protocol", "serving.scheduling", "serving.settings"},
    "serving.server": {
        "serving.grpc", "serving.open_files", "serving.protocol", "serving.repository", "serving.rest",
        "serving.settings",
    },
    "serving.telemetry": {"serving.protocol"},
    "serving.process": set(),
    "serving.ray": {
        "bundle", "serving.grpc", "serving.process", "serving.protocol", "serving.repository", "serving.rest",
        "serving.scheduling", "serving.settings",
    },
    "serving.nginx": {"serving.cli", "serving.repository", "serving.scheduling", "serving.settings"},
    "serving.cli": {
        "serving", "serving.process", "serving.ray", "serving.server", "serving.repository", "serving.scheduling",
        "serving.settings", "serving.protocol", "serving.telemetry",
    },
}  # fmt: skip
FOREIGN = {
    "deploy_rnn": set(),
    "export": set(),
    "serving": {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors"},
}


def room(module: str) -> str:
    """The room of a module: deploy_rnn.nn.cells -> nn, deploy_rnn.export.forms.scan -> export.forms"""
    parts = module.split(".")[1:]
    depth = 2 if parts and parts[0] in ("export", "serving") else 1
    return ".".join(parts[:depth]) or "deploy_rnn"


def module_of(path: Path) -> str:
    return ".".join([*package_of(path), *([] if path.stem == "__init__" else [path.stem])])


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
            found |= (
                {LAZY.get(alias.name, module) for alias in node.names}
                if module == "deploy_rnn"
                else {module}
            )
    return found


@pytest.mark.parametrize("wing", FOREIGN)
def test_the_arrows(wing: str) -> None:
    files = list((ROOT / wing).rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path):
            if (
                module.startswith("deploy_rnn")
                and not _hands_names_on(path)
                and not _type_checking_only(path, module)
            ):
                assert allowed(room(module_of(path)), module), (
                    f"{path.relative_to(ROOT)} imports {module}"
                )
            assert module.partition(".")[0] not in FOREIGN[wing], (
                f"{path.relative_to(ROOT)}: {module}"
            )


def test_every_room_has_its_arrows() -> None:
    rooms = {room(module_of(path)) for wing in FOREIGN for path in (ROOT / wing).rglob("*.py")}
    assert rooms - {"deploy_rnn", "export", "serving", "__main__", *LIGHT} == ARROWS.keys()


def allowed(importer: str, module: str) -> bool:
    return room(module) in {importer, "deploy_rnn"} | LIGHT | ARROWS.get(importer, set())


def test_the_picture_shows_the_arrows() -> None:
    """An arrow that follows from others is not drawn."""
    picture = (
        (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("```mermaid")[2]
    )
    drawn: dict[str, set[str]] = {room: set() for room in ARROWS}
    for importer, imported_room in re.findall(r"^ +([\w.]+) --> ([\w.]+)$", picture, re.MULTILINE):
        drawn[importer].add(imported_room)
    arrows = {importer: _without_public_names(rooms) for importer, rooms in ARROWS.items()}
    for importer, rooms in drawn.items():
        assert rooms <= arrows[importer], f"{importer} is drawn with an arrow that it does not have"
        assert _reachable(importer, drawn) == _reachable(importer, arrows), (
            f"{importer} lacks an arrow"
        )


def _without_public_names(rooms: set[str]) -> set[str]:
    """Rooms of the code, where a room may import the public names of a wing."""
    public = {
        "export": {"export.exporter", "export.bundle"},
        "serving": {"serving.server"},
        "examples": set(),
    }
    return {target for room in rooms for target in public.get(room, {room})}


def _reachable(importer: str, arrows: dict[str, set[str]]) -> set[str]:
    rooms: set[str] = set()
    waiting = [importer]
    while waiting:
        for room in arrows[waiting.pop()] - rooms:
            rooms.add(room)
            waiting.append(room)
    return rooms


def _hands_names_on(path: Path) -> bool:
    """The public names of a wing, whose modules are loaded when they are first used."""
    return path.name in ("__init__.py", "__main__.py") and len(path.relative_to(ROOT).parts) == 2


@pytest.mark.parametrize(
    "line",
    [
        "from deploy_rnn import RNN", "from ...nn.rnn import RNN", "from ... import compile",
        "import deploy_rnn.export", "from ...export import export_onnx",
        "from ...export.verification.report import Report", "def f():\n  from ...nn.rnn import RNN",
        "from ..scheduling.model import Model", "from ..repository import Repository",
    ],
)  # fmt: skip
def test_a_forbidden_arrow_is_seen(line: str) -> None:
    assert not all(
        allowed("serving.engine", module)
        for module in imported(line, ["deploy_rnn", "serving", "engine"])
    )


def _type_checking_only(path: Path, module: str) -> bool:
    """The one exception: a type that is named in an annotation and never loaded."""
    return path.name == "errors.py" and module == "deploy_rnn.export"


@pytest.mark.parametrize(
    "file",
    [
        "deploy_rnn/cli.py",
        "deploy_rnn/console.py",
        "export/cli/check.py",
        "export/cli/commands.py",
        "export/cli/options.py",
        "serving/cli.py",
        "serving/scoring/cli.py",
    ],
)
def test_the_command_line_loads_nothing_but_click(file: str) -> None:
    heavy = {"torch", "onnx", "onnxruntime", "rich", "numpy", "starlette", "uvicorn", "grpc"}
    assert not {module.partition(".")[0] for module in imports(ROOT / file, top_level=True)} & heavy


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("deploy_rnn", "torch onnx onnxscript onnxruntime numpy"),
        ("deploy_rnn.cli", "torch onnx onnxscript onnxruntime numpy"),
        ("deploy_rnn.export.cli.check", "torch onnx onnxscript onnxruntime numpy rich"),
        ("deploy_rnn.export.cli.commands", "torch onnx onnxscript onnxruntime numpy rich"),
        ("deploy_rnn.export.onnx_file", "torch onnxscript onnxruntime"),
        ("deploy_rnn.export.verification.report", "torch onnxscript onnxruntime"),
        ("deploy_rnn.export.verification.html", "torch onnx onnxscript onnxruntime"),
        (
            "deploy_rnn.serving",
            "torch onnx onnxscript starlette uvicorn grpc google.protobuf prometheus_client",
        ),
        (
            "deploy_rnn.serving.cli",
            "torch onnx onnxscript onnxruntime numpy rich starlette uvicorn grpc",
        ),
        (
            "deploy_rnn.serving.scoring.cli",
            "torch onnx onnxscript onnxruntime numpy rich starlette uvicorn grpc",
        ),
        (
            "deploy_rnn.serving.scoring.score",
            "torch onnx onnxscript starlette uvicorn grpc pyarrow",
        ),
        ("deploy_rnn.serving.repository", "torch onnx onnxscript onnxruntime starlette grpc"),
        (
            "deploy_rnn.serving.server",
            "torch onnx onnxscript onnxruntime tritonclient opentelemetry",
        ),
        ("deploy_rnn.export", "torch onnx onnxscript onnxruntime"),
        ("deploy_rnn.serving.engine.engine", "torch onnx onnxscript starlette grpc"),
        ("deploy_rnn.serving.scheduling.model", "torch onnx onnxscript starlette grpc"),
    ],
)
def test_what_an_import_brings_in(module: str, absent: str) -> None:
    code = (
        f"import {module}, sys; print([name for name in {absent.split()} if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_public_names() -> None:
    assert dir(deploy_rnn) == [
        "Cell", "Check", "DeployError", "GRU", "GRUCell", "LSTM", "LSTMCell", "Package", "RNN", "RNNCell", "Recurrent",
        "__version__", "check", "compile", "convert", "export", "package", "scan", "serving",
    ]  # fmt: skip
    assert dir(deploy_rnn.export) == [
        "DynamicAxisError", "ErrorMetric", "ExportError", "Manifest", "Report", "VerificationError", "export_bundle",
        "export_onnx", "reports_html", "verify", "verify_bundle", "write_triton_model",
    ]  # fmt: skip
    assert dir(deploy_rnn.serving) == [
        "BundleError", "BusyError", "ClosedError", "DeadlineError", "Engine", "InputError", "Limits", "LoadError",
        "Model", "ProviderError", "Repository", "Request", "Response", "RunError", "ScoreReport", "Server", "Settings",
        "Statistics", "StreamError", "make_app", "score",
    ]  # fmt: skip
    for package in (deploy_rnn, deploy_rnn.export, deploy_rnn.serving):
        assert sorted(package.__all__) == dir(package)
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            getattr(package, "nonsense")  # noqa: B009


def test_the_other_packages_are_there_after_import_deploy_rnn() -> None:
    """They are loaded when they are first used, and no sooner."""
    code = (
        "import sys, deploy_rnn\n"
        "before = [name for name in sys.modules if name.startswith('deploy_rnn.export')]\n"
        "print(before, deploy_rnn.export.__name__, deploy_rnn.serving.__name__)\n"
        "print(deploy_rnn.export.export_onnx.__name__)"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert printed == ["[] deploy_rnn.export deploy_rnn.serving", "export_onnx"]


@pytest.mark.parametrize(
    ("module", "name", "package", "extra"),
    [
        ("deploy_rnn", "RNN", "torch", "torch"),
        ("deploy_rnn", "check", "onnx_ir", "export,onnxruntime"),
        ("deploy_rnn.serving", "Engine", "onnxruntime", "onnxruntime"),
        ("deploy_rnn.serving", "Model", "onnxruntime", "onnxruntime"),
        ("deploy_rnn.serving", "score", "onnxruntime", "onnxruntime"),
        ("deploy_rnn.serving", "make_app", "starlette", "serving"),
        ("deploy_rnn.serving", "Server", "grpc", "serving"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    module: str, name: str, package: str, extra: str
) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"import {module}\n"
        f"try: {module}.{name}\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    message = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
    install = f"pip install 'deploy-rnn[{extra}]'"
    assert message == f"`{module}.{name}` needs `{package}`, which is not installed; run: {install}"
