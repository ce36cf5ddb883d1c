"""`deploy-rnn export` to a bundle, and to a Triton repository. Only click is imported here; the rest is loaded when it
is called."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from deploy_rnn.bundle import MANIFEST, Manifest
from deploy_rnn.console import printable, show_json, step
from deploy_rnn.errors import ExportError
from deploy_rnn.files import folder_target

from .options import load

if TYPE_CHECKING:
    from .target import Target


def export_to_bundle(
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
    precisions = options.get("precision", ())
    if len(precisions) == 1:
        options["precision"] = precisions[0]
    source = load(target, weights_options)
    with step(f"exporting to {path.name} and verifying it"):
        manifest = export_bundle(source.model, source.args, path, kwargs=source.kwargs, **options)
    return source, manifest


def bundle_verdict(path: Path) -> str:
    """What the report of a bundle says of each graph."""
    reports = json.loads((path / "report.json").read_text(encoding="utf-8"))
    lines = [f"  {Path(report['path']).name}: {report['verdict']}" for report in reports]
    return "\n".join(["verified:", *lines, f"  all of it: {path / 'report.html'}"])


@dataclass(frozen=True)
class WrittenModel:
    """A model in a Triton repository.

    Attributes:
        shown_as: the target.
        manifest: of the bundle that it was written from.
        folder: of the version.
    """

    shown_as: str
    manifest: Manifest
    folder: Path


def export_to_triton(
    target: str,
    path: Path | None,
    report_to: Path | None,
    triton_options: dict[str, Any],
    weights_options: dict[str, Any],
    options: dict[str, Any],
) -> WrittenModel:
    """
    Args:
        path: for the bundle; None if it is not kept.
        triton_options: `repository`, and perhaps `backend`.
    """
    from ..triton.repository import check_repository, write_triton_model

    if path is not None and path.suffix == ".onnx":
        raise ExportError(
            "--triton needs a bundle; leave --output out, or give a PATH that does not end in .onnx."
        )
    if len(options.get("precision", ())) > 1:
        raise ExportError("--triton needs one --precision; leave the others out.")
    repository: Path = triton_options["repository"]
    default_name = _name_of(target) if path is None else path.name
    name = options.setdefault("name", default_name)
    check_repository(repository, name)
    with TemporaryDirectory() as folder:
        bundle = path or Path(folder) / name
        source, manifest = export_to_bundle(target, bundle, report_to, weights_options, options)
        with step(f"writing {name} to {repository}"):
            version = write_triton_model(bundle, **triton_options, name=name)
    return WrittenModel(source.shown_as, manifest, version)


def show_triton(written: WrittenModel, *, as_json: bool) -> None:
    if as_json:
        fields = {"target": written.shown_as, "triton": str(written.folder)}
        show_json(written.manifest.to_dict() | fields)
        return
    (report,) = written.folder.glob("**/report.json")
    verdict = bundle_verdict(report.parent)
    lines = [written.shown_as, str(written.manifest), verdict, f"Triton: {written.folder}"]
    click.echo(printable("\n".join(lines)))


def _name_of(target: str) -> str:
    """The name of a model: the function of `package.module:factory`, or a weights file without its suffix."""
    factory = target.rpartition(":")[2]
    return Path(factory).stem
