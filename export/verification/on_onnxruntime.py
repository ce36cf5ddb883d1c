"""The cases of a file on one execution provider of onnxruntime, graph optimisations off and on.

Another runtime would be one more file like this: a function from a provider and a `Plan` to a `ProviderResult`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnxruntime import InferenceSession

from deploy_rnn.errors import ProviderError
from deploy_rnn.runtime import CPU, RanNode, open_session, provider_named, ran_nodes

from .report import Placement
from .runs import Plan, ProviderResult, Session

SHOWN_NODES = 5
"""How many nodes an error names."""


def run_on(provider: str, plan: Plan) -> ProviderResult:
    """What `provider` did, or why it was not run.

    Raises:
        ProviderError: it is required, and is missing, does not start, or left nodes to another.
        VerificationError: an output of another dtype or shape.
        ExportError: a case fails.
        LoadError: onnxruntime cannot open the file.
    """
    try:
        entry = provider_named(provider)
        if not entry.present():
            raise ProviderError(f"there is no {entry.device}.")
        return _run_on(provider, plan)
    except ProviderError as error:
        if provider == plan.required:
            raise ProviderError(f"`require_provider` (={provider!r}): {error}") from error
        return ProviderResult(provider, f"not checked: {error}")


def _run_on(provider: str, plan: Plan) -> ProviderResult:
    plain_session = open_session(plan.path, provider, optimize=False)
    output_names = [spec.name for spec in plan.file.outputs]
    run_plain = partial(_run, plain_session, output_names)
    plain = Session(run_plain, provider, plan, optimized=False)
    for case in plan.cases:
        plain.check(case)
    example, *other_cases = plan.cases
    # The profile has the nodes of the example's run alone: writing one costs time.
    with TemporaryDirectory() as folder:
        session = open_session(plan.path, provider, profile_to=Path(folder))
        run_optimized = partial(_run, session, output_names)
        optimized = Session(run_optimized, provider, plan, optimized=True)
        optimized.check(example)
        nodes = ran_nodes(session)
    _check_nodes(provider, nodes, required=provider == plan.required)
    for case in other_cases:
        optimized.check(case)
    placement = _placement(nodes)
    return ProviderResult(
        provider=provider,
        status="checked" if provider == CPU else f"checked; it ran {placement}",
        comparisons=[*plain.comparisons, *optimized.comparisons],
        over_time=optimized.over_time if provider == CPU else (),
        latency={case.label: optimized.milliseconds(case) for case in plan.timed},
        placement=placement,
        untrimmed=[*plain.untrimmed, *optimized.untrimmed],
    )


def _run(
    session: InferenceSession, output_names: Sequence[str], feeds: Mapping[str, np.ndarray]
) -> Sequence[np.ndarray]:
    """Run the file; the model may take tensors that the file does not."""
    taken = {value.name: feeds[value.name] for value in session.get_inputs()}
    outputs: Sequence[np.ndarray] = session.run(output_names, taken)
    return outputs


def _check_nodes(provider: str, nodes: Sequence[RanNode], *, required: bool) -> None:
    """Raises: ProviderError: none ran on the provider; or, if it is required, not all that should."""
    if provider not in {node.provider for node in nodes}:
        raise ProviderError(f"{provider} started but ran none of the nodes.")
    # onnxruntime prefers the CPU for nodes that only compute sizes.
    elsewhere = [node for node in nodes if node.provider != provider and not node.only_sizes]
    if required and elsewhere:
        shown = [
            f"`{node.name}` ({node.op_type}, {node.provider})" for node in elsewhere[:SHOWN_NODES]
        ]
        hidden = len(elsewhere) - len(shown)
        more = f" and {hidden} more" if hidden else ""
        raise ProviderError(
            f"it left {len(elsewhere)} of {len(nodes)} nodes to another provider: {', '.join(shown)}{more}."
        )


def _placement(nodes: Sequence[RanNode]) -> Placement:
    counts: dict[str, Counter[str]] = {}
    copies = 0
    for node in nodes:
        by_type = counts.setdefault(node.provider, Counter())
        by_type[node.op_type] += 1
        copies += node.copies
    return Placement(
        {provider: dict(by_type.most_common()) for provider, by_type in counts.items()}, copies
    )
