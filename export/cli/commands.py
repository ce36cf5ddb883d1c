"""`deploy-rnn export`, `verify` and `inspect`. Only click is imported here; the rest is loaded when they are called."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy_rnn.bundle import Manifest, checked_manifest
from deploy_rnn.console import CHECKS, command_errors, printable, show_json, step
from deploy_rnn.errors import BundleError, ExportError, VerificationError
from deploy_rnn.files import replace_file
from deploy_rnn.files import target as file_target

from .bundles import bundle_verdict, export_to_bundle, export_to_triton, show_triton
from .options import (
    BUNDLE_OPTIONS,
    CHECK_OPTIONS,
    FORM_OPTIONS,
    JSON_OPTION,
    PAIRING_OPTIONS,
    PROVIDER_OPTION,
    REPORT_OPTION,
    TRITON_OPTIONS,
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
    "-o", "--output", "path", type=click.Path(path_type=Path), metavar="PATH", show_default="none",
    help="The .onnx file to write; any other PATH is the folder of a bundle. The folder around it must exist. May be "
    "left out with --triton.",
)  # fmt: skip
@with_options(
    FORM_OPTIONS,
    BUNDLE_OPTIONS,
    TRITON_OPTIONS,
    CHECK_OPTIONS,
    [PROVIDER_OPTION],
    WEIGHTS_OPTIONS,
    [REPORT_OPTION, JSON_OPTION],
)
def export(
    target: str, path: Path | None, report_to: Path | None, as_json: bool, **options: Any
) -> None:
    """Export TARGET to an ONNX file, or to a bundle: a folder of several. It appears only once every file has been run
    and agrees with TARGET.

    TARGET is `package.module:factory`, a function that returns `(model, args)` or `(model, args, kwargs)`; the current
    folder is searched too. Or it is a file with the weights of a recurrent layer: .safetensors, or a state_dict in .pt,
    .pth, .bin or Lightning's .ckpt, from which only tensors are loaded; --key names the layer if there is more. Type,
    sizes, layers and directions follow from the weights.

    Exit codes: 0 success, 1 the exported file would differ (nothing is written), 2 bad usage or input.

    \b
    Examples:
      deploy-rnn export mymodels:tagger -o tagger.onnx --form scan
      deploy-rnn export gru.safetensors -o gru.onnx --steps 100
      deploy-rnn export last.ckpt --key model.encoder.rnn -o encoder && deploy-rnn serve encoder
      deploy-rnn export mymodels:tagger -o bundles/tagger --bucket 32 --bucket 128
      deploy-rnn export mymodels:tagger --triton models
    """
    options = without_unset(options)
    weights_options = pop(options, WEIGHTS)
    triton_options = pop(options, ("repository", "backend"))
    if "repository" in triton_options:
        with command_errors(as_json=as_json):
            written = export_to_triton(
                target, path, report_to, triton_options, weights_options, options
            )
        show_triton(written, as_json=as_json)
        return
    if path is None:
        raise click.UsageError("Missing option '-o' / '--output', or '--triton'.")
    if triton_options:
        raise click.UsageError("--triton-backend needs --triton REPOSITORY.")
    with command_errors(as_json=as_json):
        result: Report | Manifest
        if path.suffix == ".onnx":
            source, result = _export_file(target, path, report_to, weights_options, options)
        else:
            source, result = export_to_bundle(target, path, report_to, weights_options, options)
    _show(result, source, as_json=as_json)
    if isinstance(result, Manifest) and not as_json:
        click.echo(printable(bundle_verdict(path)))


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
    precisions = options.pop("precision", ())
    if len(precisions) > 1:
        raise ExportError(
            "a second --precision needs a bundle; leave it out, or give a PATH that does not end in .onnx."
        )
    if precisions:
        options["precision"] = precisions[0]
    file_target(
        path, "model.onnx"
    )  # a path that cannot be written is refused before the model is loaded
    source = load(target, weights_options)
    with step(f"exporting to {path.name} and verifying it"), _report_if_failed(path, report_to):
        report = export_onnx(source.model, source.args, path, kwargs=source.kwargs, **options)
    _write_report(path, [report], report_to)
    return source, report


@click.command(short_help="Compare an ONNX file, or a bundle, with the model that it came from.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--against", "target", required=True, metavar="TARGET",
    help="`package.module:factory`, or the weights of one recurrent layer, as for `deploy-rnn export`.",
)  # fmt: skip
@with_options(
    PAIRING_OPTIONS, CHECK_OPTIONS, [PROVIDER_OPTION], WEIGHTS_OPTIONS, [REPORT_OPTION, JSON_OPTION]
)
def verify(path: Path, target: str, report_to: Path | None, as_json: bool, **options: Any) -> None:
    """Run the ONNX file PATH against the model that it came from, and show where it first differs. Of a bundle, every
    graph is run, and its files must be those that were exported.

    Exit codes: 0 it agrees, 1 it does not, 2 bad usage or input.

    \b
    Examples:
      deploy-rnn verify tagger.onnx --against mymodels:tagger
      deploy-rnn verify bundles/tagger --against mymodels:tagger --report tagger.html
    """
    options = without_unset(options)
    weights_options = pop(options, WEIGHTS)
    is_bundle = path.is_dir()
    with command_errors(as_json=as_json):
        if is_bundle and {"input_names", "output_names"} & options.keys():
            raise ExportError(
                "--input-names and --output-names are for a file: a bundle has the names of its export."
            )
        # What is missing or is neither a file nor a bundle is bad input; any other fault is a failed check.
        if is_bundle:
            Manifest.read(path)
        else:
            _read_file(path)
        source = load(target, weights_options)
    with command_errors(as_json=as_json, failed=(*CHECKS, ExportError, BundleError)):
        from deploy_rnn.export import verify as verify_file
        from deploy_rnn.export import verify_bundle

        verify_path = verify_bundle if is_bundle else verify_file
        with step(f"verifying {path.name}"), _report_if_failed(path, report_to):
            result = verify_path(path, source.model, source.args, kwargs=source.kwargs, **options)
        reports = result if isinstance(result, tuple) else (result,)
        _write_report(path, reports, report_to)
    if not is_bundle:
        _show(reports[0], source, as_json=as_json)
    elif as_json:
        graphs = [json.loads(report.to_json()) for report in reports]
        show_json({"path": str(path), "graphs": graphs, "target": source.shown_as})
    else:
        verdicts = [f"  {report.file.name}: {report.verdict}" for report in reports]
        click.echo(printable("\n".join([source.shown_as, f"{path}: verified:", *verdicts])))


@click.command(short_help="Show what is in an ONNX file or a bundle.")
@click.argument("path", type=click.Path(path_type=Path))
@with_options([JSON_OPTION])
def inspect(path: Path, as_json: bool) -> None:
    """Show the inputs, outputs, dynamic axes, nodes and sizes of the ONNX file PATH; any .onnx file will do. For a
    bundle, check its files and show its manifest.

    Also shows which runtimes are known to get such a file wrong, or to refuse it. The file is read, not run, and only
    onnx is needed.

    \b
    Example:
      deploy-rnn inspect tagger.onnx
    """
    with command_errors(as_json=as_json):
        if path.is_dir():
            manifest = checked_manifest(path)
            files = [_read_file(path / graph.file) for graph in manifest.graphs]
            content = _bundle_content(manifest, files)
            lines = [str(manifest), *_bundle_lines(files)]
        else:
            file = _read_file(path)
            from ..runtimes.faults import described, to_dict

            content = file.to_dict() | {"runtimes": to_dict(file)}
            lines = [str(file), *described(file)]
    if as_json:
        show_json(content)
    else:
        click.echo(printable("\n".join(lines)))


def _bundle_content(manifest: Manifest, files: Sequence["OnnxFile"]) -> dict[str, Any]:
    """A manifest for JSON, with what its files say and it does not."""
    content = manifest.to_dict()
    for graph, file in zip(content["graphs"], files, strict=True):
        graph["int8_products"] = file.int8_products
        graph["index_ranges"] = file.index_ranges
    return content


def _bundle_lines(files: Sequence["OnnxFile"]) -> Iterator[str]:
    """What the files of a bundle say and its manifest does not, and what is known of the runtimes for each."""
    from ..runtimes.faults import described

    for name, limits in files[0].index_ranges.items():
        yield f"  indices {name}: {limits}, into a table"
    for file in files:
        if file.int8_products:
            yield f"  {file.name}: {file.precision}{file.products_note}"
    for file in files:
        yield f"  {file.name} in the runtimes:"
        yield from (f"  {line}" for line in described(file))


def _read_file(path: Path) -> "OnnxFile":
    from ..onnx_file import OnnxFile

    return OnnxFile.read(path)


@contextmanager
def _report_if_failed(path: Path, report_to: Path | None) -> Iterator[None]:
    """Write the report of a verification that fails."""
    try:
        yield
    except VerificationError as error:
        reports = error.reports or (error.report,)
        _write_report(path, [report for report in reports if report is not None], report_to)
        raise


def _write_report(path: Path, reports: Sequence["Report"], report_to: Path | None) -> None:
    """Write the reports of what is at `path`: of a bundle, JSON has a list of them."""
    if report_to is None or not reports:
        return
    if report_to.suffix == ".html":
        from deploy_rnn.export import reports_html

        text = reports_html(reports, path.name)
    elif path.is_dir():
        text = f"[{', '.join(report.to_json() for report in reports)}]\n"
    else:
        text = reports[0].to_json()
    replace_file(report_to, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _show(result: "Report | Manifest", source: "Target", *, as_json: bool) -> None:
    if as_json:
        show_json(json.loads(result.to_json()) | {"target": source.shown_as})
    else:
        click.echo(printable(f"{source.shown_as}\n{result}"))
