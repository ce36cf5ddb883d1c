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
LARGEST = 2e11
"""Multiplications of one call, about four seconds on two cores, above which a point is left out."""


@dataclass(frozen=True)
class Net:
    cell: str
    hidden: int
    layers: int = 2
    directions: int = 2

    @property
    def key(self) -> str:
        """A name for files."""
        return f"{self.cell}-h{self.hidden}-l{self.layers}-d{self.directions}"

    def layer(self, device: str = "cpu") -> nn.RNNBase:
        """The layer of torch.nn, the same weights each time."""
        torch.manual_seed(0)
        sizes, two = (self.hidden, self.hidden, self.layers), self.directions == 2
        layer: nn.RNNBase = CELLS[self.cell](*sizes, bidirectional=two).eval()
        return layer.to(device)


@dataclass(frozen=True)
class Point:
    net: Net
    steps: int
    batch: int

    @property
    def multiplications(self) -> int:
        """Of one call, about: those of a first layer are taken for those of the others."""
        net = self.net
        inputs = net.hidden * (net.directions if net.layers > 1 else 1)
        weights = GATES[net.cell] * net.hidden * (inputs + net.hidden)
        return weights * net.layers * net.directions * self.steps * self.batch

    @property
    def where(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        net = self.net
        return {
            "cell": net.cell, "H": net.hidden, "layers": net.layers, "directions": net.directions,
            "T": self.steps, "B": self.batch,
        }  # fmt: skip

    def input(self, device: str = "cpu") -> Tensor:
        """(T, B, H), the same each time."""
        return torch.randn(self.steps, self.batch, self.net.hidden, generator=torch.Generator().manual_seed(1)).to(
            device
        )


SHORT, LONG = 50, 200
SINGLES = [
    Point(Net("tanh", 256, layers=1, directions=1), SHORT, 1),
    Point(Net("LSTM", 64, layers=4), SHORT, 1),
    Point(Net("tanh", 128), 1000, 1),
    Point(Net("relu", 32), 10, 128),
    Point(Net("GRU", 1024, layers=1, directions=1), 10, 8),
]
"""What a standard run has besides its grid: other depths, one direction, long and short, narrow and wide."""


def quick() -> list[Point]:
    """Two layers in two directions: the cells that differ, at one T."""
    sizes = itertools.product(("tanh", "GRU", "LSTM"), (64, 256), (1, 32))
    return [Point(Net(cell, hidden), SHORT, batch) for cell, hidden, batch in sizes]


def standard() -> list[Point]:
    """Two layers in two directions, small and large of H, T and B, but not all three large; and `SINGLES`."""
    sizes = itertools.product(CELLS, (64, 256), (SHORT, LONG), (1, 32))
    grid = [Point(Net(cell, hidden), steps, batch) for cell, hidden, steps, batch in sizes]
    return [point for point in grid if (point.net.hidden, point.steps, point.batch) != (256, LONG, 32)] + SINGLES


def full() -> list[Point]:
    """Every H, T and B with two layers in two directions, every depth and direction at fewer of these; by net."""
    sizes = itertools.product(CELLS, (32, 64, 128, 256, 512, 1024), (10, 50, 200, 1000), (1, 8, 32, 128))
    grid = [Point(Net(cell, hidden), steps, batch) for cell, hidden, steps, batch in sizes]
    depths = itertools.product(CELLS, (64, 256), (1, 2, 4), (1, 2), (SHORT, LONG), (1, 32))
    grid += [Point(Net(cell, hidden, *shape), steps, batch) for cell, hidden, *shape, steps, batch in depths]
    found = dict.fromkeys([*standard(), *grid])
    nets = list(dict.fromkeys(point.net for point in found))
    return sorted((point for point in found if point.multiplications <= LARGEST), key=lambda each: nets.index(each.net))


GRIDS = {"quick": quick, "standard": standard, "full": full}
"""A few minutes, a quarter of an hour, hours."""
