"""What a grid says: our best against each peer's best, the share of the matrix products, and the targets."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

from benchmarks.reporting.text import factor, percent

Row = dict[str, Any]
"""A result, or one of its rows: a point and what was measured there."""

UNROLLED = "onnxruntime, unrolled"
SCAN = "onnxruntime, scan"
NATIVE = "onnxruntime, native"
PEERS: dict[str, tuple[str, ...]] = {
    "torch.nn": ("torch.nn",),
    "torch.jit": ("torch.nn, traced",),
    "torch.compile": ("torch.nn, compiled",),
    "native operator": (NATIVE,),
    "torch.onnx.export": ("onnxruntime, torch.onnx.export",),
    "legacy exporter": ("onnxruntime, torch.onnx.export, legacy",),
    "OpenVINO": ("openvino, native", "openvino, unrolled"),
}
"""What a user would pick instead of us -> the contestants of which the fastest counts."""
CUDA_PEERS: dict[str, tuple[str, ...]] = {
    "cuDNN fp32": ("torch.nn",),
    "cuDNN tf32": ("torch.nn, tf32",),
    "cuDNN fp16": ("torch.nn, fp16",),
    "cuDNN bf16": ("torch.nn, bf16",),
    "native operator": (NATIVE, f"{NATIVE}, CUDA graph"),
}
OURS_AND_PEERS = frozenset({NATIVE, f"{NATIVE}, CUDA graph"})
"""The native form is one of ours, which `form="auto"` picks where it is fastest. It is a peer too: a user of that form
alone has it."""
RNN = ("tanh", "relu")
GATED = ("GRU", "LSTM")


def peers(result: Row) -> dict[str, tuple[str, ...]]:
    return CUDA_PEERS if result["device"] == "cuda" else PEERS


def medians(row: Row) -> dict[str, float]:
    """Milliseconds of every contestant that ran at a point."""
    return {name: timing["median"] for name, timing in row["contestants"].items()}


def our_times(row: Row) -> dict[str, float]:
    """Milliseconds of every contestant of ours that ran at a point."""
    peer_names = {name for names in [*PEERS.values(), *CUDA_PEERS.values()] for name in names}
    return {
        name: ms for name, ms in medians(row).items() if name not in peer_names - OURS_AND_PEERS
    }


def fastest(times: dict[str, float]) -> str:
    """The name with the least time."""
    return min(times, key=lambda name: times[name])


def best(row: Row) -> float:
    """Milliseconds of our fastest."""
    return min(our_times(row).values())


def products_time(row: Row) -> float:
    """Milliseconds of the matrix products alone."""
    ms: float = min(row["products"].values())
    return ms


def share(row: Row) -> float:
    """The matrix products alone as a share of our best's time: above 1 if our best is the faster of the two."""
    return products_time(row) / best(row)


def lead(row: Row, names: Sequence[str], our_time: Callable[[Row], float] = best) -> float | None:
    """How many times as fast as the best of `names` we are; None if none of them ran.

    Args:
        our_time: milliseconds of ours at a point.
    """
    times = medians(row)
    peer_times = [times[name] for name in names if name in times]
    return min(peer_times) / our_time(row) if peer_times else None


def leads(
    rows: Iterable[Row], names: Sequence[str], our_time: Callable[[Row], float] = best
) -> list[tuple[float, Row]]:
    """The lead at every point where one of `names` ran, and the point."""
    pairs = [(lead(row, names, our_time), row) for row in rows]
    return [(value, row) for value, row in pairs if value is not None]


def mean(values: Iterable[float]) -> float | None:
    """The geometric mean, or None of no values."""
    values = list(values)
    return geometric_mean(values) if values else None


@dataclass(frozen=True)
class Target:
    """A figure and its goal.

    Attributes:
        value: what was measured; None: nothing was.
        goal: the least that `value` should be, or the most if `at_most`.
        where: the worst point.
        bound: what `value` would be if a layer did nothing but its matrix products.
    """

    name: str
    value: float | None
    goal: float
    unit: str = "x"
    at_most: bool = False
    where: str = ""
    bound: float | None = None

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal


def targets(result: Row) -> list[Target]:
    """The targets of a grid on the CPU."""
    rows = result["rows"]
    rnn_rows = [row for row in rows if row["cell"] in RNN]
    gated_targets = []
    for cell in GATED:
        cell_rows = [row for row in rows if row["cell"] == cell]
        gated_targets += [
            lead_target(f"{cell}, against torch.nn", cell_rows, PEERS["torch.nn"], 1.5),
            lead_target(
                f"{cell}, against the native operator", cell_rows, PEERS["native operator"], 1
            ),
        ]
    return [
        lead_target("RNN, against torch.nn", rnn_rows, PEERS["torch.nn"], 4),
        lead_target("RNN, against native operator", rnn_rows, PEERS["native operator"], 2.5),
        lead_target("RNN, against torch.onnx.export", rnn_rows, PEERS["torch.onnx.export"], 1.5),
        lead_target("RNN, against OpenVINO", rnn_rows, PEERS["OpenVINO"], 1.25),
        share_target(
            "RNN, B >= 32, products alone as a share of our time",
            [row for row in rnn_rows if row["B"] >= 32],
            85,
        ),
        *gated_targets,
        *lengths_targets(result["lengths"]),
        load_target(rnn_rows),
        scan_target(rows, batch=32, goal=1.2),
        scan_target(rows, batch=1, goal=1.6),
    ]


def lead_target(name: str, rows: Sequence[Row], peer_names: Sequence[str], goal: float) -> Target:
    """Our lead on a peer."""
    our_leads = leads(rows, peer_names)
    value = mean(lead for lead, _ in our_leads)
    bound = mean(lead for lead, _ in leads(rows, peer_names, products_time))
    where = ""
    if our_leads:
        worst, row = min(our_leads, key=lambda pair: pair[0])
        where = f"{factor(worst)} at {point_name(row)}"
    return Target(name, value, goal, where=where, bound=bound)


def share_target(name: str, rows: Sequence[Row], goal: float) -> Target:
    """The matrix products alone as a share of our time, in percent."""
    value = mean(100 * share(row) for row in rows)
    where = ""
    if rows:
        worst = min(rows, key=share)
        where = f"{percent(share(worst))} at {point_name(worst)}"
    return Target(name, value, goal, "%", where=where)


def lengths_targets(rows: Sequence[Row]) -> list[Target]:
    """Mixed lengths: our best way against torch.nn and against our own best graph, both of which pad."""
    return [
        gain_target("mixed lengths, against torch.nn, padded", rows, against_torch=True),
        gain_target("mixed lengths, against our best graph, padded", rows, against_torch=False),
    ]


def gain_target(name: str, rows: Sequence[Row], *, against_torch: bool) -> Target:
    gains = [padding_gain(row, against_torch=against_torch) for row in rows]
    where = ""
    if gains:
        worst = min(gains)
        cell = rows[gains.index(worst)]["cell"]
        where = f"{factor(worst)} at {cell}"
    return Target(name, mean(gains), 2, where=where)


def padding_gain(row: Row, *, against_torch: bool) -> float:
    """How many times as fast as the fastest that pads, of torch.nn or of ours, our fastest that does not pad is."""
    padded_times = []
    our_times = []
    for name, ms in medians(row).items():
        is_torch = name.startswith("torch")
        if name.endswith("padded"):
            if is_torch == against_torch:
                padded_times.append(ms)
        elif not is_torch:
            our_times.append(ms)
    return min(padded_times) / min(our_times)


def load_target(rows: Sequence[Row]) -> Target:
    """Seconds to open an unrolled graph of 1000 steps."""
    loads = [
        row["contestants"][UNROLLED]["load"]
        for row in rows
        if row["T"] == 1000 and row["layers"] == 2 and UNROLLED in row["contestants"]
    ]
    return Target(
        "RNN, 2 layers, T=1000, seconds to load", max(loads, default=None), 1, " s", at_most=True
    )


def scan_target(rows: Sequence[Row], *, batch: int, goal: float) -> Target:
    """How many times as long as the unrolled form the scan takes."""
    ratios = []
    for row in rows:
        times = medians(row)
        if row["B"] == batch and SCAN in times and UNROLLED in times:
            ratios.append(times[SCAN] / times[UNROLLED])
    return Target(f"scan against unrolled, B={batch}", mean(ratios), goal, at_most=True)


def points_behind(result: Row, margin: float = 1.05) -> list[tuple[float, str, Row]]:
    """Every point where a peer is more than `margin` ahead of our best: by how much, which, where. The worst first."""
    behind = []
    for peer, names in peers(result).items():
        for value, row in leads(result["rows"], names):
            if value < 1 / margin:
                behind.append((1 / value, peer, row))
    return sorted(behind, key=lambda item: -item[0])


def point_name(row: Row) -> str:
    name = f"{row['cell']}, T={row['T']}, B={row['B']}, H={row['H']}"
    if (row["layers"], row["directions"]) != (2, 2):  # the grid's own depth is not worth repeating
        name += f", L={row['layers']}, D={row['directions']}"
    return name
