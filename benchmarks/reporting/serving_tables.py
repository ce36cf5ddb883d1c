"""Tables of the servers that `benchmarks.serving.serve` compares."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.reporting.text import factor, machine_line, markdown

Result = dict[str, Any]
"""The JSON of a part."""
Row = dict[str, Any]
"""What one contestant did over one protocol, or why it is missing."""
Point = dict[str, Any]

OURS = "deploy-rnn serve"
TRITON = "Triton, Python backend"
PLAIN = "Starlette, one `session.run` per request"
PROTOCOL_NAMES = {"http": "HTTP", "grpc": "gRPC"}
NOT_KEPT_UP = "not kept up"


def ladder_table(result: Result) -> str:
    """The capacity of each contestant, and its latencies at every rate."""
    rates = result["rates"]
    header = ["p50 / p95 / p99 ms", "capacity, requests/s", *(f"{rate:.0f}/s" for rate in rates)]
    lines = []
    for row in present(result):
        cells = [_latencies(row, rate) for rate in rates]
        lines.append([_label(row), f"{row['capacity']:.0f}", *cells])
    return markdown(header, lines) + "\n\n" + _notes(result)


def models_table(result: Result) -> str:
    """The p99 of each model at every rate of all three."""
    models = result["models"]
    header = [f"p99 ms of {', '.join(models)}"]
    header += [f"{rate:.0f}/s together" for rate in result["rates"]]
    lines = []
    for row in present(result):
        cells = [_models_latencies(row, rate, models) for rate in result["rates"]]
        lines.append([_label(row), *cells])
    return markdown(header, lines) + "\n\n" + _notes(result)


def cpu_table(result: Result) -> str:
    """Processor time of a request, and what is left of it without the run."""
    header = ["ms of CPU a request", "in all", "the run", "above the run", "requests/s"]
    lines = []
    for row in present(result):
        (point,) = row["points"]
        cells = [f"{cpu_ms(point):.2f}", f"{result['run_ms']:.2f}"]
        cells += [f"{cpu_ms(point) - result['run_ms']:.2f}"]
        lines.append([_label(row), *cells, f"{point['right'] / point['seconds']:.0f}"])
    return markdown(header, lines) + "\n\n" + _notes(result)


def processes_table(result: Result) -> str:
    """Requests a second, with their p99 and processor time, of one server and of several behind nginx."""
    rows = result["rows"]
    columns = list(dict.fromkeys((row["model"], row["protocol"]) for row in rows))
    header = ["requests/s (p99 ms; ms of CPU each)"]
    header += [f"{model}, {PROTOCOL_NAMES[protocol]}" for model, protocol in columns]
    lines = []
    for name in dict.fromkeys(row["contestant"] for row in rows):
        of_name = {
            (row["model"], row["protocol"]): row for row in rows if row["contestant"] == name
        }
        cells = [_rate(of_name[column]) if column in of_name else "" for column in columns]
        lines.append([name, *cells])
    return markdown(header, lines) + f"\n\n{machine_line(result)}"


def _rate(row: Row) -> str:
    return f"{row['rate']:.0f} ({row['p99']:.0f}; {row['cpu_ms']:.2f})"


def grpc_servers_table(result: Result) -> str:
    """Processor time of a request of each server."""
    lines = [[row["server"], f"{1e3 * row['cpu_ms']:.0f}"] for row in result["rows"]]
    header = ["microseconds of CPU a request", f"{result['calls']} at a time"]
    return markdown(header, lines) + f"\n\n{machine_line(result)}"


TABLES: dict[str, Callable[[Result], str]] = {
    "lengths": ladder_table,
    "whole": ladder_table,
    "models": models_table,
    "cpu": cpu_table,
}
"""Part of the benchmark -> its table."""


def cpu_ms(point: Point) -> float:
    """Processor milliseconds of the server for each answer."""
    seconds: float = point["server_cpu"]
    answers: int = point["right"]
    return 1e3 * seconds / max(1, answers)


def present(result: Result) -> list[Row]:
    """The rows of contestants that ran."""
    return [row for row in result["rows"] if "missing" not in row]


def _label(row: Row) -> str:
    return f"{row['contestant']}, {PROTOCOL_NAMES[row['protocol']]}"


def find_point(row: Row, rate: float) -> Point | None:
    """The point at `rate`; None if the contestant did not get so far, or did not keep up."""
    for point in row["points"]:
        if point["rate"] == rate and rate <= row["capacity"]:
            found: Point = point
            return found
    return None


def _latencies(row: Row, rate: float) -> str:
    point = find_point(row, rate)
    if point is None:
        return NOT_KEPT_UP
    return f"{point['p50']:.1f} / {point['p95']:.1f} / {point['p99']:.1f}"


def _models_latencies(row: Row, rate: float, models: Sequence[str]) -> str:
    point = find_point(row, rate)
    if point is None:
        return NOT_KEPT_UP
    return " / ".join(f"{point['models'][model]['p99']:.1f}" for model in models)


def _notes(result: Result) -> str:
    """Who is missing, what was compared, what the load took, and on what machine."""
    notes = [
        f"{row['contestant']} is left out: {row['missing']}."
        for row in result["rows"]
        if "missing" in row
    ]
    points = [
        point for row in present(result) for point in [*row["points"], *row.get("search", [])]
    ]
    answers = sum(point["right"] + point["wrong"] for point in points)
    wrong = sum(point["wrong"] for point in points)
    notes.append(f"{answers:,} answers were compared with PyTorch's; {wrong or 'none'} differed.")
    shares = [point["load_cpu"] / point["seconds"] for point in points]
    notes.append(f"The load took {min(shares):.0%} to {max(shares):.0%} of a core.")
    notes.append(machine_line(result))
    if result["triton"]:
        versions = [f"{name} {version}" for name, version in result["triton"].items()]
        notes.append(f"Triton: {', '.join(versions)}.")
    return " ".join(notes)


LADDERS = {"lengths": ("lengths", 1.8), "whole": ("no lengths", 1.0)}
"""Part -> what the tables call it, and the goal for our capacity as a multiple of Triton's."""
CPU_GOAL = 0.35
"""Milliseconds of a request above the run."""


def goals_table(results: dict[str, Result]) -> str:
    """What deploy-rnn is to reach in the parts that were measured, and whether it does."""
    lines = []
    for part, (words, capacity_goal) in LADDERS.items():
        if part in results:
            lines += _ladder_goals(results[part], words, capacity_goal)
    if "cpu" in results:
        for protocol, name in PROTOCOL_NAMES.items():
            row = find_row(results["cpu"], OURS, protocol)
            if row is not None:
                goal = _cpu_goal(row, results["cpu"]["run_ms"])
                lines.append([f"CPU of a request above the run, {name}", *goal])
    return markdown(["", "goal", "measured", "met"], lines)


def _ladder_goals(result: Result, words: str, capacity_goal: float) -> list[list[str]]:
    lines = []
    for protocol, name in PROTOCOL_NAMES.items():
        line = _latency_goal(result, protocol)
        if line:
            lines.append([f"p99 against Triton's, {words}, {name}", *line])
    capacity_line = _capacity_goal(result, capacity_goal)
    return [*lines, [f"capacity against Triton's, {words}, HTTP", *capacity_line]]


def find_row(result: Result, contestant: str, protocol: str = "http") -> Row | None:
    for row in present(result):
        if (row["contestant"], row["protocol"]) == (contestant, protocol):
            return row
    return None


def _latency_goal(result: Result, protocol: str) -> list[str]:
    """The largest p99 of ours as a multiple of Triton's, over the rates that Triton keeps up."""
    ours = find_row(result, OURS, protocol)
    triton = find_row(result, TRITON, protocol)
    if ours is None or triton is None:
        return []
    ratios: list[tuple[float, float]] = []
    for rate in result["rates"]:
        their_point = find_point(triton, rate)
        our_point = find_point(ours, rate)
        if their_point:
            ratio = our_point["p99"] / their_point["p99"] if our_point else float("inf")
            ratios.append((ratio, rate))
    goal = "<= 1x at every rate"
    if not ratios:
        return [goal, "Triton keeps up with no rate", ""]
    worst, rate = max(ratios)
    measured = NOT_KEPT_UP if math.isinf(worst) else factor(worst)
    return [goal, f"{measured} at {rate:.0f}/s", _yes(worst <= 1)]


def _capacity_goal(result: Result, goal: float) -> list[str]:
    ours = find_row(result, OURS)
    triton = find_row(result, TRITON)
    if ours is None or triton is None:
        return [f">= {goal}x", "Triton is left out", ""]
    if not triton["capacity"]:
        return [f">= {goal}x", "Triton keeps up with no rate", ""]
    ratio = ours["capacity"] / triton["capacity"]
    return [f">= {goal}x", factor(ratio), _yes(ratio >= goal)]


def _cpu_goal(row: Row, run_ms: float) -> list[str]:
    above = cpu_ms(row["points"][0]) - run_ms
    return [f"<= {CPU_GOAL} ms", f"{above:.2f} ms", _yes(above <= CPU_GOAL)]


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def serving_in_words(lengths: Result) -> str:
    """The README's line: the capacity of ours and of its peers in the same run, and their p99 at the middle rate."""
    middle = lengths["rates"][len(lengths["rates"]) // 2]
    peers = {
        TRITON: "Triton, with onnxruntime in its Python backend",
        PLAIN: "Starlette, with one `session.run` per request",
    }
    ours = find_row(lengths, OURS)
    assert ours is not None
    words = [
        f"`deploy-rnn serve` keeps up with {ours['capacity']:.0f} requests a second on "
        f"{lengths['machine']['cores']} cores, which the load shares{_p99_in_words(ours, middle)}"
    ]
    for contestant, name in peers.items():
        row = find_row(lengths, contestant)
        if row is not None:
            words.append(f"{name}, with {row['capacity']:.0f}{_p99_in_words(row, middle)}")
    return f"**Serve** rows of 1 to 200 steps, at random times: {'; '.join(words)}."


def _p99_in_words(row: Row, rate: float) -> str:
    point = find_point(row, rate)
    return f" (p99 at {rate:.0f}: {point['p99']:.0f} ms)" if point else ""
