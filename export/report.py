"""What an export or a check found, for people and for machines."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
        first_bad: index of the first element beyond its limit, in the output's own axes; None if there is none.
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

    @property
    def ok(self) -> bool:
        return self.first_bad is None

    @property
    def used(self) -> float:
        """The difference as a share of what is allowed, at the worst element."""
        return self.difference / self.allowed if self.allowed else math.inf * bool(self.difference)

    def __str__(self) -> str:
        optimized = "on" if self.optimized else "off"
        where = "" if self.first_bad is None else f", first at index {list(self.first_bad)}"
        return (
            f"`{self.output}` differs by {self.difference:.1e} (allowed {self.allowed:.1e}){where} "
            f"on {self.provider}, optimisations {optimized}, {self.case}"
        )


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
        unvaried: inputs that were checked with one value only, since the example has no other.
        providers: for each execution provider, "checked", or why it was not.
        comparisons: every output of every run.
    """

    path: str
    form: str | None
    opset: int
    nodes: int
    bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    unvaried: tuple[str, ...]
    providers: Mapping[str, str]
    comparisons: tuple[Comparison, ...]

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

    def __str__(self) -> str:
        form = f"{self.form}, " if self.form else ""
        lines = [f"{self.path}: {form}{self.nodes} nodes, {self.bytes / 1e6:.2f} MB, opset {self.opset}"]
        lines += [f"  input   {spec}" for spec in self.inputs]
        lines += [f"  output  {spec}" for spec in self.outputs]
        lines += [f"  {name}: checked with one value only, the example has no other" for name in self.unvaried]
        for provider, status in self.providers.items():
            lines.append(f"  {provider}: {status}")
            for output, each in self.worst.get(provider, {}).items():
                lines.append(
                    f"    {output}: max abs error {each.max_abs_error:.1e}, relative {each.max_rel_error:.1e}; "
                    f"at most {max(run.used for run in self._runs(provider, output)):.0%} of what is allowed"
                )
        return "\n".join(lines)

    def _runs(self, provider: str, output: str) -> list[Comparison]:
        return [each for each in self.comparisons if (each.provider, each.output) == (provider, output)]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
