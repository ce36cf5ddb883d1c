"""`deploy-rnn export`, `verify` and `inspect`. Only click is imported here; the rest is loaded when they are called."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy_rnn.bundle import MANIFEST, Manifest
from deploy_rnn.console import CHECKS, command_errors, printable, show_json, step
from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.files import folder_target, replace_file
from deploy_rnn.files import target as file_target

from .options import (
    BUNDLE_OPTIONS,
    CHECK_OPTIONS,
    FORM_OPTIONS,
    JSON_OPTION,
    PROVIDER_OPTION,
    REPORT_OPTION,
    WEIGHTS,
    WEIGHTS_OPTIONS,
    load,
    pop,
    with_options,
    without_unset,
)

if TYPE_CHECKING:
    from deploy_rnn.export import Report

    from ..onnx_file import OnnxFile
    from .target import Target


@click.command(short_help="Export a model to a verified ONNX file, or to a bundle of several.")
@click.argument("target")
@click.option(
    "-o", "--output", "path", required=True, type=click.Path(path_type=Path), metavar="PATH",
    help="The .onnx file to write; any other PATH is the folder of a bundle. The folder around it must exist.",
)  # fmt: skip
@with_options(
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
    options = without_unset(options)
    weights_options = pop(options, WEIGHTS)
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
    source = load(target, weights_options)
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
    source = load(target, weights_options)
    with step(f"exporting to {path.name} and verifying it"):
        manifest = export_bundle(source.model, source.args, path, kwargs=source.kwargs, **options)
    return source, manifest


@click.command(short_help="Compare an ONNX file with the model that it came from.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--against", "target", required=True, metavar="TARGET",
    help="`package.module:factory`, or the weights of one recurrent layer, as for `deploy-rnn export`.",
)  # fmt: skip
@with_options(CHECK_OPTIONS, [PROVIDER_OPTION], WEIGHTS_OPTIONS, [REPORT_OPTION, JSON_OPTION])
def verify(path: Path, target: str, report_to: Path | None, as_json: bool, **options: Any) -> None:
    """Run the ONNX file PATH against the model that it came from, and show where it first differs.

    Exit codes: 0 it agrees, 1 it does not, 2 bad usage or input.

    \b
    Example:
      deploy-rnn verify tagger.onnx --against mymodels:tagger
    """
    options = without_unset(options)
    weights_options = pop(options, WEIGHTS)
    with command_errors(as_json=as_json):
        _read_file(
            path
        )  # a file that is missing or is not ONNX is bad input; any other fault is a failed check
        source = load(target, weights_options)
    with command_errors(as_json=as_json, failed=(*CHECKS, ExportError)):
        from deploy_rnn.export import verify as verify_file

        with step(f"verifying {path.name}"), _report_if_failed(report_to):
            report = verify_file(path, source.model, source.args, kwargs=source.kwargs, **options)
        _write_report(report, report_to)
    _show(report, source, as_json=as_json)


@click.command(short_help="Show what is in an ONNX file or a bundle.")
@click.argument("path", type=click.Path(path_type=Path))
@with_options([JSON_OPTION])
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
