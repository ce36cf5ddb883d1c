"""What an export or a check found, for people and for machines."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

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
        allowed: the absolute difference that passes.
        rounding: how far PyTorch's own result is from float64 on these inputs; 0 if that is unknown.
        first_bad: index of the first element beyond it, in the output's own axes; None if there is none.
    """

    provider: str
    optimized: bool
    case: str
    output: str
    max_abs_error: float
    max_rel_error: float
    allowed: float
    rounding: float
    first_bad: tuple[int, ...] | None

    @property
    def ok(self) -> bool:
        return self.first_bad is None

    def __str__(self) -> str:
        optimized = "on" if self.optimized else "off"
        where = "" if self.first_bad is None else f", first at index {list(self.first_bad)}"
        return (
            f"`{self.output}` differs by {self.max_abs_error:.1e} (allowed {self.allowed:.1e}){where} "
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
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        form = f"{self.form}, " if self.form else ""
        lines = [f"{self.path}: {form}{self.nodes} nodes, {self.bytes / 1e6:.2f} MB, opset {self.opset}"]
        lines += [f"  input   {spec}" for spec in self.inputs]
        lines += [f"  output  {spec}" for spec in self.outputs]
        for provider, status in self.providers.items():
            lines.append(f"  {provider}: {status}")
            for output, each in self.worst.get(provider, {}).items():
                lines.append(
                    f"    {output}: max abs error {each.max_abs_error:.1e}, relative {each.max_rel_error:.1e} "
                    f"(allowed {each.allowed:.1e}, PyTorch's own rounding {each.rounding:.1e})"
                )
        return "\n".join(lines)
