"""`export_bundle`: one model as several verified graphs that share one file of weights."""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import nn

import deploy_rnn
from deploy_rnn import bundle
from deploy_rnn.bundle import Graph, Manifest, Tensor
from deploy_rnn.checking.draws import Draws, ExampleInput
from deploy_rnn.checking.example_call import Axes, ExampleCall
from deploy_rnn.checking.module import check_module
from deploy_rnn.checking.trials import Reference
from deploy_rnn.errors import ExportError
from deploy_rnn.files import folder_target, replace_folder
from deploy_rnn.model_errors import error_text
from deploy_rnn.runtime import CPU
from deploy_rnn.tensor_spec import SizeRange, TensorSpec, size_of

from .capture.captured import CapturedModel, with_fixed_axes
from .forms import FIXED_TIME, FORMS
from .options import DEFAULTS, ExportOptions
from .precision.reference import reference_of
from .saving import save
from .shared_weights import SharedWeights
from .verification.html import reports_html
from .verification.report import Report
from .verification.verify import CheckOptions, check


def export_bundle(
    model: nn.Module,
    args: Any,
    folder: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    forms: Sequence[Literal["unrolled", "scan", "native"]] | None = None,
    buckets: Sequence[int] | None = None,
    name: str | None = None,
    precision: str | None = None,
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
    max_error: float | None = None,
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
    options = ExportOptions(
        dynamic_shapes=dynamic_shapes,
        input_names=input_names,
        output_names=output_names,
        opset_version=opset_version,
        ir_version=ir_version,
        precision=precision,
        streaming=streaming,
        max_nodes=max_nodes,
        row_ends=row_ends,
        runtime=runtime,
        portable=portable,
        atol=atol,
        rtol=rtol,
        max_error=max_error,
        sizes=sizes,
    )
    checks = CheckOptions(
        options.tolerance_for(checked),
        sizes,
        runtimes=options.runtimes,
        max_error=max_error,
    )
    title = name or target.resolve().name

    def attempt(fixed: Collection[str]) -> Manifest:
        captured = CapturedModel.of(checked, args, kwargs, options, dynamic_time=True, fixed=fixed)
        captured.warn_of_limits()
        plans = _plan_graphs(captured, forms, buckets, max_nodes)
        return _write_bundle(captured, plans, target, title, options, checks)

    return with_fixed_axes(attempt, options)


def _write_bundle(
    captured: CapturedModel,
    plans: Sequence["_GraphPlan"],
    folder: Path,
    title: str,
    options: ExportOptions,
    checks: CheckOptions,
) -> Manifest:
    reference = reference_of(captured.model, checks.tolerance.precision)

    def write(temporary: Path) -> Manifest:
        weights = SharedWeights(temporary / bundle.WEIGHTS)
        reports: list[Report] = []
        for plan in plans:
            source = (
                captured
                if plan.steps is None
                else _with_fixed_steps(captured, plan.steps, options, reference)
            )
            graph = source.written(plan.form, max_nodes=options.max_nodes)
            weights.take(graph)
            file = temporary / plan.file
            save(graph, file)
            with source.naming_squeezes():
                report = check(
                    file,
                    reference,
                    source.call,
                    checks,
                    shown_as=folder / plan.file,
                    conditions=source.conditions,
                    axis_advice=options.axis_advice(fixed_steps=False),
                )
            reports.append(report)
        _write_reports(temporary, reports, title)
        graphs = [
            plan.describe(report, captured) for plan, report in zip(plans, reports, strict=True)
        ]
        # Last, since it has the digest of every other file.
        manifest = _manifest(captured, title, options.opset_version, graphs, temporary)
        (temporary / bundle.MANIFEST).write_text(manifest.to_json() + "\n", encoding="utf-8")
        return manifest

    return replace_folder(folder, write)


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


@dataclass(frozen=True)
class _GraphPlan:
    """One graph of a bundle, before it is written.

    Attributes:
        form: how its recurrent layers are written.
        steps: the number of steps that it is for; None for any.
    """

    form: str
    steps: int | None = None

    @property
    def file(self) -> str:
        return f"{self.form}.onnx" if self.steps is None else f"{self.form}-{self.steps}.onnx"

    def describe(self, report: Report, captured: CapturedModel) -> Graph:
        """The graph as the manifest has it, from the report of its verification.

        captured: the model for any number of steps.
        """
        ranges = dict(report.ranges)
        if self.steps is not None:
            ranges |= self._padded_ranges(captured)
        return Graph(
            file=self.file,
            form=self.form,
            steps=self.steps,
            nodes=report.nodes,
            milliseconds=report.latency[CPU]["example"],
            precision=report.precision,
            ranges=ranges,
            row_ends=report.file.row_ends,
        )

    def _padded_ranges(self, captured: CapturedModel) -> dict[str, SizeRange]:
        """Which steps of a request may be padded to those of this graph: those with which the model computes the same.

        Beyond the range of the graph for any number of steps, nothing is known of other steps than these.
        """
        assert self.steps is not None
        ranges = {}
        for name in captured.time_names:
            sizes = captured.metadata.ranges.get(name)
            if sizes is not None and sizes.takes(self.steps):
                ranges[name] = sizes
            elif sizes is not None:
                ranges[name] = SizeRange(self.steps, self.steps)
        return ranges


def _plan_graphs(
    captured: CapturedModel,
    forms: Sequence[str] | None,
    buckets: Sequence[int] | None,
    max_nodes: int,
) -> list[_GraphPlan]:
    any_steps = [form for form in forms or FORMS if form not in FIXED_TIME]
    if forms is None:
        any_steps = [form for form in any_steps if _fits(captured, form, max_nodes)]
    # A bundle has at least one graph: if no form takes any number of steps, it is for the example's.
    if not buckets and ("unrolled" in (forms or ()) or not any_steps):
        buckets = [captured.example_steps]
    plans = [_GraphPlan(form) for form in any_steps]
    for steps in sorted(set(buckets or ())):
        plans.append(_GraphPlan("unrolled", steps))
    return plans


def _fits(captured: CapturedModel, form: str, max_nodes: int) -> bool:
    """Whether the model can be written in this form."""
    try:
        captured.written(form, max_nodes=max_nodes)
    except ExportError:
        return False
    return True


def _with_fixed_steps(
    captured: CapturedModel, steps: int, options: ExportOptions, reference: Reference
) -> CapturedModel:
    """Capture the model again for this number of steps; its example is cut, or repeated from its beginning."""
    time_names = captured.input_time_names
    if not time_names:
        raise ExportError(
            f"the model fixes its steps at {captured.example_steps}; leave out `buckets`."
        )
    sizes = dict.fromkeys(time_names, steps)
    inputs = []
    axes: list[Axes] = []
    # A streaming graph has more inputs than the example has tensors: its states come last.
    for value, tensor, asked in zip(
        captured.onnx.graph.inputs, captured.call.tensors, captured.axes, strict=False
    ):
        shape = [size if isinstance(size, int) else str(size) for size in value.shape or ()]
        limit = captured.metadata.lengths.get(str(value.name))
        # A limit that the model computes is the size of no axis.
        if isinstance(limit, str) and limit not in time_names:
            limit = None
        inputs.append(ExampleInput(str(value.name), tuple(shape), tensor, limit))
        dynamic: Axes = {}
        for axis, size in enumerate(shape):
            if isinstance(size, int):
                continue
            # Another length may be a multiple of the steps.
            size_then = size_of(size, sizes)
            if size_then is not None:
                sizes[size] = size_then
                continue
            # A `torch.export.Dim` has a range that its name has not.
            has_range = type(asked.get(axis)) is torch.export.Dim
            dynamic[axis] = asked[axis] if has_range else size
        axes.append(dynamic)
    call = _example_with(steps, Draws(captured.call, inputs), sizes, reference)
    options = replace(options, dynamic_shapes=call.shapes(axes))
    return CapturedModel.of(
        captured.model, call.bound.args, call.bound.kwargs, options, dynamic_time=False
    )


def _example_with(
    steps: int, draws: Draws, sizes: Mapping[str, int], reference: Reference
) -> ExampleCall:
    """An example of that many steps, `sizes` of the dynamic axes, as like the example as the model takes."""
    errors = []
    for call in draws.examples(sizes):
        try:
            reference.outputs(call)
        except Exception as error:  # the model's own code may raise anything
            errors.append(error)
            continue
        return call
    raise ExportError(
        f"`buckets` has {steps}, and the model refuses {steps} steps: {error_text(errors[0])}"
    ) from errors[0]


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
