"""The tables of docs/precision.md: layers in each precision, kernels, and the highlighter."""

from collections.abc import Sequence
from typing import Any

from benchmarks.reporting.text import factor, machine_line, markdown

Result = dict[str, Any]
"""The JSON of `benchmarks.studies.precision`."""

SPEEDS = ("int8", "int8, state only", "float16", "quantize_dynamic", "torch.ao", "torch.nn")
SIZED = ("float32", "float16", "int8", "int8, state only")

LAYERS = """## Speed and error

One layer: how many times as fast as float32, and the largest error. On two cores."""

ONE_THREAD = """## On one thread

The same of one row on one thread, which is how the server runs a request while others wait."""

SIZES = """## Size and memory

In form "scan": the file, and what a process grows by when it opens it and runs one row."""

KERNELS = """## Which kernel

A product of a state and a weight (H, 4H), by itself."""

CELLS = """## Cells of your own

Steps that users write: how many times as fast as float32 in processor time, and the largest error, in form "scan"."""

TRAINED = """## A trained model

The highlighter of the examples: characters that get the right label, in held-out files."""


def precision_sections(result: Result) -> dict[str, str]:
    """Marker of the page -> what stands there, with its heading: the page has none of them before they are measured."""
    return {
        "precision": f"{LAYERS}\n\n{layers_table(result, None)}",
        "precision_one_thread": f"{ONE_THREAD}\n\n{layers_table(result, 1)}",
        "precision_size": f"{SIZES}\n\n{sizes_table(result)}",
        "precision_kernels": f"{KERNELS}\n\n{kernels_table(result)}",
        "precision_highlighter": f"{TRAINED}\n\n{highlighter_table(result)}\n\n{machine_line(result)}",
    }


def layers_table(result: Result, threads: int | None) -> str:
    """Milliseconds in float32, how many times as fast the others are, and their largest errors.

    Args:
        threads: of the rows; None for those on all cores.
    """
    rows = [row for row in result["rows"] if row["threads"] == threads]
    measured_names = {name for row in rows for name in row["contestants"]}
    names = [name for name in SPEEDS if name in measured_names]
    header = ["", "float32, ms", *names]
    lines = []
    for row in _in_order(rows):
        contestants = row["contestants"]
        float32 = contestants["float32"]["milliseconds"]
        cells = [_speed_and_error(contestants.get(name), float32) for name in names]
        label = f"{row['family']}, H={row['H']}, B={row['B']}, T={row['T']}, {row['form']}"
        lines.append([label, f"{float32:.2f}", *cells])
    return markdown(header, lines)


def _in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By layer, as a reader looks for it."""
    families = ["RNN", "GRU", "LSTM"]
    return sorted(
        rows, key=lambda row: (families.index(row["family"]), row["H"], row["T"], row["B"])
    )


def _speed(measured: dict[str, float] | None, float32: float) -> str:
    return "" if measured is None else factor(float32 / measured["milliseconds"])


def _speed_and_error(measured: dict[str, float] | None, float32: float) -> str:
    return f"{_speed(measured, float32)} {_error(measured)}".strip()


def _error(measured: dict[str, float] | None) -> str:
    return "" if measured is None else f"{measured['error']:.1e}"


def sizes_table(result: Result) -> str:
    """Of each file in form "scan": its size, and what a process grows by when it opens it."""
    measured_names = {name for row in result["rows"] for name in row["megabytes"]}
    names = [name for name in SIZED if name in measured_names]
    header = ["", *(f"kB, {name}" for name in names), *(f"MB held, {name}" for name in names)]
    lines = []
    for row in _in_order(result["rows"]):
        if row["megabytes"] and row["B"] == 1 and row["threads"] is None:
            sizes = [f"{row['kilobytes'][name]:,.0f}" for name in names]
            held = [f"{row['megabytes'][name]:.1f}" for name in names]
            lines.append([f"{row['family']}, H={row['H']}", *sizes, *held])
    return markdown(header, lines)


def kernels_table(result: Result) -> str:
    """Microseconds of one product in float32, how many times as fast the others are, and their largest errors."""
    names = [name for name in result["kernels"][0]["kernels"] if name != "float32"]
    header = ["", "float32, µs", *names, *(f"error, {name}" for name in names)]
    lines = []
    for row in result["kernels"]:
        kernels = row["kernels"]
        float32 = kernels["float32"]["microseconds"]
        speeds = [factor(float32 / kernels[name]["microseconds"]) for name in names]
        errors = [f"{kernels[name]['error']:.1e}" for name in names]
        lines.append([f"H={row['H']}, B={row['B']}", f"{float32:.0f}", *speeds, *errors])
    return markdown(header, lines)


def highlighter_table(result: Result) -> str:
    """How many characters get their label."""
    lines = []
    for name, measured in result["highlighter"].items():
        accuracy = f"{100 * measured['accuracy']:.3f} %"
        lines.append([name, accuracy, f"{measured['kilobytes']:,.0f}"])
    return markdown(["", "right", "kB"], lines)


def contestants_table(result: Result) -> str:
    """Of `benchmarks.studies.int8_contestants`: how many times as fast as our float32 file, and the largest errors."""
    names: list[str] = []
    for row in result["rows"]:
        names += [name for name in row["contestants"] if name not in names]
    base = "float32, unrolled"
    names.remove(base)
    header = ["", f"{base}, ms", *names]
    lines = []
    for row in _in_order(result["rows"]):
        contestants = row["contestants"]
        float32 = contestants[base]["milliseconds"]
        cells = []
        for name in names:
            cells.append(_speed_and_error(contestants.get(name), float32))
        lines.append([f"{row['family']}, H={row['H']}, B={row['B']}", f"{float32:.2f}", *cells])
    return f"{markdown(header, lines)}\n\n{machine_line(result)}"


def cells_section(result: Result) -> str:
    """Of `benchmarks.studies.int8_cells`: the same of steps that users write, with its heading."""
    names = [name for name in result["rows"][0]["contestants"] if name != "float32"]
    lines = []
    for row in result["rows"]:
        contestants = row["contestants"]
        float32 = contestants["float32"]["milliseconds"]
        cells = [_speed_and_error(contestants[name], float32) for name in names]
        lines.append([f"{row['model']}, H={row['H']}, B={row['B']}", f"{float32:.2f}", *cells])
    table = markdown(["", "float32, ms", *names], lines)
    return f"{CELLS}\n\n{table}\n\n{machine_line(result)}"


def rounding_ways_table(result: Result) -> str:
    """Of `benchmarks.studies.int8_rounding`: the error of each way to round."""
    header = ["", *(f"{row['family']}, H={row['H']}" for row in result["rows"])]
    lines = []
    for name in result["rows"][0]["errors"]:
        lines.append([name, *(f"{row['errors'][name]:.4f}" for row in result["rows"])])
    return markdown(header, lines)
