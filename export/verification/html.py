"""Reports as one HTML page that needs nothing else: no scripts, no other files, no network."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING

from deploy_rnn.tensor_spec import TensorSpec

from .plots import bars, error_over_time

if TYPE_CHECKING:
    from .report import Comparison, ErrorOverTime, Report

_SERIES = 3
"""How many cases a plot over time shows: as many as the style sheet has colours for."""

_LATENCY_NOTE = '<p class="quiet">Median of a few runs at the end of the check; shows an order of magnitude.</p>'

_RUNS_NOTE = (
    '<p class="quiet">The limit of a number is what the tolerance allows it to differ; shown is the number that came '
    "nearest to its limit. example: the example arguments; random: drawn from the values of the example; long: one "
    "long sequence; B and T: batch and time steps.</p>"
)

_STYLE = """
:root { color-scheme: light dark; --page: #f9f9f7; --card: #fcfcfb; --ink: #0b0b0b; --quiet: #52514e; --rule: #e1e0d9;
  --s1: #2a78d6; --s2: #1baf7a; --s3: #4a3aa7; --good: #006300; --bad: #c22f2f; }
@media (prefers-color-scheme: dark) { :root { --page: #0d0d0d; --card: #1a1a19; --ink: #ffffff; --quiet: #c3c2b7;
  --rule: #2c2c2a; --s1: #3987e5; --s2: #199e70; --s3: #9085e9; --good: #0ca30c; --bad: #e66767; } }
@media print { :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --quiet: #444; --rule: #bbb;
  --s1: #1b5fae; --s2: #137a55; --s3: #4a3aa7; --good: #005000; --bad: #a01010; } section { break-inside: avoid; }
  .meter, .bar, .key { print-color-adjust: exact; } }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; font-size: 1.25rem; } h3 { margin: 0 0 .5rem; font-size: 1rem; }
section { margin: 1rem 0; padding: 1rem 1.25rem; border: 1px solid var(--rule); border-radius: 8px;
  background: var(--card); overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1.25rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th { color: var(--quiet); font-weight: 600; vertical-align: bottom; } tr > th:only-of-type { vertical-align: top; }
th.right, td.right { text-align: right; } tr:last-child td, tr:last-child th { border-bottom: 0; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; } p { margin: .5rem 0; }
.number { white-space: nowrap; } .share { display: inline-block; min-width: 3.5rem; text-align: right; }
.verdict { font-size: 1.15rem; } nav ul { margin: 0; padding: 0; list-style: none; } a { color: inherit; }
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
    parts = [f"<h1>{escape(title)}</h1>", _section("Verdict", _overall_verdict(reports))]
    shared = _shared_facts(reports)
    if shared:
        parts.append(_section("About this check", _table([], shared)))
    if len(reports) > 1:
        parts.append(_contents(reports))
        parts += _side_by_side(reports)
    for number, report in enumerate(reports, start=1):
        if len(reports) > 1:
            parts.append(f'<h2 id="file{number}">{escape(_name(report))}</h2>')
            parts.append(_section("Verdict", _verdict(report)))
        own_facts = [fact for fact in _facts(report) if fact not in shared]
        parts += _sections(report, own_facts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n"
        "</html>\n"
    )


def _sections(report: Report, own_facts: Sequence[Sequence[str]]) -> Iterator[str]:
    """`own_facts`: those that are not the same for every file of the page."""
    yield _section("File", _file(report, own_facts))
    if report.comparisons:
        yield _section("The largest differences of each output", _worst(report))
        yield _section("Every run: how much of the limit was used", _matrix(report) + _RUNS_NOTE)
    outputs = dict.fromkeys(curve.output for curve in report.over_time)
    for output in outputs:
        curves = _choose_curves([curve for curve in report.over_time if curve.output == output])
        yield _section(f"Error of {output} over time", _legend(curves) + error_over_time(curves))
    if report.latency:
        yield _section("Latency", bars(list(_latencies(report).items()), "ms") + _LATENCY_NOTE)
    if report.placement:
        yield _section("Where the nodes ran", _placement(report))


def _overall_verdict(reports: Sequence[Report]) -> str:
    """One for all files; that of the only one, with what it left out."""
    if len(reports) == 1:
        return _verdict(reports[0])
    failed = [report for report in reports if report.failures]
    unchecked = [report for report in reports if not report.comparisons]
    if failed:
        text = f"✗ FAIL: {len(failed)} of {len(reports)} files differ from the PyTorch model: {_names(failed)}"
    elif unchecked:
        text = f"NOT CHECKED: {len(unchecked)} of {len(reports)} files: {_names(unchecked)}"
    else:
        total = sum(len(report.comparisons) for report in reports)
        text = f"✓ PASS: all {len(reports)} files agree with the PyTorch model, in {total:,} comparisons"
    quality = "bad" if failed or unchecked else "good"
    return f'<p class="verdict {quality}">{escape(text)}</p>'


def _names(reports: Sequence[Report]) -> str:
    return ", ".join(report.file.name for report in reports)


def _contents(reports: Sequence[Report]) -> str:
    """A link to each file's part of the page."""
    items = []
    for number, report in enumerate(reports, start=1):
        items.append(
            f'<li><a href="#file{number}">{escape(_name(report))}</a> {_verdict_mark(report)}</li>'
        )
    content = _section("Files", f"<ul>{''.join(items)}</ul>")
    return f'<nav aria-label="Files">{content}</nav>'


def _facts(report: Report) -> list[list[str]]:
    """What one needs to know to repeat the check, as rows of a table."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    facts = [
        ("Model", report.model),
        ("Tolerance", report.tolerance),
        ("Date", _date(report.date)),
        ("Machine", report.machine),
        ("Versions", versions),
    ]
    return [[name, escape(value)] for name, value in facts if value]


def _shared_facts(reports: Sequence[Report]) -> list[list[str]]:
    """Those that are the same for every file; the date is that of the last one."""
    last = _facts(max(reports, key=lambda report: report.date))
    others = [_facts(report) for report in reports]
    return [fact for fact in last if fact[0] == "Date" or all(fact in facts for facts in others)]


def _date(iso: str) -> str:
    """Such as "26 November 2026, 07:25 UTC"."""
    if not iso:
        return ""
    date = datetime.fromisoformat(iso)
    # The day without strftime's leading zero, which reads oddly.
    return f"{date.day} {date:%B %Y, %H:%M} UTC"


def _verdict_mark(report: Report) -> str:
    if report.failures:
        return '<span class="bad">✗ FAIL</span>'
    if not report.comparisons:
        return '<span class="bad">NOT CHECKED</span>'
    return '<span class="good">✓ PASS</span>'


def _verdict(report: Report) -> str:
    total = len(report.comparisons)
    if not report.comparisons:
        verdict = '<p class="verdict bad">NOT CHECKED</p>'
    elif report.failures:
        worst = max(report.failures, key=lambda comparison: comparison.used)
        verdict = (
            f'<p class="verdict bad">✗ FAIL: {len(report.failures)} of {total} comparisons are beyond the limit</p>'
            f"<p>{escape(str(worst))}</p>"
        )
    else:
        verdict = (
            f'<p class="verdict good">✓ PASS: {total} comparisons with the PyTorch model, '
            f"at most {_most_used(report)} of the limit used</p>"
        )
    notes = [f"{provider}: {status}" for provider, status in report.providers.items()]
    notes += [
        f"{name}: checked with one value only, the example has no other" for name in report.unvaried
    ]
    notes += [f"left out: {reason}" for reason in report.left_out]
    notes += [
        f"{name}: has the steps beyond the longest row, which PyTorch leaves out; they were not compared"
        for name in report.untrimmed
    ]
    return verdict + "".join(f'<p class="quiet">{escape(note)}</p>' for note in notes)


def _file(report: Report, own_facts: Sequence[Sequence[str]]) -> str:
    operators = ", ".join(f"{count:,} {name}" for name, count in report.op_types.items())
    rows = [
        ["File", escape(report.path)],
        ["Form", escape(report.form or "not written by deploy-rnn")],
        ["Precision", escape(f"{report.precision}{report.file.products_note}")],
        ["Size", f"{report.bytes / 1e3:,.0f} kB, {report.nodes:,} nodes, opset {report.opset}"],
        ["Inputs", "<br>".join(_spec(spec) for spec in report.inputs)],
        ["Outputs", "<br>".join(_spec(spec) for spec in report.outputs)],
    ]
    if report.ranges:
        ranges = [f"{name}: {sizes}" for name, sizes in report.ranges.items()]
        rows.append(["Sizes", escape("; ".join(ranges))])
    if report.rounding:
        costs = "<br>".join(escape(str(cost)) for cost in report.rounding)
        rows.append([f"{report.precision} moves", costs])
    if report.measured is not None:
        rows.append(["max_error", escape(str(report.measured))])
    rows.append(["Operators", escape(operators)])
    rows += [[name, value] for name, value in own_facts if name != "Date"]
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
        optimizations = "optimised" if worst.optimized else "as written"
        row = [
            escape(_short(provider)),
            f"<code>{escape(output)}</code>",
            _number(largest_error),
            _meter(worst),
            _number(worst.difference),
            _number(worst.allowed),
            escape(f"{worst.case}, graph {optimizations}"),
        ]
        rows.append(row)
    head = [
        "Ran on", "Output", "Largest difference", "Most of the limit used", "Difference there", "Limit there",
        "Inputs there",
    ]  # fmt: skip
    return _table(head, rows, right=(2, 3, 4, 5))


def _matrix(report: Report) -> str:
    """A row for each case, a column for each provider and optimisation level."""
    worst: dict[tuple[str, str, bool], Comparison] = {}
    for comparison in report.comparisons:
        run = (comparison.case, comparison.provider, comparison.optimized)
        if run not in worst or comparison.used > worst[run].used:
            worst[run] = comparison
    cases = dict.fromkeys(case for case, _, _ in worst)
    columns = dict.fromkeys((provider, optimized) for _, provider, optimized in worst)
    head = ["Inputs"]
    for provider, optimized in columns:
        graph = "optimised by onnxruntime" if optimized else "graph as written"
        head.append(f"{escape(_short(provider))}, {graph}")
    rows = []
    for case in cases:
        row = [escape(case)]
        for provider, optimized in columns:
            run = (case, provider, optimized)
            row.append(_meter(worst[run]) if run in worst else "not run")
        rows.append(row)
    return _table(head, rows, right=range(1, len(head)))


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
    return f'<span class="number"><span class="meter">{bar}</span><span class="share">{label}</span></span>'


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
    note = "Largest difference at each time step, logarithmic; dashed: the limit."
    return f'<p>{"".join(keys)}</p><p class="quiet">{note}</p>'


def _latencies(report: Report) -> dict[str, float]:
    """Provider and case -> milliseconds."""
    latencies = {}
    for provider, times in report.latency.items():
        for case, milliseconds in times.items():
            latencies[f"{_short(provider)}, {_with_steps(report, case)}"] = milliseconds
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
        parts.append(_table(["Ran on", "Nodes", "Operators"], rows, right=(1,)))
    return "".join(parts)


def _side_by_side(reports: Sequence[Report]) -> Iterator[str]:
    rows = []
    for report in reports:
        row = [
            escape(_name(report)),
            _verdict_mark(report),
            _most_used(report),
            f"{report.nodes:,}",
            f"{report.bytes / 1e3:,.0f}",
        ]
        rows.append(row)
    head = ["File", "Verdict", "Most of the limit used", "Nodes", "Size in kB"]
    yield _section("Side by side", _table(head, rows, right=(2, 3, 4)))
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


def _short(provider: str) -> str:
    """Such as "CPU"."""
    return provider.removesuffix("ExecutionProvider")


def _section(title: str, content: str) -> str:
    return f"<section>\n<h3>{escape(title)}</h3>\n{content}\n</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Cells are HTML. Without a head, the first cell of each row is a heading.

    Args:
        right: the columns of numbers, which are aligned right.
    """
    lines = ["<table>"]
    if head:
        lines.append(_table_row(head, ["th"] * len(head), right))
    for row in rows:
        tags = ["td" if head else "th", *["td"] * (len(row) - 1)]
        lines.append(_table_row(row, tags, right))
    return "\n".join([*lines, "</table>"])


def _table_row(cells: Sequence[str], tags: Sequence[str], right: Collection[int]) -> str:
    parts = []
    for column, (cell, tag) in enumerate(zip(cells, tags, strict=True)):
        attribute = ' class="right"' if column in right else ""
        parts.append(f"<{tag}{attribute}>{cell}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"


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
