"""The integers that a file in eight bits must have: those of the model's weights, whatever their order in the file."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from deploy_rnn.nn.recurrent import Recurrent

from .layers import EMBEDDING, LINEAR, embeddings, linear_layers
from .rounding import ROW_LEVELS, rounded_columns, rounded_table
from .scope import Int8Scope
from .simulation import STEPS

ScaledLevels = tuple[np.ndarray, np.ndarray]
"""A weight in a file: levels (K, M) in int8, what one is worth in each column (M,) in float32."""


@dataclass(frozen=True)
class RoundedWeights:
    """The rounded weights of a model.

    Attributes:
        columns: each column of each product's weight, its levels and what one of them is worth.
        tables: the levels of each embedding.
    """

    columns: frozenset[bytes]
    tables: frozenset[bytes]

    @classmethod
    def of(cls, model: nn.Module, scope: Int8Scope) -> "RoundedWeights":
        """
        Args:
            model: converted.
            scope: what of it is of eight bits.
        """
        weights: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, Recurrent):
                weights += _weights_of(module, scope)
        if LINEAR in scope.layers:
            weights += [layer.weight for layer in linear_layers(model)]
        columns: set[bytes] = set()
        for weight in weights:
            columns.update(columns_of(*rounded_columns(weight.detach().float().numpy())))
        tables = []
        if EMBEDDING in scope.layers:
            for table in embeddings(model):
                levels, _ = rounded_table(table.weight.detach().numpy())
                tables.append(levels.tobytes())
        return cls(frozenset(columns), frozenset(tables))


def _weights_of(layer: Recurrent, scope: Int8Scope) -> Iterable[Tensor]:
    """The weights of the products of a layer; of a cell of a user's own, those that its step does not have."""
    prefixes = ["weight_ih"] if scope.rounds_inputs else []
    if layer.cell.step in STEPS:
        prefixes += ["weight_hh", "weight_hr"]
    for name in layer.weight_shapes():
        if name.startswith(tuple(prefixes)):
            yield getattr(layer, name)


@dataclass(frozen=True)
class CellKeys:
    """The `weight_key` of the weights of the cells of torch.nn in a model.

    Attributes:
        of_states: those of weight_hh.
        of_inputs: those of weight_ih, unless a state is multiplied by the same.
    """

    of_states: frozenset[bytes] = frozenset()
    of_inputs: frozenset[bytes] = frozenset()


NO_CELLS = CellKeys()


def cell_keys(model: nn.Module) -> CellKeys:
    """Those of the cells whose weights are in float32."""
    of_states = set()
    of_inputs = set()
    for module in model.modules():
        if isinstance(module, nn.RNNCellBase) and module.weight_hh.dtype is torch.float32:
            of_states.add(weight_key(*rounded_columns(module.weight_hh.detach().numpy())))
            of_inputs.add(weight_key(*rounded_columns(module.weight_ih.detach().numpy())))
    return CellKeys(frozenset(of_states), frozenset(of_inputs - of_states))


def weight_key(levels: np.ndarray, steps: np.ndarray) -> bytes:
    """What tells a rounded weight from others: levels (K, M), the steps of each column (M,)."""
    return scaled_key(levels, _scales(steps))


def scaled_key(levels: np.ndarray, scales: np.ndarray) -> bytes:
    """The same of levels (K, M), what one is worth in each column (M,)."""
    shape = f"{levels.shape}".encode()
    return hashlib.sha256(shape + levels.tobytes() + scales.tobytes()).digest()


def columns_of(levels: np.ndarray, steps: np.ndarray) -> Iterable[bytes]:
    """levels (K, M) in int8, the steps of each column (M,) in float32 -> each column and its step."""
    return scaled_columns(levels, _scales(steps))


def _scales(steps: np.ndarray) -> np.ndarray:
    return (steps / np.float32(ROW_LEVELS)).astype(np.float32)


def scaled_columns(levels: np.ndarray, scales: np.ndarray) -> Iterable[bytes]:
    """levels (K, M) in int8, what one is worth in each column (M,) in float32 -> each column and that."""
    for column, scale in zip(np.ascontiguousarray(levels.T), scales, strict=True):
        yield column.tobytes() + scale.tobytes()
