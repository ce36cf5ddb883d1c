"""Where the error of int8 comes from, and what would lessen it: `python -m benchmarks.studies.int8_rounding`, a minute.

One layer with I = H and torch's own random weights, normal inputs, in numpy's float64 but for what is rounded. A way is
how four things are rounded: the weights and the rows of the input's product, and those of the state's. An error is the
largest difference of an output from the layer without rounding.

- "7 bits", "8 bits": weights with a scale for each column; rows of 8 bits with a limit for each row.
- "two parts": rows as the sum of two numbers of 8 bits, which takes two products.
- "compensated": weights of 7 bits whose rounding takes into account that of those before it in the column, weighed by
  the states of the layer on other inputs, as in GPTQ.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import nn

from benchmarks.reporting.machine import publish
from benchmarks.reporting.precision_tables import rounding_ways_table

FAMILIES: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
STEPS = 50
BATCH = 32
SEEDS = 3
"""Networks and inputs of each family; the largest error counts."""

DAMPING = 0.01
"""What is added to the diagonal of the states' second moments, as a share of its mean, so that it has an inverse."""

Array = Any  # a numpy array of float64


@dataclass(frozen=True)
class Way:
    """How things are rounded: "exact", or see above."""

    input_weights: str = "7 bits"
    input_rows: str = "8 bits"
    state_weights: str = "7 bits"
    state_rows: str = "8 bits"


WAYS = {
    "as it is": Way(),
    "weights of the state alone": Way("exact", "exact", "7 bits", "exact"),
    "rows of the state alone": Way("exact", "exact", "exact", "8 bits"),
    "the input's product alone": Way("7 bits", "8 bits", "exact", "exact"),
    "the input's product in float32": Way("exact", "exact"),
    "rows of the input in two parts": Way(input_rows="two parts"),
    "rows of the state in two parts": Way(state_rows="two parts"),
    "all rows in two parts": Way(input_rows="two parts", state_rows="two parts"),
    "weights of 8 bits": Way("8 bits", "8 bits", "8 bits", "8 bits"),
    "compensated weights of the state": Way(state_weights="compensated"),
}


def rounded_weight(weight: Array, kind: str, moments: Array | None) -> Array:
    """weight (M, K); moments (K, K): of the states, for "compensated"."""
    if kind == "exact":
        return weight
    most = 127 if kind == "8 bits" else 63
    scales = np.abs(weight).max(axis=1, keepdims=True) / most
    if kind != "compensated":
        return np.round(weight / scales) * scales
    assert moments is not None
    damped = moments + DAMPING * np.trace(moments) / len(moments) * np.eye(len(moments))
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    remaining = weight.copy()
    rounded = np.empty_like(weight)
    for column in range(weight.shape[1]):
        levels = np.round(remaining[:, column : column + 1] / scales).clip(-most, most)
        rounded[:, column] = (levels * scales)[:, 0]
        error = (remaining[:, column] - rounded[:, column]) / factor[column, column]
        remaining[:, column:] -= np.outer(error, factor[column, column:])
    return rounded


def rounded_rows(rows: Array, kind: str) -> Array:
    """rows (..., K)"""
    if kind == "exact":
        return rows
    limits = np.abs(rows).max(axis=-1, keepdims=True).clip(1e-30)
    coarse = np.round(rows / limits * 127) / 127 * limits
    if kind == "8 bits":
        return coarse
    rest = rows - coarse
    rest_limits = limits / 254
    return coarse + np.round(rest / rest_limits * 127) / 127 * rest_limits


def states_of(layer: nn.RNNBase, x: Array, way: Way, moments: Array | None = None) -> Array:
    """x (T, B, I) -> h at each step (T, B, H)"""
    weights = {name: weight.detach().double().numpy() for name, weight in layer.named_parameters()}
    w_ih = rounded_weight(weights["weight_ih_l0"], way.input_weights, None)
    w_hh = rounded_weight(weights["weight_hh_l0"], way.state_weights, moments)
    projected = rounded_rows(x, way.input_rows) @ w_ih.T + weights["bias_ih_l0"]
    step = STEP[type(layer)]
    h = c = np.zeros((x.shape[1], layer.hidden_size))
    states = []
    for row in projected:
        hidden = rounded_rows(h, way.state_rows) @ w_hh.T + weights["bias_hh_l0"]
        h, c = step(row, hidden, h, c)
        states.append(h)
    return np.stack(states)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _rnn(x: Array, hidden: Array, h: Array, c: Array) -> tuple[Array, Array]:
    return np.tanh(x + hidden), c


def _gru(x: Array, hidden: Array, h: Array, c: Array) -> tuple[Array, Array]:
    x_r, x_z, x_n = np.split(x, 3, -1)
    h_r, h_z, h_n = np.split(hidden, 3, -1)
    z = _sigmoid(x_z + h_z)
    n = np.tanh(x_n + _sigmoid(x_r + h_r) * h_n)
    return (1 - z) * n + z * h, c


def _lstm(x: Array, hidden: Array, h: Array, c: Array) -> tuple[Array, Array]:
    i, f, g, o = np.split(x + hidden, 4, -1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


STEP: Mapping[type[nn.RNNBase], Callable[..., tuple[Array, Array]]] = {
    nn.RNN: _rnn,
    nn.GRU: _gru,
    nn.LSTM: _lstm,
}


def measure(family: str, hidden: int) -> dict[str, float]:
    """The error of each way."""
    errors = dict.fromkeys(WAYS, 0.0)
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        random = np.random.default_rng(seed)
        layer = FAMILIES[family](hidden, hidden)
        exact_way = Way("exact", "exact", "exact", "exact")
        others = states_of(layer, random.standard_normal((STEPS, BATCH, hidden)), exact_way)
        rows = others.reshape(-1, hidden)
        moments = rows.T @ rows / len(rows)
        x = random.standard_normal((STEPS, BATCH, hidden))
        exact = states_of(layer, x, exact_way)
        for name, way in WAYS.items():
            error = float(np.abs(states_of(layer, x, way, moments) - exact).max())
            errors[name] = max(errors[name], error)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256], help="default 256")
    options = parser.parse_args()
    layers = [(family, hidden) for hidden in options.hidden for family in FAMILIES]
    rows = []
    for family, hidden in track(layers, "rounding"):
        rows.append({"family": family, "H": hidden, "errors": measure(family, hidden)})
    result = publish({"benchmark": "int8_rounding", "rows": rows}, options.output)
    print(rounding_ways_table(result))


if __name__ == "__main__":
    main()
