"""Reports as one HTML page that needs nothing else: no script, no other file, no network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_rnn.tensor_spec import TensorSpec

from .plots import bars, error_over_time

if TYPE_CHECKING:
    from .report import Comparison, ErrorOverTime, Report

_SERIES = 3

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
    """A page about one file, or about several that are to be compared, such as one model in each form.

    Raises:
        ValueError: there is no report.
    """
    if not reports:
        raise ValueError("`reports` is empty; give the Report of each file.")
    parts = [f"<h1>{escape(title)}</h1>"]
    if len(reports) > 1:
        parts.append(_side_by_side(reports))
    for report in reports:
        if len(reports) > 1:
            parts.append(f"<h2>{escape(_name(report))}</h2>")
        parts += _parts(report)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n"
        "</html>\n"
    )


def _parts(report: Report) -> Iterator[str]:
    yield _section("Verdict", _verdict(report))
    yield _section("File", _file(report))
    if report.comparisons:
        yield _section("Worst error of each output", _worst(report))
        yield _section("Every run: the most that an output used of what is allowed", _matrix(report))
    for output in dict.fromkeys(each.output for each in report.over_time):
        series = _chosen([each for each in report.over_time if each.output == output])
        yield _section(f"Error of {output} over time", _legend(series) + error_over_time(series))
    if report.latency:
        yield _section("Latency", bars(list(_latencies(report)), "ms") + _LATENCY_NOTE)
    if report.placement:
        yield _section("Where the nodes ran", _placement(report))


_LATENCY_NOTE = '<p class="quiet">Median of a few runs at the end of the check; shows an order of magnitude.</p>'


def _verdict(report: Report) -> str:
    used = _share(max((each.used for each in report.comparisons), default=0.0))
    if not report.comparisons:
        said = '<p class="bad">NOT CHECKED</p>'
    elif report.failures:
        first = max(report.failures, key=lambda each: each.used)
        count = f"{len(report.failures)} of {len(report.comparisons)}"
        said = f'<p class="bad">✗ FAIL: {count} comparisons are beyond what is allowed</p><p>{escape(str(first))}</p>'
    else:
        said = f'<p class="good">✓ PASS: {len(report.comparisons)} comparisons, at most {used} of what is allowed</p>'
    notes = [f"{provider}: {status}" for provider, status in report.providers.items()]
    notes += [f"{name}: checked with one value only, the example has no other" for name in report.unvaried]
    notes += [f"not run: {each}" for each in report.left_out]
    return said + "".join(f'<p class="quiet">{escape(note)}</p>' for note in notes)


def _file(report: Report) -> str:
    rows = [
        ["File", escape(report.path)],
        ["Form", escape(report.form or "not written by deploy-rnn")],
        ["Precision", escape(report.precision)],
        ["Size", f"{report.bytes / 1e3:,.0f} kB, {report.nodes:,} nodes, opset {report.opset}"],
        ["Inputs", "<br>".join(map(_spec, report.inputs))],
        ["Outputs", "<br>".join(map(_spec, report.outputs))],
        ["Operators", escape(", ".join(f"{count:,} {name}" for name, count in report.op_types.items()))],
        ["Versions", escape(", ".join(f"{name} {version}" for name, version in report.versions.items()))],
    ]
    return _table([], rows)


def _spec(spec: TensorSpec) -> str:
    dynamic = [size for size in spec.shape if isinstance(size, str)]
    said = f"dynamic: {', '.join(dynamic)}" if dynamic else "every axis is fixed"
    return f'<code>{escape(str(spec))}</code> <span class="quiet">{escape(said)}</span>'


def _worst(report: Report) -> str:
    head = ["Provider", "Output", "Largest error", "Nearest its limit", "Limit", "Used", "In"]
    rows = []
    for (provider, output), runs in _grouped(report.comparisons).items():
        near = max(runs, key=lambda each: each.used)
        rows.append([
            escape(provider),
            f"<code>{escape(output)}</code>",
            _number(max(each.max_abs_error for each in runs)),
            _number(near.difference),
            _number(near.allowed),
            _meter(near),
            escape(f"{near.case}, optimisations {'on' if near.optimized else 'off'}"),
        ])  # fmt: skip
    return _table(head, rows)


def _grouped(comparisons: Sequence[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for each in comparisons:
        groups.setdefault((each.provider, each.output), []).append(each)
    return groups


def _matrix(report: Report) -> str:
    """A row for each case, a column for each provider and optimisation level."""
    columns = dict.fromkeys((each.provider, each.optimized) for each in report.comparisons)
    worst: dict[tuple[str, str, bool], Comparison] = {}
    for each in report.comparisons:
        run = (each.case, each.provider, each.optimized)
        worst[run] = max(worst.get(run, each), each, key=lambda one: one.used)
    head = ["Case", *(f"{escape(name)}, {'optimised' if on else 'as written'}" for name, on in columns)]
    rows = [
        [escape(case), *(_cell(worst.get((case, *column))) for column in columns)]
        for case in dict.fromkeys(each.case for each in report.comparisons)
    ]
    return _table(head, rows)


def _cell(comparison: Comparison | None) -> str:
    return "not run" if comparison is None else _meter(comparison)


def _meter(comparison: Comparison) -> str:
    over = "" if comparison.ok else ' class="over"'
    share = _share(comparison.used)
    said = share if comparison.ok else f'<span class="bad">✗ {share}</span>'
    bar = f'<span class="meter"><i{over} style="width:{min(comparison.used, 1):.0%}"></i></span>'
    return f'<span class="number">{bar}{said}</span>'


def _chosen(series: Sequence[ErrorOverTime]) -> list[ErrorOverTime]:
    """The cases of one output that say most: wrong ones, the example, the one of most steps."""
    first = sorted(series, key=lambda each: (each.first_bad is None, each.case != "example", -each.steps))
    longest = max(series, key=lambda each: each.steps)
    return list(dict.fromkeys([*first[: _SERIES - 1], longest]))


def _legend(series: Sequence[ErrorOverTime]) -> str:
    keys = "".join(
        f'<span class="key" style="background:var(--s{number})"></span>{escape(each.case)}'
        for number, each in enumerate(series, start=1)
    )
    return f'<p>{keys}</p><p class="quiet">Absolute error at each step, logarithmic; dashed: what is allowed.</p>'


def _latencies(report: Report) -> Iterator[tuple[str, float]]:
    for provider, times in report.latency.items():
        for case, milliseconds in times.items():
            yield f"{_short(provider)}, {_with_steps(report, case)}", milliseconds


def _with_steps(report: Report, case: str) -> str:
    """The name of a case, with its number of steps."""
    steps = next((each.steps for each in report.over_time if each.case == case), None)
    return case if steps is None or f"={steps}" in case else f"{case}, T={steps}"


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _placement(report: Report) -> str:
    parts = []
    for asked, placed in report.placement.items():
        rows = [
            [escape(ran), f"{sum(counts.values()):,}", escape(", ".join(f"{n:,} {name}" for name, n in counts.items()))]
            for ran, counts in placed.nodes.items()
        ]
        parts.append(f"<p>{escape(asked)}, graph optimisations on; {placed.copies} copies between devices</p>")
        parts.append(_table(["Ran on", "Nodes", "Operators"], rows))
    return "".join(parts)


def _side_by_side(reports: Sequence[Report]) -> str:
    rows = [
        [
            escape(_name(report)),
            '<span class="bad">✗ FAIL</span>' if report.failures else '<span class="good">✓ PASS</span>',
            _share(max((each.used for each in report.comparisons), default=0.0)),
            f"{report.nodes:,}",
            f"{report.bytes / 1e3:,.0f}",
        ]
        for report in reports
    ]
    parts = [_section("Side by side", _table(["", "Verdict", "Used at most", "Nodes", "kB"], rows))]
    for label in dict.fromkeys(label for report in reports for label, _ in _latencies(report)):
        times = [
            (_name(report), dict(_latencies(report))[label]) for report in reports if label in dict(_latencies(report))
        ]
        parts.append(_section(f"Latency: {label}", bars(times, "ms")))
    parts.append(_section("Size", bars([(_name(report), report.bytes / 1e3) for report in reports], "kB")))
    parts.append(_section("Nodes", bars([(_name(report), float(report.nodes)) for report in reports], "nodes")))
    return "\n".join(parts)


def _name(report: Report) -> str:
    """Its form, and the file."""
    name = Path(report.path).name
    return f"{report.form}: {name}" if report.form else name


def _section(title: str, inside: str) -> str:
    return f"<section>\n<h3>{escape(title)}</h3>\n{inside}\n</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Cells are HTML. Without a head, the first cell of each row is one."""
    lines = ["<table>"]
    if head:
        lines.append("<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>")
    for first, *others in rows:
        lead = f"<td>{first}</td>" if head else f"<th>{first}</th>"
        lines.append(f"<tr>{lead}{''.join(f'<td>{cell}</td>' for cell in others)}</tr>")
    return "\n".join([*lines, "</table>"])


def _number(value: float) -> str:
    return f'<span class="number">{value:.1e}</span>' if value else "0"


def _share(used: float) -> str:
    if used >= 10:
        return "∞" if used == math.inf else f"{used:,.0f} times"
    return "&lt; 1 %" if 0 < used < 0.01 else f"{100 * used:.0f} %"
