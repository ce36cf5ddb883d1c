"""`Report`: what an export or a check found, for people and for machines."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from deploy_rnn.tensor_spec import Ranges, TensorSpec

from ..onnx_file import OnnxFile
from ..precision.cost import RoundingCost
from ..precision.metric import MeasuredError

JSON_FIELDS = (
    "path", "verdict", "form", "precision", "opset", "nodes", "bytes", "inputs", "outputs", "lengths", "states", "time",
    "ranges",
    "unvaried", "providers", "comparisons", "forms", "op_types", "left_out", "placement", "over_time", "latency",
    "versions", "date", "machine", "model", "tolerance", "untrimmed",
    "half_parts", "rounding", "measured",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One output of one run, against the PyTorch model.

    Attributes:
        provider: the onnxruntime execution provider that ran.
        optimized: whether onnxruntime's graph optimisations were on.
        case: which inputs, such as "random, B=3".
        output: its name in the graph.
        max_abs_error: largest absolute difference.
        max_rel_error: the same, divided by the largest magnitude in PyTorch's output.
        difference: the absolute difference at the element that is nearest its limit, or furthest beyond it.
        allowed: the limit of that element.
        rounding: how far PyTorch's own result is from float64 on these inputs, as a share of an element's magnitude
            (absolute below 1); 0 if that is unknown.
        first_bad: index of the first element beyond its limit, in the output's own axes; None if there is none. First
            in time, if the output has a time axis.
        first_bad_step: its time step, from 0; None if there is none, or the output has no time axis.
    """

    provider: str
    optimized: bool
    case: str
    output: str
    max_abs_error: float
    max_rel_error: float
    difference: float
    allowed: float
    rounding: float
    first_bad: tuple[int, ...] | None
    first_bad_step: int | None = None

    @property
    def ok(self) -> bool:
        return self.first_bad is None

    @property
    def used(self) -> float:
        """The difference as a share of what is allowed, at the worst element."""
        if self.allowed:
            return self.difference / self.allowed
        return math.inf if self.difference else 0.0

    def __str__(self) -> str:
        optimized = "on" if self.optimized else "off"
        step = (
            ""
            if self.first_bad_step is None
            else f"time step {self.first_bad_step} (the first is 0), "
        )
        place = "" if self.first_bad is None else f", first at {step}index {list(self.first_bad)},"
        return (
            f"`{self.output}` differs by {self.difference:.1e} (allowed {self.allowed:.1e}){place} "
            f"on {self.provider}, optimisations {optimized}, {self.case}"
        )


@dataclass(frozen=True)
class ErrorOverTime:
    """One output with a time axis, in one run on the CPU with graph optimisations on: the worst element of each step.

    Attributes:
        case: which inputs, such as "long, T=200".
        output: its name in the graph.
        errors: for each step, the absolute difference of the element that is nearest its limit, or furthest beyond it;
            the largest of the step where all limits are the same.
        allowed: the limit of that element.
    """

    case: str
    output: str
    errors: tuple[float, ...]
    allowed: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.errors)

    @property
    def first_bad(self) -> int | None:
        """The first step beyond its limit, from 0."""
        pairs = zip(self.errors, self.allowed, strict=True)
        return next((step for step, (error, limit) in enumerate(pairs) if error > limit), None)


@dataclass(frozen=True)
class Placement:
    """Where the nodes of one run with graph optimisations on really ran, from onnxruntime's own profile.

    Attributes:
        nodes: provider -> operator -> number of nodes; a node within a loop counts once.
        copies: how many of them onnxruntime added to copy a tensor between devices.
    """

    nodes: Mapping[str, Mapping[str, int]]
    copies: int

    def __str__(self) -> str:
        counts = [
            f"{sum(by_type.values())} nodes on {provider}"
            for provider, by_type in self.nodes.items()
        ]
        return f"{', '.join(counts)}; {self.copies} copies between devices"


@dataclass(frozen=True)
class Report:
    """An ONNX file, and what was found when it was checked.

    Attributes:
        file: what the file is. These come from it: `path`, `form`, `opset`, `inputs`, `outputs`, `lengths`, `states`,
            `time`, `ranges`; `nodes` and `bytes`, of the main graph and of the .onnx file alone; `op_types`,
            operator -> number of nodes, those within loops included.
        precision: in which the file computes; it sets the limits, unless `atol` or `rtol` is given.
        providers: for each execution provider, "checked", or why it was not.
        comparisons: every output of every run.
        unvaried: inputs that were checked with one value only, since the example has no other.
        left_out: what was not run, and why.
        untrimmed: outputs of a file of others that have the steps beyond the longest row, which PyTorch leaves out;
            these steps were not compared.
        placement: for each provider that was checked, which one ran each node of the example.
        over_time: for each output with a time axis and each case, the error at each step.
        latency: for each provider that was checked, case -> milliseconds of one run, median of a few; of the example,
            and of the long case if there is one. It decides nothing.
        versions: of deploy-rnn, python, torch, onnx and onnxruntime.
        date: when the check ended, in UTC, such as "2026-11-26T07:25:15+00:00".
        machine: processor, cores, operating system.
        model: the class of the PyTorch model, its recurrent layers, and how many weights it has.
        tolerance: the limits, in words.
        half_parts: the half precision in which parts of the model compute, and what may differ for that reason, such
            as "float16 parts: 0.02"; empty if there are none.
        rounding: of a file in precision "int8" or "float16", what that costs at each output, compared with the model in
            float64.
        measured: with `max_error` as an `ErrorMetric`, what that gives; else None.
        forms: with form="auto", every form -> milliseconds of the example, or why it does not fit.
    """

    file: OnnxFile
    precision: str
    providers: Mapping[str, str]
    comparisons: tuple[Comparison, ...]
    unvaried: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    untrimmed: tuple[str, ...] = ()
    placement: Mapping[str, Placement] = field(default_factory=dict)
    over_time: tuple[ErrorOverTime, ...] = ()
    latency: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    machine: str = ""
    model: str = ""
    tolerance: str = ""
    half_parts: str = ""
    forms: Mapping[str, float | str] = field(default_factory=dict)
    rounding: tuple[RoundingCost, ...] = ()
    measured: MeasuredError | None = None

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def form(self) -> str | None:
        return self.file.form

    @property
    def opset(self) -> int:
        return self.file.opset

    @property
    def nodes(self) -> int:
        return self.file.nodes

    @property
    def bytes(self) -> int:
        return self.file.file_bytes

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.file.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.file.outputs

    @property
    def lengths(self) -> Mapping[str, int | str]:
        return self.file.lengths

    @property
    def states(self) -> Mapping[str, str]:
        return self.file.states

    @property
    def time(self) -> Mapping[str, int]:
        return self.file.time

    @property
    def ranges(self) -> Ranges:
        return self.file.ranges

    @property
    def op_types(self) -> Mapping[str, int]:
        return self.file.node_types

    def input(self, name: str) -> TensorSpec:
        """The input of that name."""
        return self.file.input(name)

    @property
    def failures(self) -> tuple[Comparison, ...]:
        return tuple(comparison for comparison in self.comparisons if not comparison.ok)

    @property
    def worst(self) -> dict[str, dict[str, Comparison]]:
        """For each provider and output, the run with the largest error."""
        worst: dict[str, dict[str, Comparison]] = {}
        for comparison in self.comparisons:
            outputs = worst.setdefault(comparison.provider, {})
            largest = outputs.setdefault(comparison.output, comparison)
            if comparison.max_abs_error > largest.max_abs_error:
                outputs[comparison.output] = comparison
        return worst

    @property
    def verdict(self) -> str:
        """Whether the file is the model, and by how little it differs, in one line."""
        checked = [name for name, status in self.providers.items() if status.startswith("checked")]
        largest = max((run.max_abs_error for run in self.comparisons), default=0.0)
        used = max((run.used for run in self.comparisons), default=0.0)
        return (
            f"{'differs' if self.failures else 'agrees'} on {' and '.join(checked) or 'no provider'}, "
            f"{len(self.comparisons)} comparisons, largest error {largest:.1e}, at most {used:.0%} of what is allowed"
        )

    def to_json(self) -> str:
        """Every field; an infinite difference is the string "inf", since JSON has no number for it."""
        values = {name: _to_json(getattr(self, name)) for name in JSON_FIELDS}
        return json.dumps(values, indent=2, allow_nan=False)

    def to_html(self) -> str:
        """One page that needs nothing else: what the file is, how far it differs, where in time, how fast, on what."""
        # The page is drawn from a report and knows its fields; a report needs the page only if it is asked for one.
        from .html import reports_html

        return reports_html([self], self.file.name)

    def __str__(self) -> str:
        form = f"{self.form}, " if self.form else ""
        precision = f"{self.precision}{self.file.products_note}"
        lines = [
            f"{self.path}: {form}{precision}, {self.nodes} nodes, {self.bytes / 1e3:,.0f} kB, opset {self.opset}"
        ]
        for name, result in self.forms.items():
            lines.append(
                f"  {name}: " + (result if isinstance(result, str) else f"{result:.2f} ms")
            )
        lines += [f"  input   {spec}" for spec in self.inputs]
        lines += [f"  output  {spec}" for spec in self.outputs]
        lines += [f"  sizes   {name}: {sizes}" for name, sizes in self.ranges.items()]
        lines += [
            f"  {name}: checked with one value only, the example has no other"
            for name in self.unvaried
        ]
        lines += [f"  left out: {reason}" for reason in self.left_out]
        lines += [
            f"  {name}: has the steps beyond the longest row, which PyTorch leaves out; they were not compared"
            for name in self.untrimmed
        ]
        if self.half_parts:
            lines.append(f"  {self.half_parts}")
        lines += [f"  {self.precision} moves {cost}" for cost in self.rounding]
        if self.measured is not None:
            lines.append(f"  {self.measured}")
        worst = self.worst
        for provider, status in self.providers.items():
            lines.append(f"  {provider}: {status}")
            lines += [
                self._describe_output(comparison) for comparison in worst.get(provider, {}).values()
            ]
            if provider in self.latency:
                times = [
                    f"{milliseconds:.3g} ms on {case}"
                    for case, milliseconds in self.latency[provider].items()
                ]
                lines.append(f"    {'; '.join(times)}")
        return "\n".join(lines)

    def _describe_output(self, worst: Comparison) -> str:
        runs = [
            run
            for run in self.comparisons
            if (run.provider, run.output) == (worst.provider, worst.output)
        ]
        return (
            f"    {worst.output}: max abs error {worst.max_abs_error:.1e}, relative {worst.max_rel_error:.1e}; "
            f"at most {max(run.used for run in runs):.0%} of what is allowed"
        )


def _to_json(value: Any) -> Any:
    """What `json` can write of a field."""
    if isinstance(value, TensorSpec):
        return value.to_dict()
    if is_dataclass(value):
        return {field.name: _to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
