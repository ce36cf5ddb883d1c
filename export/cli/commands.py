"""`deploy-rnn export`, `verify` and `inspect`. Only click is imported here; the rest is loaded when they are called."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy_rnn.bundle import MANIFEST, Manifest
from deploy_rnn.console import CHECKS, command_errors, printable, show_json, step
from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.files import folder_target, replace_file
from deploy_rnn.files import target as file_target

if TYPE_CHECKING:
    from deploy_rnn.export import Report

    from ..onnx_file import OnnxFile
    from .target import Target

Function = TypeVar("Function", bound=Callable[..., Any])
Option = Callable[[Any], Any]


def _parse_dynamic(
    ctx: click.Context, option: click.Parameter, texts: Sequence[str]
) -> dict[str, dict[int, str]] | None:
    """Return `dynamic_shapes` from NAME:AXIS=SYMBOL, any number of times."""
    shapes: dict[str, dict[int, str]] = {}
    for text in texts:
        match = re.fullmatch(r"(\w+):(-?\d+)=([A-Za-z_]\w*)", text)
        if match is None:
            raise click.BadParameter(
                f"{text!r} is not NAME:AXIS=SYMBOL, such as input:1=B.", ctx, option
            )
        name, axis, symbol = match.groups()
        shapes.setdefault(name, {})[int(axis)] = symbol
    return shapes or None


def _check_report_path(
    ctx: click.Context, option: click.Parameter, path: Path | None
) -> Path | None:
    if path is None:
        return None
    if path.suffix not in (".html", ".json"):
        raise click.BadParameter(f"{str(path)!r} must end in .html or .json.", ctx, option)
    try:
        return file_target(path, "report.html")
    except OSError as error:
        raise click.BadParameter(str(error), ctx, option) from None


# The name of an option (the second one, if it has two) is the keyword argument that it is passed as. An option that is
# not given is not passed, so that the functions' own defaults hold.

# Keyword arguments of `export_onnx` and `export_bundle`; `forms` becomes `form` for a single file.
FORM_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--form", "forms", multiple=True, metavar="FORM",
        help="How the recurrence is written: unrolled, scan, native or auto; may be repeated for a bundle.",
    ),
    click.option(
        "--precision", metavar="PRECISION",
        help="Precision in which the file computes, float32 or float64. Must be that of the model's weights, "
        "which is the default.",
    ),
    click.option("--opset", "opset_version", type=int, metavar="N", help="Version of the ONNX operators, 18 to 20."),
    click.option(
        "--dynamic", "dynamic_shapes", multiple=True, callback=_parse_dynamic, metavar="NAME:AXIS=SYMBOL",
        help="A dynamic axis of an argument, and its name, such as input:1=B. May be repeated; replaces the default, "
        "which is the batch axis, and the time axis where the form allows it.",
    ),
    click.option(
        "--streaming", is_flag=True,
        help="Make every state an input and an output, so that a sequence can come in chunks.",
    ),
    click.option(
        "--max-nodes", type=click.IntRange(1), metavar="N",
        help="Refuse the form unrolled if the file would have more nodes.",
    ),
)  # fmt: skip

# Keyword arguments of `verify`, and of both export functions.
CHECK_OPTIONS: tuple[Option, ...] = (
    click.option("--atol", type=float, help="Allowed absolute difference; replaces the default limits."),
    click.option("--rtol", type=float, help="Allowed difference as a share of each value, added to --atol."),
    click.option(
        "--size", "sizes", type=int, multiple=True, metavar="N",
        help="A size to try for every dynamic axis; may be repeated. Default: 1, 3 and 7.",
    ),
)  # fmt: skip

# Keyword arguments of `export_bundle` only.
BUNDLE_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--bucket", "buckets", type=click.IntRange(1), multiple=True, metavar="N",
        help="A number of steps for which a bundle has an unrolled graph; may be repeated.",
    ),
    click.option("--name", help="The model's name in a bundle. Default: that of the folder."),
)  # fmt: skip

# Keyword arguments of `target.from_weights`.
WEIGHTS_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--nonlinearity", type=click.Choice(["tanh", "relu"]),
        help="Nonlinearity of an RNN in a weights file. Default: tanh.",
    ),
    click.option("--batch-first", is_flag=True, help="For a weights file: the input is (B, T, I), not (T, B, I)."),
    click.option("--steps", type=click.IntRange(1), help="For a weights file: T of the example. Default: 32."),
    click.option("--batch", type=click.IntRange(1), help="For a weights file: B of the example. Default: 2."),
    click.option("--lengths", is_flag=True, help="For a weights file: the layer also takes the lengths of the rows."),
)  # fmt: skip
WEIGHTS = ("nonlinearity", "batch_first", "steps", "batch", "lengths")

PROVIDER_OPTION = click.option(
    "--require-provider", metavar="PROVIDER",
    help="An onnxruntime execution provider that must run every node, such as CUDAExecutionProvider.",
)  # fmt: skip
REPORT_OPTION = click.option(
    "--report", "report_to", type=click.Path(path_type=Path), callback=_check_report_path, metavar="PATH",
    help="Also write the report of the verification, passed or failed, as a page (.html) or as JSON (.json).",
)  # fmt: skip
JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else."
)


def _options(*groups: Sequence[Option]) -> Callable[[Function], Function]:
    """Return a decorator that adds these options to a command, in this order."""

    def add(function: Function) -> Function:
        options = [option for group in groups for option in group]
        for option in reversed(options):
            function = option(function)
        return function

    return add


@click.command(short_help="Export a model to a verified ONNX file, or to a bundle of several.")
@click.argument("target")
@click.option(
    "-o", "--output", "path", required=True, type=click.Path(path_type=Path), metavar="PATH",
    help="The .onnx file to write; any other PATH is the folder of a bundle. The folder around it must exist.",
)  # fmt: skip
@_options(
    FORM_OPTIONS,
    BUNDLE_OPTIONS,
    CHECK_OPTIONS,
    [PROVIDER_OPTION],
    WEIGHTS_OPTIONS,
    [REPORT_OPTION, JSON_OPTION],
)
def export(target: str, path: Path, report_to: Path | None, as_json: bool, **options: Any) -> None:
    """Export TARGET to an ONNX file, or to a bundle: a folder of several. It appears only once every file has been run
    and agrees with TARGET.

    TARGET is `package.module:factory`, a function that returns `(model, args)` or `(model, args, kwargs)`; the current
    folder is searched too. Or it is a file with the weights of one recurrent layer: .safetensors, or a state_dict in
    .pt, .pth or .bin, from which only tensors are loaded. Type, sizes, layers and directions follow from the weights.

    Exit codes: 0 success, 1 the exported file would differ (nothing is written), 2 bad usage or input.

    \b
    Examples:
      deploy-rnn export mymodels:tagger -o tagger.onnx --form scan
      deploy-rnn export gru.safetensors -o gru.onnx --steps 100
      deploy-rnn export mymodels:tagger -o bundles/tagger --bucket 32 --bucket 128
    """
    options = _without_unset(options)
    weights_options = _pop(options, WEIGHTS)
    with command_errors(as_json=as_json):
        result: Report | Manifest
        if path.suffix == ".onnx":
            source, result = _export_file(target, path, report_to, weights_options, options)
        else:
            source, result = _export_bundle(target, path, report_to, weights_options, options)
    _show(result, source, as_json=as_json)


def _export_file(
    target: str,
    path: Path,
    report_to: Path | None,
    weights_options: dict[str, Any],
    options: dict[str, Any],
) -> tuple["Target", "Report"]:
    from deploy_rnn.export import export_onnx

    for name, flag in (("buckets", "--bucket"), ("name", "--name")):
        if name in options:
            raise ExportError(
                f"{flag} needs a bundle; leave it out, or give a PATH that does not end in .onnx."
            )
    forms = options.pop("forms", ())
    if len(forms) > 1:
        raise ExportError(
            "a second --form needs a bundle; leave it out, or give a PATH that does not end in .onnx."
        )
    if forms:
        options["form"] = forms[0]
    file_target(
        path, "model.onnx"
    )  # a path that cannot be written is refused before the model is loaded
    source = _load(target, weights_options)
    with step(f"exporting to {path.name} and verifying it"), _report_if_failed(report_to):
        report = export_onnx(source.model, source.args, path, kwargs=source.kwargs, **options)
    _write_report(report, report_to)
    return source, report


def _export_bundle(
    target: str,
    path: Path,
    report_to: Path | None,
    weights_options: dict[str, Any],
    options: dict[str, Any],
) -> tuple["Target", Manifest]:
    from deploy_rnn.export import export_bundle

    if "require_provider" in options:
        raise ExportError(
            "--require-provider needs a single file; leave it out, or give a PATH that ends in .onnx."
        )
    if report_to is not None:
        raise ExportError(
            "--report needs a single file: a bundle has its own. Leave it out, or give a PATH in .onnx."
        )
    folder_target(
        path, MANIFEST
    )  # a folder that cannot be replaced is refused before the model is loaded
    source = _load(target, weights_options)
    with step(f"exporting to {path.name} and verifying it"):
        manifest = export_bundle(source.model, source.args, path, kwargs=source.kwargs, **options)
    return source, manifest


@click.command(short_help="Compare an ONNX file with the model that it came from.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--against", "target", required=True, metavar="TARGET",
    help="`package.module:factory`, or the weights of one recurrent layer, as for `deploy-rnn export`.",
)  # fmt: skip
@_options(CHECK_OPTIONS, [PROVIDER_OPTION], WEIGHTS_OPTIONS, [REPORT_OPTION, JSON_OPTION])
def verify(path: Path, target: str, report_to: Path | None, as_json: bool, **options: Any) -> None:
    """Run the ONNX file PATH against the model that it came from, and show where it first differs.

    Exit codes: 0 it agrees, 1 it does not, 2 bad usage or input.

    \b
    Example:
      deploy-rnn verify tagger.onnx --against mymodels:tagger
    """
    options = _without_unset(options)
    weights_options = _pop(options, WEIGHTS)
    with command_errors(as_json=as_json):
        _read_file(
            path
        )  # a file that is missing or is not ONNX is bad input; any other fault is a failed check
        source = _load(target, weights_options)
    with command_errors(as_json=as_json, failed=(*CHECKS, ExportError)):
        from deploy_rnn.export import verify as verify_file

        with step(f"verifying {path.name}"), _report_if_failed(report_to):
            report = verify_file(path, source.model, source.args, kwargs=source.kwargs, **options)
        _write_report(report, report_to)
    _show(report, source, as_json=as_json)


@click.command(short_help="Show what is in an ONNX file or a bundle.")
@click.argument("path", type=click.Path(path_type=Path))
@_options([JSON_OPTION])
def inspect(path: Path, as_json: bool) -> None:
    """Show the inputs, outputs, dynamic axes, nodes and sizes of the ONNX file PATH; any .onnx file will do. For a
    bundle, check its files and show its manifest.

    The file is read, not run, and only onnx is needed.

    \b
    Example:
      deploy-rnn inspect tagger.onnx
    """
    with command_errors(as_json=as_json):
        content = _read_bundle(path) if path.is_dir() else _read_file(path)
    if as_json:
        show_json(content.to_dict())
    else:
        click.echo(printable(str(content)))


def _read_bundle(path: Path) -> Manifest:
    manifest = Manifest.read(path)
    manifest.check(path)
    return manifest


def _read_file(path: Path) -> "OnnxFile":
    from ..onnx_file import OnnxFile

    return OnnxFile.read(path)


def _without_unset(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the functions have their own defaults for the others."""
    return {name: value for name, value in options.items() if not _is_unset(value)}


def _is_unset(value: Any) -> bool:
    return value is None or value is False or value == ()  # not 0, as in `--atol 0`


def _pop(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Take those of `names` that were given out of `options`."""
    return {name: options.pop(name) for name in names if name in options}


def _load(target: str, weights_options: dict[str, Any]) -> "Target":
    with step(f"loading {target}"):
        from .target import load_target

        return load_target(target, **weights_options)


@contextmanager
def _report_if_failed(path: Path | None) -> Iterator[None]:
    """Write the report of a verification that fails."""
    try:
        yield
    except VerificationError as error:
        if error.report is not None:
            _write_report(error.report, path)
        raise


def _write_report(report: "Report", path: Path | None) -> None:
    if path is not None:
        text = report.to_html() if path.suffix == ".html" else report.to_json()
        replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _show(result: "Report | Manifest", source: "Target", *, as_json: bool) -> None:
    if as_json:
        show_json(json.loads(result.to_json()) | {"target": source.shown_as})
    else:
        click.echo(printable(f"{source.shown_as}\n{result}"))
