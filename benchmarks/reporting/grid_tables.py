"""The tables of a grid, made from its JSON."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import geometric_mean

from benchmarks.reporting.summary import (
    NATIVE,
    SCAN,
    UNROLLED,
    Row,
    Target,
    fastest,
    leads,
    mean,
    medians,
    our_times,
    peers,
    point_name,
    points_behind,
    products_time,
    share,
    targets,
)
from benchmarks.reporting.text import factor, machine_line, markdown, percent

ENGINE = "deploy_rnn, Engine"


def grid_summary(result: Row) -> str:
    """Our best against each peer's best, mean and worst point, and the share of the matrix products.

    One line for each cell, and one for each batch of it.
    """
    rows = result["rows"]
    peer_names = {peer: names for peer, names in peers(result).items() if leads(rows, names)}
    lines = []
    for cell in sorted({row["cell"] for row in rows}):
        cell_rows = [row for row in rows if row["cell"] == cell]
        lines.append(_summary_line(cell, cell_rows, peer_names.values()))
        for batch in sorted({row["B"] for row in cell_rows}):
            batch_rows = [row for row in cell_rows if row["B"] == batch]
            lines.append(_summary_line(f"{cell}, B={batch}", batch_rows, peer_names.values()))
    headings = [f"against {peer}" for peer in peer_names]
    header = [
        "speed of our best, mean (worst point)",
        *headings,
        "products alone, share of our time",
    ]
    return markdown(header, lines) + "\n\n" + machine_line(result)


def _summary_line(
    label: str, rows: Sequence[Row], peer_names: Iterable[Sequence[str]]
) -> list[str]:
    cells = [_mean_and_worst(rows, names) for names in peer_names]
    mean_share = mean(map(share, rows)) or 0
    return [label, *cells, percent(mean_share)]


def _mean_and_worst(rows: Sequence[Row], names: Sequence[str]) -> str:
    values = [lead for lead, _ in leads(rows, names)]
    if not values:  # a peer that ran at no point of these
        return ""
    return f"{factor(geometric_mean(values))} ({factor(min(values))})"


def targets_table(result: Row) -> str:
    """The goals, what was measured, and whether they are met."""
    header = [
        "geometric means over the grid",
        "target",
        "measured",
        "met",
        "the products alone",
        "worst point",
    ]
    return markdown(header, [_target_line(target) for target in targets(result)])


def _target_line(target: Target) -> list[str]:
    sign = "<=" if target.at_most else ">="
    unit = " %" if target.unit == "%" else target.unit
    value = "not measured" if target.value is None else f"{target.value:.2f}{unit}"
    verdict = {None: "", True: "yes", False: "**no**"}[target.met]
    bound = "" if target.bound is None else f"{target.bound:.2f}{unit}"
    return [target.name, f"{sign} {target.goal:g}{unit}", value, verdict, bound, target.where]


def behind_table(result: Row) -> str:
    """Every point where a peer is more than 5 % ahead of our best."""
    lines = []
    for value, peer, row in points_behind(result):
        line = [point_name(row), peer, factor(value), fastest(our_times(row))]
        lines.append(line)
    if not lines:
        return "Nowhere."
    return markdown(["point", "ahead of us", "by", "our best"], lines)


def points_table(result: Row) -> str:
    """Milliseconds of every contestant at every point, and the quartiles around it."""
    names = _contestant_names(result["rows"])
    lines = []
    for row in result["rows"]:
        times = [_time(row["contestants"].get(name)) for name in names]
        products = f"{products_time(row):.2f}"
        lines.append([point_name(row), *times, products, percent(share(row))])
    return markdown(["ms (quartiles)", *names, "products alone", "share of our best's time"], lines)


def _contestant_names(rows: Iterable[Row]) -> list[str]:
    """Everyone who ran at some point, in the order of the JSON."""
    return list(dict.fromkeys(name for row in rows for name in row["contestants"]))


def _time(timing: Row | None) -> str:
    if timing is None:
        return ""
    quartiles = f"{timing['low']:.2f}-{timing['high']:.2f}"
    return f"{timing['median']:.2f} ({quartiles})"


def engine_table(result: Row) -> str:
    """Several rows: a session of onnxruntime whose cores share each node, and the engine, which may share out rows."""
    lines = []
    for row in result["rows"]:
        times = medians(row)
        session_times = {name: times[name] for name in (UNROLLED, SCAN, NATIVE) if name in times}
        # With one row there is nothing to share out.
        if row["B"] == 1 or ENGINE not in times or not session_times:
            continue
        session = fastest(session_times)
        form = session.partition(", ")[2]
        line = [
            point_name(row),
            f"{times[session]:.2f} ({form})",
            f"{times[ENGINE]:.2f}",
            factor(times[session] / times[ENGINE]),
            _products(row["products"]),
        ]
        lines.append(line)
    if not lines:
        return "Not measured."
    header = ["ms", "session, fastest form", "Engine", "speed", "products alone: together, by core"]
    return markdown(header, lines)


def _products(products: dict[str, float]) -> str:
    """The products of all rows on all cores together, and of some rows on each core."""
    together = products.get("onnxruntime")
    by_core = products.get("onnxruntime, rows apart")
    return f"{together:.2f}, {by_core:.2f}" if together and by_core else ""


def missing_table(result: Row) -> str:
    """Which contestants could not be measured, at how many points, and why."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in result["rows"]:
        counts.update(row["missing"].items())
    if not counts:
        return "All were measured at every point."
    lines = [[name, str(count), reason] for (name, reason), count in counts.items()]
    return markdown(["not measured", "points", "why"], lines)


def load_table(result: Row) -> str:
    """Milliseconds to open each graph, and its size, over T: two layers in two directions."""
    rows = {
        (row["cell"], row["H"], row["T"]): row
        for row in result["rows"]
        if row["layers"] == row["directions"] == 2
    }
    names = [name for name in _contestant_names(rows.values()) if _is_opened(name, rows.values())]
    lines = []
    for (cell, hidden, steps), row in sorted(rows.items()):
        loads = [_load(row["contestants"].get(name)) for name in names]
        lines.append([f"{cell}, H={hidden}, T={steps}", *loads])
    return markdown(["ms to open (MB)", *names], lines)


def _is_opened(name: str, rows: Iterable[Row]) -> bool:
    """Whether a contestant opens a file, which the JSON says by the time that took."""
    return any("load" in row["contestants"].get(name, {}) for row in rows)


def _load(measured: Row | None) -> str:
    if measured is None:
        return ""
    load = f"{1e3 * measured['load']:.0f}"
    # A bundle and OpenVINO open graphs whose sizes are in other columns.
    if "bytes" not in measured:
        return load
    return f"{load} ({measured['bytes'] / 1e6:.1f})"


def lengths_table(result: Row) -> str:
    """Milliseconds a sequence, T uniform in 1..200."""
    rows = result["lengths"]
    if not rows:
        return "Not measured."
    names = list(rows[0]["contestants"])
    lines = []
    for row in rows:
        times = medians(row)
        cells = [f"{times[name]:.3f}" for name in names]
        lines.append([f"{row['cell']}, H={row['H']}", *cells])
    return markdown(["ms a sequence", *names], lines)
