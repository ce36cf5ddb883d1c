"""`export_bundle`: one model as several verified graphs that share one file of weights."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from torch import nn

import deploy_rnn
from deploy_rnn import bundle
from deploy_rnn.bundle import Graph, Manifest, Tensor
from deploy_rnn.checking.module import check_module
from deploy_rnn.errors import ExportError
from deploy_rnn.files import folder_target, replace_folder
from deploy_rnn.tensor_spec import TensorSpec

from .bundle_parts import BundlePart, plan_graphs
from .capture.captured import CapturedModel
from .capture.open_axes import FixedAxes, with_fixed_axes
from .forms import FORMS
from .options import DEFAULTS, ExportOptions
from .precision.metric import ErrorMetric
from .precision.names import INT8, ROUNDED
from .precision.scope import ALL
from .verification.html import reports_html
from .verification.report import Report


def export_bundle(
    model: nn.Module,
    args: Any,
    folder: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    forms: Sequence[Literal["unrolled", "scan", "native"]] | None = None,
    buckets: Sequence[int] | None = None,
    name: str | None = None,
    precision: str | Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int = DEFAULTS.opset_version,
    ir_version: int | None = DEFAULTS.ir_version,
    streaming: bool = DEFAULTS.streaming,
    max_nodes: int = DEFAULTS.max_nodes,
    row_ends: Literal["sequence_lens", "held"] | None = DEFAULTS.row_ends,
    runtime: str = DEFAULTS.runtime,
    portable: bool = DEFAULTS.portable,
    atol: float | None = None,
    rtol: float | None = None,
    max_error: float | ErrorMetric | None = None,
    int8_layers: Sequence[Literal["linear", "embedding"]] = DEFAULTS.int8_layers,
    int8_products: Literal["all", "state"] = DEFAULTS.int8_products,
    sizes: Sequence[int] = DEFAULTS.sizes,
) -> Manifest:
    """Export a model as a folder: several graphs that share one file of weights, a manifest, and a report.

    Every graph is verified as in `export_onnx`. The folder appears whole or not at all. An existing bundle is replaced;
    any other folder is left alone. The arguments that are not described here are those of `export_onnx`.

    Args:
        folder: the folder to write; the folder around it must exist.
        forms: how the graphs for any number of steps are written: "scan", "native" or both. None: each of the two that
            the model allows. With "unrolled", or if neither of the two is left, there is also a graph for the example's
            number of steps.
        buckets: numbers of steps; each gets a graph with every step written out. Where the model computes its steps
            from an axis of its inputs, as a strided convolution does, they are sizes of that axis.
        name: name of the model; None for that of the folder.
        precision: as for `export_onnx`; or several, such as ("float32", "int8"). The bundle then has every graph in
            each of them, and a file of weights for each. Whoever opens it says which, as in
            `Engine(folder, precision="int8")`. `max_error` bounds those that round.

    Returns:
        The manifest.

    Raises:
        FileExistsError: `folder` exists and is not a bundle.
        ExportError: the model fixes its number of steps, so that there can be no `buckets`; or as for `export_onnx`.

    Warns:
        UserWarning: as for `export_onnx`.
    """
    checked = check_module(model)
    target = folder_target(folder, bundle.MANIFEST)
    if isinstance(forms, str):
        raise ExportError(f"`forms` (={forms!r}) must be a list of names, such as [{forms!r}].")
    for form in forms or ():
        if form not in FORMS:
            offered = " or ".join(map(repr, FORMS))
            raise ExportError(f"`forms` has {form!r}; use {offered}.")
    _check_buckets(buckets)
    precisions = _check_precisions(precision)
    base_options = ExportOptions(
        dynamic_shapes=dynamic_shapes,
        input_names=input_names,
        output_names=output_names,
        opset_version=opset_version,
        ir_version=ir_version,
        streaming=streaming,
        max_nodes=max_nodes,
        row_ends=row_ends,
        runtime=runtime,
        portable=portable,
        atol=atol,
        rtol=rtol,
        sizes=sizes,
    )
    all_options = _options_of(base_options, precisions, max_error, int8_layers, int8_products)
    for options in all_options:
        # A precision that the model cannot have is refused before anything is captured.
        options.tolerance_for(checked)
    title = name or target.resolve().name

    def attempt(fixed: FixedAxes) -> Manifest:
        parts = []
        for number, options in enumerate(all_options):
            captured = CapturedModel.of(
                checked, args, kwargs, options, dynamic_time=True, fixed=fixed
            )
            if number == 0:
                captured.warn_of_limits()
            suffix = f"-{options.precision}" if len(all_options) > 1 else ""
            plans = plan_graphs(captured, forms, buckets, options)
            parts.append(BundlePart(captured, plans, options, suffix))
        return _write_bundle(parts, target, title)

    return with_fixed_axes(attempt, base_options)


def _write_bundle(parts: Sequence[BundlePart], folder: Path, title: str) -> Manifest:
    def write(temporary: Path) -> Manifest:
        graphs: list[Graph] = []
        reports: list[Report] = []
        for part in parts:
            part_graphs, part_reports = part.write(temporary, folder)
            graphs += part_graphs
            reports += part_reports
        _write_reports(temporary, reports, title)
        # Last, since it has the digest of every other file.
        first = parts[0]
        manifest = _manifest(first.captured, title, first.options.opset_version, graphs, temporary)
        (temporary / bundle.MANIFEST).write_text(manifest.to_json() + "\n", encoding="utf-8")
        return manifest

    return replace_folder(folder, write)


def _check_precisions(precision: Any) -> list[str | None]:
    """The precisions that are asked for; None for that of the weights.

    Raises:
        ValueError: it is no name, or names none, or one twice.
    """
    if precision is None or isinstance(precision, str):
        return [precision]
    names = list(precision) if isinstance(precision, Sequence) else []
    are_names = all(isinstance(name, str) for name in names)
    if not names or not are_names or len(set(names)) < len(names):
        raise ValueError(
            f"`precision` (={precision!r}) must be a name, or several different ones, such as ('float32', 'int8')."
        )
    return names


def _options_of(
    options: ExportOptions,
    precisions: Sequence[str | None],
    max_error: float | ErrorMetric | None,
    int8_layers: Sequence[Literal["linear", "embedding"]],
    int8_products: Literal["all", "state"],
) -> list[ExportOptions]:
    """The options for each precision; `max_error` bounds those that round, what is of eight bits is for one of them.

    Raises:
        ValueError, ExportError: as for `ExportOptions`.
    """
    # What none of them takes is refused by each.
    bounded = [precision for precision in precisions if precision in ROUNDED] or precisions
    with_scope = [precision for precision in precisions if precision == INT8] or precisions
    all_options = []
    for precision in precisions:
        has_scope = precision in with_scope
        all_options.append(
            replace(
                options,
                precision=precision,
                max_error=max_error if precision in bounded else None,
                int8_layers=int8_layers if has_scope else (),
                int8_products=int8_products if has_scope else ALL,
            )
        )
    return all_options


def _check_buckets(buckets: Any) -> None:
    if buckets is None:
        return
    are_numbers = isinstance(buckets, (Sequence, Set)) and all(
        isinstance(steps, Integral) and int(steps) >= 1 for steps in buckets
    )
    if not are_numbers:
        raise ExportError(
            f"`buckets` (={buckets!r}) must be whole numbers from 1, such as (32, 128)."
        )


def _write_reports(folder: Path, reports: Sequence[Report], title: str) -> None:
    items = ", ".join(report.to_json() for report in reports)
    (folder / "report.html").write_text(reports_html(reports, title), encoding="utf-8")
    (folder / "report.json").write_text(f"[{items}]\n", encoding="utf-8")


def _manifest(
    captured: CapturedModel, name: str, opset: int, graphs: Sequence[Graph], folder: Path
) -> Manifest:
    graph = captured.onnx.graph
    return Manifest(
        version=bundle.VERSION,
        name=name,
        producer=f"deploy-rnn {deploy_rnn.__version__}",
        opset=opset,
        inputs=tuple(_tensor(captured, value) for value in graph.inputs),
        outputs=tuple(_tensor(captured, value) for value in graph.outputs),
        lengths=captured.metadata.lengths,
        states=captured.metadata.states,
        graphs=tuple(graphs),
        sha256={path.name: bundle.sha256(path) for path in sorted(folder.iterdir())},
    )


def _tensor(captured: CapturedModel, value: ir.Value) -> Tensor:
    assert value.shape is not None
    assert value.dtype is not None
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    spec = TensorSpec.of(str(value.name), value.dtype.numpy().name, sizes)
    batch = _axis_of(spec, captured.batch_names)
    time = _axis_of(spec, captured.time_names)
    return Tensor(spec.name, spec.dtype, spec.shape, batch=batch, time=time)


def _axis_of(spec: TensorSpec, names: frozenset[str]) -> int | None:
    """The first axis whose size is one of `names`."""
    for axis, size in enumerate(spec.shape):
        if size in names:
            return axis
    return None
