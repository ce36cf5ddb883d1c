"""One precision of a bundle: which graphs it has, and how they are written, checked and described."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from deploy_rnn.bundle import WEIGHTS, Graph
from deploy_rnn.checking.draws import Draws, ExampleInput
from deploy_rnn.checking.example_call import Axes, ExampleCall
from deploy_rnn.checking.trials import Reference
from deploy_rnn.errors import ExportError
from deploy_rnn.model_errors import error_text
from deploy_rnn.runtime import CPU
from deploy_rnn.tensor_spec import SizeRange, size_of

from .capture.captured import CapturedModel
from .forms import FIXED_TIME, FORMS
from .onnx_file import OnnxFile
from .options import ExportOptions
from .precision.reference import reference_of
from .runtimes.faults import faults_of
from .runtimes.table import ONNXRUNTIME
from .saving import save
from .shared_weights import SharedWeights
from .verification.check import CheckOptions, check
from .verification.report import Report


@dataclass(frozen=True)
class GraphPlan:
    """One graph of a bundle, before it is written.

    Attributes:
        form: how its recurrent layers are written.
        steps: the number of steps that it is for; None for any.
    """

    form: str
    steps: int | None = None

    @property
    def name(self) -> str:
        return self.form if self.steps is None else f"{self.form}-{self.steps}"

    def describe(self, file: str, report: Report, captured: CapturedModel) -> Graph:
        """The graph as the manifest has it, from the report of its verification.

        Args:
            file: the name of its file.
            report: of its verification.
            captured: the model for any number of steps.
        """
        ranges = dict(report.ranges)
        if self.steps is not None:
            ranges |= self._padded_ranges(captured)
        return Graph(
            file=file,
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


@dataclass(frozen=True)
class BundlePart:
    """The graphs of a bundle in one precision.

    Attributes:
        captured: the model in that precision, for any number of steps.
        plans: the graphs to write.
        options: what was asked for, with that precision.
        suffix: of the names of its files; empty if the bundle has one precision only.
    """

    captured: CapturedModel
    plans: Sequence[GraphPlan]
    options: ExportOptions
    suffix: str

    def write(self, temporary: Path, folder: Path) -> tuple[list[Graph], list[Report]]:
        """Write the graphs and their weights, and check each.

        Args:
            temporary: where the bundle is now.
            folder: where it will be.
        """
        checks = CheckOptions(
            self.options.tolerance_for(self.captured.model),
            self.options.sizes,
            runtimes=self.options.runtimes,
            max_error=self.options.max_error,
        )
        precision = checks.tolerance.precision
        reference = reference_of(self.captured.model, precision, self.options.int8_scope)
        weights_name = Path(WEIGHTS)
        weights = SharedWeights(
            temporary / f"{weights_name.stem}{self.suffix}{weights_name.suffix}"
        )
        graphs: list[Graph] = []
        reports: list[Report] = []
        for plan in self.plans:
            source = self.captured
            if plan.steps is not None:
                source = _with_fixed_steps(self.captured, plan.steps, self.options, reference)
            graph = source.written(plan.form, max_nodes=self.options.max_nodes)
            weights.take(graph)
            file_name = f"{plan.name}{self.suffix}.onnx"
            save(graph, temporary / file_name)
            with source.naming_squeezes():
                report = check(
                    temporary / file_name,
                    reference,
                    source.call,
                    checks,
                    shown_as=folder / file_name,
                    conditions=source.conditions,
                    axis_advice=self.options.axis_advice(fixed_steps=False),
                )
            graphs.append(plan.describe(file_name, report, self.captured))
            reports.append(report)
        return graphs, reports


def plan_graphs(
    captured: CapturedModel,
    forms: Sequence[str] | None,
    buckets: Sequence[int] | None,
    options: ExportOptions,
) -> list[GraphPlan]:
    any_steps = [form for form in forms or FORMS if form not in FIXED_TIME]
    if forms is None:
        any_steps = [form for form in any_steps if _fits(captured, form, options)]
    # A bundle has at least one graph: if no form takes any number of steps, it is for the example's.
    if not buckets and ("unrolled" in (forms or ()) or not any_steps):
        buckets = [captured.example_steps]
    plans = [GraphPlan(form) for form in any_steps]
    for steps in sorted(set(buckets or ())):
        plans.append(GraphPlan("unrolled", steps))
    return plans


def _fits(captured: CapturedModel, form: str, options: ExportOptions) -> bool:
    """Whether the model can be written in this form, and nothing is known of the runtime that speaks against it."""
    try:
        graph = captured.written(form, max_nodes=options.max_nodes)
    except ExportError:
        return False
    if options.runtime == ONNXRUNTIME:
        return True
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{form}.onnx"
        save(graph, path)
        return not faults_of(OnnxFile.read(path), options.runtime)


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
