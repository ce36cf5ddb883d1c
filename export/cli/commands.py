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
from deploy_rnn.files import target as writable

if TYPE_CHECKING:
    from ..onnx_file import OnnxFile
    from ..verification.report import Report
    from .target import Target

Function = TypeVar("Function", bound=Callable[..., Any])
Option = Callable[[Any], Any]


def _shapes(ctx: click.Context, option: click.Parameter, given: Sequence[str]) -> dict[str, dict[int, str]] | None:
    """NAME:AXIS=SYMBOL, any number of times -> `dynamic_shapes`."""
    shapes: dict[str, dict[int, str]] = {}
    for each in given:
        parts = re.fullmatch(r"(\w+):(-?\d+)=([A-Za-z_]\w*)", each)
        if parts is None:
            raise click.BadParameter(f"{each!r} is not NAME:AXIS=SYMBOL, such as input:1=B.", ctx, option)
        shapes.setdefault(parts[1], {})[int(parts[2])] = parts[3]
    return shapes or None


def _report_path(ctx: click.Context, option: click.Parameter, given: Path | None) -> Path | None:
    if given is not None and given.suffix not in (".html", ".json"):
        raise click.BadParameter(f"{str(given)!r} ends neither in .html nor in .json.", ctx, option)
    return None if given is None else writable(given, "report.html")


# The name of an option (its second one, if it has two) is the keyword argument of `export_onnx` that it is passed as;
# what is not given is not passed.
FORM_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--form", "forms", multiple=True, metavar="FORM",
        help="How the recurrence is written: unrolled, scan, native or auto; may be repeated for a bundle.",
    ),
    click.option(
        "--precision", metavar="PRECISION",
        help="In which the file computes, float32 or float64: that of the model's weights, which is the default.",
    ),
    click.option("--opset", "opset_version", type=int, metavar="N", help="Version of the ONNX operators, 18 to 20."),
    click.option(
        "--dynamic", "dynamic_shapes", multiple=True, callback=_shapes, metavar="NAME:AXIS=SYMBOL",
        help="An axis of an argument that is to be dynamic, and its name, such as input:1=B; may be repeated, and "
        "replaces the default: the batch, and the steps where the form can.",
    ),
    click.option("--streaming", is_flag=True, help="Every state is an input and an output: sequences come in chunks."),
    click.option("--max-nodes", type=click.IntRange(1), metavar="N", help="The size from which unrolling is refused."),
)  # fmt: skip

# Likewise of `verify`, and of `export_onnx` too.
CHECK_OPTIONS: tuple[Option, ...] = (
    click.option("--atol", type=float, help="Allowed absolute difference, in the place of the measured one."),
    click.option("--rtol", type=float, help="Allowed difference as a share of each value, beside --atol."),
    click.option(
        "--size", "sizes", type=int, multiple=True, metavar="N",
        help="A size that every dynamic axis is tried with; may be repeated; by default 1, 3 and 7.",
    ),
)  # fmt: skip

# Likewise of `export_bundle`.
BUNDLE_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--bucket", "buckets", type=click.IntRange(1), multiple=True, metavar="N",
        help="A number of steps that a bundle has an unrolled graph for; may be repeated.",
    ),
    click.option("--name", help="The model's name in a bundle; its folder's if not given."),
)  # fmt: skip

# Likewise of `target.from_weights`.
WEIGHTS_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--nonlinearity", type=click.Choice(["tanh", "relu"]), help="Of the RNN in a weights file; tanh if not given."
    ),
    click.option("--batch-first", is_flag=True, help="A weights file's input is (B, T, I), not (T, B, I)."),
    click.option("--steps", type=click.IntRange(1), help="T of the example for a weights file; 32 if not given."),
    click.option("--batch", type=click.IntRange(1), help="B of the example for a weights file; 2 if not given."),
    click.option("--lengths", is_flag=True, help="A weights file's layer takes the lengths of the rows, too."),
)  # fmt: skip
WEIGHTS = ("nonlinearity", "batch_first", "steps", "batch", "lengths")

require_provider = click.option(
    "--require-provider", metavar="PROVIDER",
    help="An onnxruntime provider that must run every node, such as CUDAExecutionProvider.",
)  # fmt: skip
report_to = click.option(
    "--report", "report_to", type=click.Path(path_type=Path), callback=_report_path, metavar="PATH",
    help="Also write the report of the check, passed or failed: a page (.html) or JSON (.json).",
)  # fmt: skip
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")


def _options(*groups: Sequence[Option]) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return add


@click.command(short_help="A model becomes an ONNX file that has been run and compared.")
@click.argument("target")
@click.option(
    "-o", "--output", "path", required=True, type=click.Path(path_type=Path), metavar="PATH",
    help="The .onnx file, or else the bundle folder, to make; the folder around it must exist.",
)  # fmt: skip
@_options(FORM_OPTIONS, BUNDLE_OPTIONS, CHECK_OPTIONS, [require_provider], WEIGHTS_OPTIONS, [report_to, as_json])
def export(target: str, path: Path, report_to: Path | None, as_json: bool, **options: Any) -> None:
    """Export TARGET to an ONNX file, or a folder of several, which appears only if all of it has been run and agrees
    with TARGET.

    TARGET is `package.module:factory`, a function that returns `(model, args)` or `(model, args, kwargs)`, looked up in
    the current folder too; or the weights of a bare recurrent layer: .safetensors, or a state_dict in .pt, .pth or
    .bin, of which only tensors are loaded. Family, sizes, layers and directions are read off them.

    Exit codes: 0 fine, 1 the file would have differed (none is made), 2 bad usage or input.

    \b
    Examples:
      deploy-rnn export mymodels:tagger -o tagger.onnx --form scan
      deploy-rnn export gru.safetensors -o gru.onnx --steps 100
      deploy-rnn export mymodels:tagger -o bundles/tagger --bucket 32 --bucket 128
    """
    options = _given(options)
    weights = _taken(options, WEIGHTS)
    with command_errors(as_json=as_json):
        make = _maker(path, options, {"report"} if report_to else set())
        _writable(path)
        found = _loaded(target, weights)
        with step(f"exporting to {path.name} and checking it"), _reporting(report_to):
            made = make(found.model, found.args, path, kwargs=found.kwargs, **options)
        _write_report(made, report_to)
    _show(made, found, as_json=as_json)


def _maker(path: Path, options: dict[str, Any], others: set[str]) -> Callable[..., Any]:
    """`export_onnx` or `export_bundle`, as `path` asks for, with `options` made fit for it.

    `others`: what else was given; a bundle has its own report.

    Raises:
        ExportError: an option for the other.
    """
    from deploy_rnn.export import export_bundle, export_onnx

    make: Callable[..., Any]
    if path.suffix != ".onnx":
        make, unfit = export_bundle, {"require_provider", "report"} & (options.keys() | others)
    else:
        make, unfit = export_onnx, {"buckets", "name"} & options.keys()
        if "forms" in options:
            options["form"], *more = options.pop("forms")
            unfit |= {"a second form"} if more else set()
    if unfit:
        other = "a PATH that ends in .onnx" if path.suffix != ".onnx" else "a bundle, a PATH that does not end in .onnx"
        raise ExportError(f"`{min(unfit)}` is for {other}; leave it out, or give that.")
    return make


def _writable(path: Path) -> None:
    if path.suffix == ".onnx":
        writable(path, "model.onnx")
    else:
        folder_target(path, MANIFEST)


@click.command(short_help="Compare an ONNX file with the model that it came from.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--against", "target", required=True, metavar="TARGET",
    help="`package.module:factory`, or the weights of a bare layer, as for `deploy-rnn export`.",
)  # fmt: skip
@_options(CHECK_OPTIONS, [require_provider], WEIGHTS_OPTIONS, [report_to, as_json])
def verify(path: Path, target: str, report_to: Path | None, as_json: bool, **options: Any) -> None:
    """Run the ONNX file PATH against the model that it came from, and say where it first differs.

    Exit codes: 0 it agrees, 1 it does not, 2 bad usage or input.

    \b
    Example:
      deploy-rnn verify tagger.onnx --against mymodels:tagger
    """
    options = _given(options)
    weights = _taken(options, WEIGHTS)
    with command_errors(as_json=as_json):
        from ..onnx_file import OnnxFile

        OnnxFile.read(path)  # a file that is not there, or is no ONNX, is bad input; beyond that it is a wrong file
        found = _loaded(target, weights)
    with command_errors(as_json=as_json, failed=(*CHECKS, ExportError)):
        from deploy_rnn.export import verify as check

        with step(f"checking {path.name}"), _reporting(report_to):
            report = check(path, found.model, found.args, kwargs=found.kwargs, **options)
        _write_report(report, report_to)
    _show(report, found, as_json=as_json)


@click.command(short_help="Show what is in an ONNX file or a bundle.")
@click.argument("path", type=click.Path(path_type=Path))
@_options([as_json])
def inspect(path: Path, as_json: bool) -> None:
    """Show what the ONNX file PATH takes and gives, its dynamic axes, nodes and sizes; any .onnx, from anyone. Of a
    bundle, what its manifest says, once its files are found to be whole.

    It is read, not run, and only onnx is needed.

    \b
    Example:
      deploy-rnn inspect tagger.onnx
    """
    with command_errors(as_json=as_json):
        found = _manifest(path) if path.is_dir() else _inspected(path)
    if as_json:
        show_json(found.to_dict())
    else:
        click.echo(printable(str(found)))


def _manifest(path: Path) -> "Manifest":
    manifest = Manifest.read(path)
    manifest.check(path)
    return manifest


def _inspected(path: Path) -> "OnnxFile":
    from ..onnx_file import OnnxFile

    return OnnxFile.read(path)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Without the options that were not given: the functions have their own defaults."""
    return {name: value for name, value in options.items() if value is not None and value is not False and value != ()}


def _taken(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Those options, out of `options`."""
    return {name: options.pop(name) for name in names if name in options}


def _loaded(target: str, weights: dict[str, Any]) -> "Target":
    with step(f"loading {target}"):
        from .target import load_target

        return load_target(target, **weights)


@contextmanager
def _reporting(path: Path | None) -> Iterator[None]:
    """A check that fails leaves its report, too."""
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


def _show(made: "Report | Manifest", found: "Target", *, as_json: bool) -> None:
    if as_json:
        show_json(json.loads(made.to_json()) | {"target": found.shown_as})
    else:
        click.echo(printable(f"{found.shown_as}\n{made}"))
