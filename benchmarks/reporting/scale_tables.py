"""Tables of what a fleet of servers costs, which `benchmarks.scale` measures and plans."""

from typing import Any

from benchmarks.reporting.text import factor, machine_line, markdown, percent

Result = dict[str, Any]

KEPT_UP_MS = 250.0
"""As in the comparison of servers."""


def points_table(result: Result) -> str:
    """Real servers beside simulated ones."""
    header = [
        "replicas, requests/s", "p50 ms, real", "simulated", "p99 ms, real", "simulated",
        "rows of a run, real", "simulated",
    ]  # fmt: skip
    digits = {"p50": 1, "p99": 1, "rows": 2}
    if "wait_ms" in result["points"][0]["measured"]:  # not in older results
        digits["wait_ms"] = 2
        header += ["waits for a core, ms a request, real", "simulated"]
    lines = []
    for point in result["points"]:
        real, simulated = point["measured"], point["simulated"]
        cells = []
        for name, count in digits.items():
            cells += [f"{one[name]:.{count}f}" for one in (real, simulated)]
        lines.append([f"{point['replicas']}, {point['rate']:.0f}", *cells])
    return markdown(header, lines) + "\n\n" + machine_line(result)


def agreement_line(result: Result) -> str:
    """How far the simulation is from the real servers, where these kept up."""
    points = [point for point in result["points"] if _kept_up(point)]
    ranges = []
    for name in ("p50", "p99"):
        ratios = [point["simulated"][name] / point["measured"][name] for point in points]
        ranges.append(f"the {name} {factor(min(ratios))} to {factor(max(ratios))}")
    return (
        f"At the {len(points)} of {len(result['points'])} points that the real servers kept up (a p99 of at most "
        f"{KEPT_UP_MS:.0f} ms), the simulated values are, of the real ones: {' and '.join(ranges)}."
    )


def _kept_up(point: Result) -> bool:
    real = point["measured"]
    return bool(real["right"] == real["sent"] and real["p99"] <= KEPT_UP_MS)


def costs_table(result: Result) -> str:
    """The costs of a request and of a chunk."""
    costs, streams = result["costs"], result["streams"]
    lines = [
        ["reading and writing a request over HTTP, ms of CPU", f"{1e3 * costs['loop']:.2f}"],
        ["a run of 1 row, of 64 steps, ms", f"{1e3 * costs['run_table']['64']['1']:.2f}"],
        ["a run of 8 rows of 64 steps, ms", f"{1e3 * costs['run_table']['64']['8']:.2f}"],
        ["a run that begins on an idle core, as a multiple", f"{costs['run_scale']:.2f}"],
        ["wake-ups of threads and of the client, ms", f"{1e3 * costs['wakes']:.2f}"],
        ["the client, ms of CPU", f"{1e3 * costs['client']:.2f}"],
        ["a chunk of a stream, ms of CPU", f"{streams['cpu_ms']:.2f}"],
        ["chunks a second of one replica on two cores", f"{streams['capacity']:.0f}"],
        ["memory of a stream, KiB (states: 1 KiB)", f"{streams['kilobytes']:.1f}"],
    ]
    if "loop_scale" in costs:  # not in older results
        lines.insert(
            4, ["what the event loop does there, as a multiple", f"{costs['loop_scale']:.2f}"]
        )
    return markdown(["cost", "measured"], lines) + "\n\n" + machine_line(result)


def plan_table(plan: Result) -> str:
    """Replicas, machines and money."""
    header = ["", "replicas (spare)", "cores", "machines", "Gbit/s", "$ a month", "$ per million"]
    lines = []
    for row in plan["rows"]:
        if row["kind"] == "requests":
            label = f"{row['scale']:,.0f} requests a second"
            million = f"{row['dollars'] / (row['scale'] * 3600 * 730 / 1e6):.3f}"
        else:
            label = f"{row['scale']:,.0f} streams at a time"
            million = ""
        replicas = f"{row['replicas']:,} ({row['spare']:,})"
        counts = [f"{row[name]:,.0f}" for name in ("cores", "machines")]
        counts += [f"{row['gigabits']:,.2f}", f"{row['dollars']:,.0f}"]
        lines.append([label, replicas, *counts, million])
    return markdown(header, lines)


def assumptions_line(plan: Result) -> str:
    """What the plan takes for granted."""
    assumed = plan["assumptions"]
    return (
        f"One replica of two cores takes {plan['capacity']:.0f} requests a second with a p99 of at most "
        f"{assumed['p99_ms']:.0f} ms (the highest rate that a real one kept up with; {plan['simulated_capacity']:.0f} "
        f"in the simulation), or {plan['streams_capacity']:.0f} streams of {assumed['chunks']:.0f} chunks a second, "
        f"both with the client on the same cores. At that rate of requests, {percent(plan['cores_in_use'])} of its "
        f"cores are in use. "
        f"Assumed: ${assumed['price']:.2f} for a core and hour, {assumed['cores']} cores a machine, "
        f"{percent(assumed['spare'])} of the replicas spare, at least one."
    )


def failures_table(plan: Result) -> str:
    """One replica of several fails."""
    header = [
        "replicas, requests/s", "p99 ms before", "while one is missing", "after", "sent again", "refused",
    ]  # fmt: skip
    lines = []
    for row in plan["failures"]:
        latencies = [f"{row[f'p99_{time}']:.1f}" for time in ("before", "meanwhile", "after")]
        counts = [str(row["retried"]), str(row["refused"])]
        lines.append([f"{row['replicas']}, {row['rate']:.0f}", *latencies, *counts])
    return markdown(header, lines)


def scale_sections(result: Result, plan: Result) -> dict[str, str]:
    """Every generated part of docs/scale.md."""
    return {
        "scale_costs": costs_table(result),
        "scale_points": points_table(result) + "\n\n" + agreement_line(result),
        "scale_plan": plan_table(plan) + "\n\n" + assumptions_line(plan),
        "scale_failures": failures_table(plan),
    }
