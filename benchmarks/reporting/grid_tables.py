"""The tables of a grid, made from its JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.reporting.summary import behind, leads, mean, ours, peers, place, share, targets
from benchmarks.reporting.text import machine_line, markdown

Row = dict[str, Any]
SESSIONS = ("onnxruntime, unrolled", "onnxruntime, scan", "onnxruntime, native")


def grid_summary(result: Row) -> str:
    """For each cell, and each batch of it: our best against each peer's best, mean and worst point; share of floor."""
    found = {peer: names for peer, names in peers(result).items() if leads(result["rows"], names)}
    groups = [
        (cell, [row for row in result["rows"] if row["cell"] == cell and batch in (None, row["B"])], batch)
        for cell in _distinct(result["rows"], "cell")
        for batch in (None, *_distinct([row for row in result["rows"] if row["cell"] == cell], "B"))
    ]
    lines = [
        [
            cell if batch is None else f"{cell}, B={batch}",
            *(_leads(points, names) for names in found.values()),
            f"{100 * (mean(map(share, points)) or 0):.0f} %",
        ]
        for cell, points, batch in groups
    ]
    header = ["speed of our best, mean (worst point)", *(f"against {name}" for name in found), "of the floor"]
    return markdown(header, lines) + "\n\n" + machine_line(result)


def _leads(points: Sequence[Row], names: Sequence[str]) -> str:
    values = [value for value, _ in leads(points, names)]
    return f"{mean(values):.2f}x ({min(values):.2f}x)" if values else ""


def _distinct(rows: Iterable[Row], key: str) -> list[Any]:
    return sorted({row[key] for row in rows}, key=str if key == "cell" else int)


def targets_table(result: Row) -> str:
    """What is aimed at, what was measured, and whether it is met."""
    lines = [
        [
            target.name,
            f"{'<=' if target.at_most else '>='} {target.goal:g}{_unit(target.unit)}",
            "not measured" if target.value is None else f"{target.value:.2f}{_unit(target.unit)}",
            {None: "", True: "yes", False: "**no**"}[target.met],
            "" if target.bound is None else f"{target.bound:.2f}{_unit(target.unit)}",
            target.where,
        ]
        for target in targets(result)
    ]
    header = ["geometric means over the grid", "target", "measured", "met", "the products alone", "worst point"]
    return markdown(header, lines)


def _unit(unit: str) -> str:
    return f" {unit}" if unit == "%" else unit


def behind_table(result: Row) -> str:
    """Every point where a peer is more than 5 % ahead of our best."""
    lines = [[place(row), peer, f"{ahead:.2f}x", _first(row)] for ahead, peer, row in behind(result)]
    return markdown(["point", "ahead of us", "by", "our best"], lines) if lines else "Nowhere."


def _first(row: Row) -> str:
    times = ours(row)
    return min(times, key=lambda name: times[name])


def points_table(result: Row) -> str:
    """Milliseconds of every contestant at every point, and the quartiles around it."""
    names = list(dict.fromkeys(name for row in result["rows"] for name in row["contestants"]))
    lines = [
        [
            place(row),
            *(_time(row["contestants"].get(name)) for name in names),
            f"{min(row['products'].values()):.2f}",
            f"{100 * share(row):.0f} %",
        ]
        for row in result["rows"]
    ]
    return markdown(["ms (quartiles)", *names, "products alone", "of the floor"], lines)


def _time(measured: Row | None) -> str:
    return f"{measured['median']:.2f} ({measured['low']:.2f}-{measured['high']:.2f})" if measured else ""


def engine_table(result: Row) -> str:
    """Several rows: a session of onnxruntime whose cores share each node, and the engine, which may share out rows."""
    name = "deploy_rnn, Engine"
    lines = []
    for row in result["rows"]:
        plain = {each: times["median"] for each, times in row["contestants"].items() if each in SESSIONS}
        if row["B"] > 1 and name in row["contestants"] and plain:
            fastest, ours = min(plain, key=lambda each: plain[each]), row["contestants"][name]["median"]
            alone, apart = (row["products"].get(each) for each in ("onnxruntime", "onnxruntime, rows apart"))
            products = f"{alone:.2f}, {apart:.2f}" if alone and apart else ""
            form, speed = fastest.partition(", ")[2], plain[fastest] / ours
            lines.append([place(row), f"{plain[fastest]:.2f} ({form})", f"{ours:.2f}", f"{speed:.2f}x", products])
    header = ["ms", "session, fastest form", "Engine", "speed", "products alone: together, rows apart"]
    return markdown(header, lines) if lines else "Not measured."


def missing_table(result: Row) -> str:
    """Who could not be measured, at how many points, and why."""
    why: dict[tuple[str, str], int] = {}
    for row in result["rows"]:
        for each in row["missing"].items():
            why[each] = why.get(each, 0) + 1
    lines = [[name, str(count), reason] for (name, reason), count in why.items()]
    return markdown(["not measured", "points", "why"], lines) if lines else "All were measured at every point."


def load_table(result: Row) -> str:
    """Milliseconds to open each graph, and its size, over T: two layers in two directions."""
    rows = {(row["cell"], row["H"], row["T"]): row for row in result["rows"] if row["layers"] == row["directions"] == 2}
    names = [
        name
        for name in dict.fromkeys(name for row in rows.values() for name in row["contestants"])
        if any("load" in row["contestants"].get(name, {}) for row in rows.values())
    ]
    lines = [
        [f"{cell}, H={hidden}, T={steps}", *(_load(row["contestants"].get(name)) for name in names)]
        for (cell, hidden, steps), row in sorted(rows.items())
    ]
    return markdown(["ms to open (MB)", *names], lines)


def _load(measured: Row | None) -> str:
    if measured is None:
        return ""
    size = f" ({measured['bytes'] / 1e6:.1f})" if "bytes" in measured else ""
    return f"{1e3 * measured['load']:.0f}{size}"


def lengths_table(result: Row) -> str:
    """Milliseconds a sequence, T uniform in 1..200."""
    rows = result["lengths"]
    if not rows:
        return "Not measured."
    names = list(rows[0]["contestants"])
    lines = [
        [f"{row['cell']}, H={row['H']}", *(f"{row['contestants'][name]['median']:.3f}" for name in names)]
        for row in rows
    ]
    return markdown(["ms a sequence", *names], lines)
