"""What an export or a check found, for people and for machines."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploy_rnn.runtime import TensorSpec


@dataclass(frozen=True)
class Comparison:
    """One output of one run, against the PyTorch model.

    Attributes:
        provider: the onnxruntime execution provider that ran.
        optimized: whether onnxruntime's graph optimisations were on.
        case: which inputs, such as "random, B=3".
        output: its name in the graph.
        max_abs_error: largest absolute difference.
        max_rel_error: the same, divided by the largest magnitude that PyTorch gave.
        difference: the absolute difference at the element that is nearest its limit, or furthest beyond it.
        allowed: the limit there.
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
        return self.difference / self.allowed if self.allowed else math.inf * bool(self.difference)

    def __str__(self) -> str:
        optimized = "on" if self.optimized else "off"
        step = "" if self.first_bad_step is None else f"time step {self.first_bad_step} (the first is 0), "
        where = "" if self.first_bad is None else f", first at {step}index {list(self.first_bad)},"
        return (
            f"`{self.output}` differs by {self.difference:.1e} (allowed {self.allowed:.1e}){where} "
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
        return next((step for step in range(self.steps) if self.errors[step] > self.allowed[step]), None)


@dataclass(frozen=True)
class Placement:
    """Where the nodes of one run with graph optimisations on really ran, from onnxruntime's own profile.

    Attributes:
        nodes: provider -> operator -> how many nodes, each once however often a loop ran it.
        copies: how many of them onnxruntime added to copy a tensor between devices.
    """

    nodes: Mapping[str, Mapping[str, int]]
    copies: int

    def __str__(self) -> str:
        ran = ", ".join(f"{sum(each.values())} nodes on {provider}" for provider, each in self.nodes.items())
        return f"{ran}; {self.copies} copies between devices"


@dataclass(frozen=True)
class Report:
    """A checked ONNX file.

    Attributes:
        path: the file.
        form: how its recurrent layers are written, if deploy-rnn wrote them.
        opset: its version of the ONNX operators.
        nodes: how many it has.
        bytes: its size.
        inputs: what it takes; a dynamic axis has a name.
        outputs: what it gives.
        lengths: inputs that are the lengths of the rows -> the axis, or the number of steps, that limits them.
        states: of a streaming file, inputs that carry a state from chunk to chunk -> the outputs that give it.
        time: of a streaming file, inputs -> which of their axes are the steps.
        unvaried: inputs that were checked with one value only, since the example has no other.
        providers: for each execution provider, "checked", or why it was not.
        comparisons: every output of every run.
        forms: with form="auto", every form -> milliseconds of the example, or why it does not fit.
        op_types: operator -> how many nodes, those within loops included.
        left_out: what was not run, and why.
        placement: for each provider that was checked, which one ran each node of the example.
        over_time: for each output with a time axis and each case, the error at each step.
        latency: for each provider that was checked, case -> milliseconds of one run, median of a few; of the example,
            and of the long case if there is one. It decides nothing.
        versions: of torch, onnx and onnxruntime.
    """

    path: str
    form: str | None
    opset: int
    nodes: int
    bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lengths: Mapping[str, int | str]
    states: Mapping[str, str]
    time: Mapping[str, int]
    unvaried: tuple[str, ...]
    providers: Mapping[str, str]
    comparisons: tuple[Comparison, ...]
    forms: Mapping[str, float | str] = field(default_factory=dict)
    op_types: Mapping[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    placement: Mapping[str, Placement] = field(default_factory=dict)
    over_time: tuple[ErrorOverTime, ...] = ()
    latency: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def input(self, name: str) -> TensorSpec:
        """The input of that name."""
        return next(spec for spec in self.inputs if spec.name == name)

    @property
    def failures(self) -> tuple[Comparison, ...]:
        return tuple(each for each in self.comparisons if not each.ok)

    @property
    def worst(self) -> dict[str, dict[str, Comparison]]:
        """For each provider and output, the run with the largest error."""
        worst: dict[str, dict[str, Comparison]] = {}
        for each in self.comparisons:
            outputs = worst.setdefault(each.provider, {})
            if each.output not in outputs or each.max_abs_error > outputs[each.output].max_abs_error:
                outputs[each.output] = each
        return worst

    def to_json(self) -> str:
        """Every field; an infinite difference is the string "inf", since JSON has no number for it."""
        return json.dumps(_finite(asdict(self)), indent=2, allow_nan=False)

    def to_html(self) -> str:
        """One page that needs nothing else: what the file is, how far it differs, where in time, how fast, on what."""
        from .html import reports_html

        return reports_html([self], Path(self.path).name)

    def __str__(self) -> str:
        form = f"{self.form}, " if self.form else ""
        lines = [f"{self.path}: {form}{self.nodes} nodes, {self.bytes / 1e3:,.0f} kB, opset {self.opset}"]
        for name, found in self.forms.items():
            lines.append(f"  {name}: " + (found if isinstance(found, str) else f"{found:.2f} ms"))
        lines += [f"  input   {spec}" for spec in self.inputs]
        lines += [f"  output  {spec}" for spec in self.outputs]
        lines += [f"  {name}: checked with one value only, the example has no other" for name in self.unvaried]
        lines += [f"  not run: {each}" for each in self.left_out]
        for provider, status in self.providers.items():
            lines.append(f"  {provider}: {status}")
            for output, each in self.worst.get(provider, {}).items():
                lines.append(
                    f"    {output}: max abs error {each.max_abs_error:.1e}, relative {each.max_rel_error:.1e}; "
                    f"at most {max(run.used for run in self._runs(provider, output)):.0%} of what is allowed"
                )
            if provider in self.latency:
                times = (f"{milliseconds:.3g} ms on {case}" for case, milliseconds in self.latency[provider].items())
                lines.append(f"    {'; '.join(times)}")
        return "\n".join(lines)

    def _runs(self, provider: str, output: str) -> list[Comparison]:
        return [each for each in self.comparisons if (each.provider, each.output) == (provider, output)]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
