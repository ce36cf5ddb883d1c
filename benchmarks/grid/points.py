"""Where contestants are measured: layers of I = H units, T steps of B rows."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CELLS: dict[str, Any] = {
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
    "GRU": nn.GRU,
    "LSTM": nn.LSTM,
}
GATES = {"tanh": 1, "relu": 1, "GRU": 3, "LSTM": 4}
MAX_MULTIPLICATIONS = 2e11
"""Points with more multiplications in one call, about four seconds on two cores, are left out."""


@dataclass(frozen=True)
class Net:
    cell: str
    hidden: int
    layers: int = 2
    directions: int = 2

    @property
    def key(self) -> str:
        """The beginning of its files' names."""
        return f"{self.cell}-h{self.hidden}-l{self.layers}-d{self.directions}"

    def layer(self, device: str = "cpu") -> nn.RNNBase:
        """The layer of torch.nn, with the same weights each time."""
        torch.manual_seed(0)
        make_layer = CELLS[self.cell]
        layer: nn.RNNBase = make_layer(
            self.hidden, self.hidden, self.layers, bidirectional=self.directions == 2
        )
        return layer.eval().to(device)


@dataclass(frozen=True)
class Point:
    net: Net
    steps: int
    batch: int

    @property
    def multiplications(self) -> int:
        """Approximate number of multiplications in one call."""
        net = self.net
        # The first layer has fewer inputs than the others; they are all counted like the last one.
        inputs = net.hidden * net.directions if net.layers > 1 else net.hidden
        weights = GATES[net.cell] * net.hidden * (inputs + net.hidden)
        return weights * net.layers * net.directions * self.steps * self.batch

    @property
    def sizes(self) -> dict[str, Any]:
        """How the JSON names the point."""
        net = self.net
        return {
            "cell": net.cell, "H": net.hidden, "layers": net.layers, "directions": net.directions,
            "T": self.steps, "B": self.batch,
        }  # fmt: skip

    def input(self, device: str = "cpu") -> Tensor:
        """(T, B, H), the same each time."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.steps, self.batch, self.net.hidden, generator=generator).to(device)


SHORT, LONG = 50, 200
SINGLES = [
    Point(Net("tanh", 256, layers=1, directions=1), SHORT, 1),
    Point(Net("LSTM", 64, layers=4), SHORT, 1),
    Point(Net("tanh", 128), 1000, 1),
    Point(Net("relu", 32), 10, 128),
    Point(Net("GRU", 1024, layers=1, directions=1), 10, 8),
]
"""Points of a standard run besides its grid: other depths, one direction, long and short, narrow and wide."""


def quick() -> list[Point]:
    """Two layers in two directions: tanh, GRU and LSTM, at one T."""
    sizes = itertools.product(("tanh", "GRU", "LSTM"), (64, 256), (1, 32))
    return [Point(Net(cell, hidden), SHORT, batch) for cell, hidden, batch in sizes]


def standard() -> list[Point]:
    """Two layers in two directions, small and large H, T and B, but not all three large; and `SINGLES`."""
    sizes = itertools.product(CELLS, (64, 256), (SHORT, LONG), (1, 32))
    return [
        *(
            Point(Net(cell, hidden), steps, batch)
            for cell, hidden, steps, batch in sizes
            if (hidden, steps, batch) != (256, LONG, 32)
        ),
        *SINGLES,
    ]


def full() -> list[Point]:
    """Every H, T and B with two layers in two directions; every depth and direction with fewer of these.

    Points of one net follow each other.
    """
    points = standard()
    sizes = itertools.product(
        CELLS, (32, 64, 128, 256, 512, 1024), (10, 50, 200, 1000), (1, 8, 32, 128)
    )
    for cell, hidden, steps, batch in sizes:
        points.append(Point(Net(cell, hidden), steps, batch))
    depths = itertools.product(CELLS, (64, 256), (1, 2, 4), (1, 2), (SHORT, LONG), (1, 32))
    for cell, hidden, layers, directions, steps, batch in depths:
        points.append(Point(Net(cell, hidden, layers, directions), steps, batch))

    points = list(dict.fromkeys(points))
    nets = list(dict.fromkeys(point.net for point in points))
    points.sort(key=lambda point: nets.index(point.net))
    return [point for point in points if point.multiplications <= MAX_MULTIPLICATIONS]


GRIDS = {"quick": quick, "standard": standard, "full": full}
"""A few minutes, a quarter of an hour, hours."""
