"""What a grid says: our best against each peer's best, the share of the floor, and the targets."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

Row = dict[str, Any]
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
CUDA_PEERS: dict[str, tuple[str, ...]] = {
    "cuDNN fp32": ("torch.nn",),
    "cuDNN tf32": ("torch.nn, tf32",),
    "cuDNN fp16": ("torch.nn, fp16",),
    "cuDNN bf16": ("torch.nn, bf16",),
    "native operator": (NATIVE, f"{NATIVE}, CUDA graph"),
}
OPERATORS = frozenset({NATIVE, f"{NATIVE}, CUDA graph"})
"""A form of ours, which `form="auto"` picks where it is fastest, and a peer: what a user of that form alone has."""
RNN, GATED = ("tanh", "relu"), ("GRU", "LSTM")


def peers(result: Row) -> dict[str, tuple[str, ...]]:
    return CUDA_PEERS if result["device"] == "cuda" else PEERS


def ours(row: Row) -> dict[str, float]:
    """Milliseconds of each of ours that ran at a point."""
    others = {name for each in (PEERS | CUDA_PEERS).values() for name in each} - OPERATORS
    return {name: each["median"] for name, each in row["contestants"].items() if name not in others}


def best(row: Row) -> float:
    return min(ours(row).values())


def floor(row: Row) -> float:
    """Milliseconds of the matrix products alone."""
    found: float = min(row["products"].values())
    return found


def share(row: Row) -> float:
    """Of the floor that our best reaches: 1 is the time of the matrix products alone."""
    return floor(row) / best(row)


def lead(row: Row, names: Sequence[str], of: Callable[[Row], float] = best) -> float | None:
    """How many times as fast as the best of `names` our best is, or what `of` gives; None where none of them ran."""
    medians = [row["contestants"][name]["median"] for name in names if name in row["contestants"]]
    return min(medians) / of(row) if medians else None


def leads(rows: Iterable[Row], names: Sequence[str], of: Callable[[Row], float] = best) -> list[tuple[float, Row]]:
    found = [(lead(row, names, of), row) for row in rows]
    return [(value, row) for value, row in found if value is not None]


def mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return geometric_mean(found) if found else None


@dataclass(frozen=True)
class Target:
    """A figure and what it is to be: at least `goal`, or at most that if `at_most`; None: it was not measured.

    `bound` is what the matrix products alone would have instead of all that a layer does.
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
    """Of the quick grid on the CPU."""
    rows = result["rows"]
    plain = [row for row in rows if row["cell"] in RNN]
    large = [row for row in plain if row["B"] >= 32]
    found = [
        _lead(f"RNN, against {peer}", plain, PEERS[peer], goal)
        for peer, goal in (("torch.nn", 4), ("native operator", 2.5), ("torch.onnx.export", 1.5), ("OpenVINO", 1.25))
    ]
    reached = mean(map(share, large))
    found.append(
        Target("RNN, B >= 32, share of the floor", reached and 100 * reached, 85, "%", where=_worst(large, share))
    )
    for cell in GATED:
        of_cell = [row for row in rows if row["cell"] == cell]
        found.append(_lead(f"{cell}, against torch.nn", of_cell, PEERS["torch.nn"], 1.5))
        found.append(_lead(f"{cell}, against the native operator", of_cell, PEERS["native operator"], 1))
    return [*found, *_mixed(result["lengths"]), _load(rows), *_scan(rows)]


def _lead(name: str, rows: Sequence[Row], names: Sequence[str], goal: float) -> Target:
    found = leads(rows, names)
    worst = min(found, key=lambda each: each[0], default=None)
    where = f"{worst[0]:.2f}x at {place(worst[1])}" if worst else ""
    bound = mean(value for value, _ in leads(rows, names, floor))
    return Target(name, mean(value for value, _ in found), goal, where=where, bound=bound)


def _worst(rows: Sequence[Row], figure: Callable[[Row], float]) -> str:
    row = min(rows, key=figure, default=None)
    return f"{100 * figure(row):.0f} % at {place(row)}" if row else ""


def _mixed(rows: Sequence[Row]) -> list[Target]:
    """Of mixed lengths: our best way against torch.nn and against our own best graph, both of which pad."""
    found = []
    for whose in ("torch.nn", "our best graph"):
        gains = [(_gain(row, torch=whose == "torch.nn"), row) for row in rows]
        worst = min(gains, key=lambda each: each[0], default=None)
        where = f"{worst[0]:.2f}x at {worst[1]['cell']}" if worst else ""
        name = f"mixed lengths, against {whose}, padded"
        found.append(Target(name, mean(value for value, _ in gains), 2, where=where))
    return found


def _gain(row: Row, *, torch: bool) -> float:
    times = {name: each["median"] for name, each in row["contestants"].items()}
    of = {name: name.startswith("torch") for name in times}
    pad: float = min(times[name] for name in times if name.endswith("padded") and of[name] == torch)
    ours: float = min(times[name] for name in times if not name.endswith("padded") and not of[name])
    return pad / ours


def _load(rows: Sequence[Row]) -> Target:
    name = "onnxruntime, unrolled"
    loads = [
        row["contestants"][name]["load"]
        for row in rows
        if row["cell"] in RNN and row["T"] == 1000 and row["layers"] == 2 and name in row["contestants"]
    ]
    return Target("RNN, 2 layers, T=1000, seconds to load", max(loads, default=None), 1, " s", at_most=True)


def _scan(rows: Sequence[Row]) -> list[Target]:
    names = ("onnxruntime, scan", "onnxruntime, unrolled")

    def slower(batch: int) -> list[float]:
        both = [row["contestants"] for row in rows if row["B"] == batch and all(n in row["contestants"] for n in names)]
        return [each[names[0]]["median"] / each[names[1]]["median"] for each in both]

    return [
        Target(f"scan against unrolled, B={batch}", mean(slower(batch)), goal, at_most=True)
        for batch, goal in ((32, 1.2), (1, 1.6))
    ]


def behind(result: Row, margin: float = 1.05) -> list[tuple[float, str, Row]]:
    """Every point where a peer is more than `margin` ahead of our best: by how much, who, where; the worst first."""
    found = [
        (1 / value, peer, row)
        for peer, names in peers(result).items()
        for value, row in leads(result["rows"], names)
        if value < 1 / margin
    ]
    return sorted(found, key=lambda each: -each[0])


def place(row: Row) -> str:
    depth = "" if (row["layers"], row["directions"]) == (2, 2) else f", L={row['layers']}, D={row['directions']}"
    return f"{row['cell']}, T={row['T']}, B={row['B']}, H={row['H']}{depth}"
