"""Reports as one HTML page that needs nothing else: no scripts, no other files, no network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from deploy_rnn.tensor_spec import TensorSpec

from .plots import bars, error_over_time

if TYPE_CHECKING:
    from .report import Comparison, ErrorOverTime, Report

_SERIES = 3
"""How many cases a plot over time shows: as many as the style sheet has colours for."""

_LATENCY_NOTE = '<p class="quiet">Median of a few runs at the end of the check; shows an order of magnitude.</p>'

_STYLE = """
:root { color-scheme: light dark; --page: #f9f9f7; --card: #fcfcfb; --ink: #0b0b0b; --quiet: #52514e; --rule: #e1e0d9;
  --s1: #2a78d6; --s2: #1baf7a; --s3: #4a3aa7; --good: #006300; --bad: #c22f2f; }
@media (prefers-color-scheme: dark) { :root { --page: #0d0d0d; --card: #1a1a19; --ink: #ffffff; --quiet: #c3c2b7;
  --rule: #2c2c2a; --s1: #3987e5; --s2: #199e70; --s3: #9085e9; --good: #0ca30c; --bad: #e66767; } }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; font-size: 1.25rem; } h3 { margin: 0 0 .5rem; font-size: 1rem; }
section { margin: 1rem 0; padding: 1rem 1.25rem; border: 1px solid var(--rule); border-radius: 8px;
  background: var(--card); overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1.25rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th { color: var(--quiet); font-weight: 600; } tr:last-child td, tr:last-child th { border-bottom: 0; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; } p { margin: .5rem 0; }
.number { white-space: nowrap; }
.quiet { color: var(--quiet); } .good { color: var(--good); } .bad { color: var(--bad); }
.good, .bad { font-weight: 600; }
.meter { display: inline-block; width: 5rem; height: .5rem; margin-right: .5rem; border-radius: 3px;
  background: var(--rule); overflow: hidden; } .meter i { display: block; height: 100%; background: var(--s1); }
.meter i.over { background: var(--bad); }
.key { display: inline-block; width: 1.25rem; height: .2rem; margin: 0 .4rem .2rem 1rem; vertical-align: middle; }
svg { display: block; width: 100%; max-width: 45rem; height: auto; font-size: 13px; }
svg text { fill: var(--quiet); } svg .value { fill: var(--ink); } svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; } .grid { stroke: var(--rule); } .bar { fill: var(--s1); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .limit { fill: none; stroke-dasharray: 5 4; }
.line.s1, .limit.s1 { stroke: var(--s1); } .line.s2, .limit.s2 { stroke: var(--s2); }
.line.s3, .limit.s3 { stroke: var(--s3); } .dot.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); }
.dot.s3 { fill: var(--s3); } .hit { fill: transparent; }
circle.bad, line.bad { fill: none; stroke: var(--bad); } circle.bad { stroke-width: 2; }
svg text.bad { fill: var(--bad); }
"""


def reports_html(reports: Sequence[Report], title: str) -> str:
    """Make a page about one file, or about several that are to be compared, such as one model in each form.

    Raises:
        ValueError: `reports` is empty.
    """
    if not reports:
        raise ValueError("`reports` is empty; give the Report of each file.")
    parts = [f"<h1>{escape(title)}</h1>"]
    if len(reports) > 1:
        parts += _side_by_side(reports)
    for report in reports:
        if len(reports) > 1:
            parts.append(f"<h2>{escape(_name(report))}</h2>")
        parts += _sections(report)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n"
        "</html>\n"
    )


def _sections(report: Report) -> Iterator[str]:
    yield _section("Verdict", _verdict(report))
    yield _section("File", _file(report))
    if report.comparisons:
        yield _section("Worst error of each output", _worst(report))
        yield _section(
            "Every run: the most that an output used of what is allowed", _matrix(report)
        )
    outputs = dict.fromkeys(curve.output for curve in report.over_time)
    for output in outputs:
        curves = _choose_curves([curve for curve in report.over_time if curve.output == output])
        yield _section(f"Error of {output} over time", _legend(curves) + error_over_time(curves))
    if report.latency:
        yield _section("Latency", bars(list(_latencies(report).items()), "ms") + _LATENCY_NOTE)
    if report.placement:
        yield _section("Where the nodes ran", _placement(report))


def _verdict(report: Report) -> str:
    total = len(report.comparisons)
    if not report.comparisons:
        verdict = '<p class="bad">NOT CHECKED</p>'
    elif report.failures:
        worst = max(report.failures, key=lambda comparison: comparison.used)
        verdict = (
            f'<p class="bad">✗ FAIL: {len(report.failures)} of {total} comparisons are beyond what is allowed</p>'
            f"<p>{escape(str(worst))}</p>"
        )
    else:
        verdict = f'<p class="good">✓ PASS: {total} comparisons, at most {_most_used(report)} of what is allowed</p>'
    notes = [f"{provider}: {status}" for provider, status in report.providers.items()]
    notes += [
        f"{name}: checked with one value only, the example has no other" for name in report.unvaried
    ]
    notes += [f"not run: {reason}" for reason in report.left_out]
    return verdict + "".join(f'<p class="quiet">{escape(note)}</p>' for note in notes)


def _file(report: Report) -> str:
    operators = ", ".join(f"{count:,} {name}" for name, count in report.op_types.items())
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    rows = [
        ["File", escape(report.path)],
        ["Form", escape(report.form or "not written by deploy-rnn")],
        ["Precision", escape(report.precision)],
        ["Size", f"{report.bytes / 1e3:,.0f} kB, {report.nodes:,} nodes, opset {report.opset}"],
        ["Inputs", "<br>".join(_spec(spec) for spec in report.inputs)],
        ["Outputs", "<br>".join(_spec(spec) for spec in report.outputs)],
        ["Operators", escape(operators)],
        ["Versions", escape(versions)],
    ]
    return _table([], rows)


def _spec(spec: TensorSpec) -> str:
    dynamic = [size for size in spec.shape if isinstance(size, str)]
    note = f"dynamic: {', '.join(dynamic)}" if dynamic else "every axis is fixed"
    return f'<code>{escape(str(spec))}</code> <span class="quiet">{escape(note)}</span>'


def _worst(report: Report) -> str:
    """A row for each provider and output."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in report.comparisons:
        groups.setdefault((comparison.provider, comparison.output), []).append(comparison)
    rows = []
    for (provider, output), comparisons in groups.items():
        worst = max(comparisons, key=lambda comparison: comparison.used)
        largest_error = max(comparison.max_abs_error for comparison in comparisons)
        row = [
            escape(provider),
            f"<code>{escape(output)}</code>",
            _number(largest_error),
            _number(worst.difference),
            _number(worst.allowed),
            _meter(worst),
            escape(f"{worst.case}, optimisations {'on' if worst.optimized else 'off'}"),
        ]
        rows.append(row)
    return _table(
        ["Provider", "Output", "Largest error", "Nearest its limit", "Limit", "Used", "In"], rows
    )


def _matrix(report: Report) -> str:
    """A row for each case, a column for each provider and optimisation level."""
    worst: dict[tuple[str, str, bool], Comparison] = {}
    for comparison in report.comparisons:
        run = (comparison.case, comparison.provider, comparison.optimized)
        if run not in worst or comparison.used > worst[run].used:
            worst[run] = comparison
    cases = dict.fromkeys(case for case, _, _ in worst)
    columns = dict.fromkeys((provider, optimized) for _, provider, optimized in worst)
    head = ["Case"]
    for provider, optimized in columns:
        head.append(f"{escape(provider)}, {'optimised' if optimized else 'as written'}")
    rows = []
    for case in cases:
        row = [escape(case)]
        for provider, optimized in columns:
            run = (case, provider, optimized)
            row.append(_meter(worst[run]) if run in worst else "not run")
        rows.append(row)
    return _table(head, rows)


def _meter(comparison: Comparison) -> str:
    """How much of what is allowed was used, as a bar and a number."""
    width = f"{min(comparison.used, 1):.0%}"
    share = _share(comparison.used)
    if comparison.ok:
        bar = f'<i style="width:{width}"></i>'
        label = share
    else:
        bar = f'<i class="over" style="width:{width}"></i>'
        label = f'<span class="bad">✗ {share}</span>'
    return f'<span class="number"><span class="meter">{bar}</span>{label}</span>'


def _choose_curves(curves: Sequence[ErrorOverTime]) -> list[ErrorOverTime]:
    """The cases of one output that tell most: wrong ones, the example, the one of most steps."""
    longest = max(curves, key=lambda curve: curve.steps)
    ranked = sorted(
        curves, key=lambda curve: (curve.first_bad is None, curve.case != "example", -curve.steps)
    )
    chosen = [*ranked[: _SERIES - 1], longest]
    return list(dict.fromkeys(chosen))


def _legend(curves: Sequence[ErrorOverTime]) -> str:
    keys = []
    for number, curve in enumerate(curves, start=1):
        keys.append(
            f'<span class="key" style="background:var(--s{number})"></span>{escape(curve.case)}'
        )
    note = "Absolute error at each step, logarithmic; dashed: what is allowed."
    return f'<p>{"".join(keys)}</p><p class="quiet">{note}</p>'


def _latencies(report: Report) -> dict[str, float]:
    """Provider and case -> milliseconds."""
    latencies = {}
    for provider, times in report.latency.items():
        provider_name = provider.removesuffix("ExecutionProvider")
        for case, milliseconds in times.items():
            latencies[f"{provider_name}, {_with_steps(report, case)}"] = milliseconds
    return latencies


def _with_steps(report: Report, case: str) -> str:
    """The name of a case, with its number of steps."""
    steps = next((curve.steps for curve in report.over_time if curve.case == case), None)
    if steps is None or f"={steps}" in case:
        return case
    return f"{case}, T={steps}"


def _placement(report: Report) -> str:
    """For each provider that was asked to run the file: a row for each provider that ran some of its nodes."""
    parts = []
    for provider, placement in report.placement.items():
        rows = []
        for ran_on, counts in placement.nodes.items():
            operators = ", ".join(f"{count:,} {name}" for name, count in counts.items())
            rows.append([escape(ran_on), f"{sum(counts.values()):,}", escape(operators)])
        parts.append(
            f"<p>{escape(provider)}, graph optimisations on; {placement.copies} copies between devices</p>"
        )
        parts.append(_table(["Ran on", "Nodes", "Operators"], rows))
    return "".join(parts)


def _side_by_side(reports: Sequence[Report]) -> Iterator[str]:
    rows = []
    for report in reports:
        row = [
            escape(_name(report)),
            '<span class="bad">✗ FAIL</span>'
            if report.failures
            else '<span class="good">✓ PASS</span>',
            _most_used(report),
            f"{report.nodes:,}",
            f"{report.bytes / 1e3:,.0f}",
        ]
        rows.append(row)
    yield _section("Side by side", _table(["", "Verdict", "Used at most", "Nodes", "kB"], rows))
    # One chart for each provider and case, so that its bars compare the files; not every file has every case.
    charts: dict[str, list[tuple[str, float]]] = {}
    for report in reports:
        for label, milliseconds in _latencies(report).items():
            charts.setdefault(label, []).append((_name(report), milliseconds))
    for label, latencies in charts.items():
        yield _section(f"Latency: {label}", bars(latencies, "ms"))
    yield _section("Size", bars([(_name(report), report.bytes / 1e3) for report in reports], "kB"))
    yield _section(
        "Nodes", bars([(_name(report), float(report.nodes)) for report in reports], "nodes")
    )


def _name(report: Report) -> str:
    """Its form, and the name of the file."""
    return f"{report.form}: {report.file.name}" if report.form else report.file.name


def _section(title: str, content: str) -> str:
    return f"<section>\n<h3>{escape(title)}</h3>\n{content}\n</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML. Without a head, the first cell of each row is a heading."""
    lines = ["<table>"]
    if head:
        lines.append("<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>")
    tag = "td" if head else "th"
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f"<tr><{tag}>{first}</{tag}>{cells}</tr>")
    return "\n".join([*lines, "</table>"])


def _number(value: float) -> str:
    return f'<span class="number">{value:.1e}</span>' if value else "0"


def _most_used(report: Report) -> str:
    return _share(max((comparison.used for comparison in report.comparisons), default=0.0))


def _share(used: float) -> str:
    if used == math.inf:
        return "∞"
    if used >= 10:
        return f"{used:,.0f} times"
    if 0 < used < 0.01:
        return "&lt; 1 %"
    return f"{100 * used:.0f} %"
