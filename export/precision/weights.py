"""The integers that a file in eight bits must have: those of the model's weights, whatever their order in the file."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from deploy_rnn.nn.recurrent import Recurrent

from .layers import EMBEDDING, LINEAR, embeddings, linear_layers
from .rounding import ROW_LEVELS, rounded_columns, rounded_table


@dataclass(frozen=True)
class RoundedWeights:
    """The rounded weights of a model.

    Attributes:
        columns: each column of each product's weight, its levels and what one of them is worth; None if a weight has a
            parametrisation: a graph may compute it a little otherwise, and a number near a middle is rounded otherwise.
        tables: the levels of each embedding.
    """

    columns: frozenset[bytes] | None
    tables: frozenset[bytes]

    @classmethod
    def of(cls, model: nn.Module, kinds: Collection[str]) -> "RoundedWeights":
        """
        Args:
            model: converted.
            kinds: which layers are of eight bits besides the recurrent ones.
        """
        weights: list[Tensor] = []
        is_computed = False
        for module in model.modules():
            if isinstance(module, Recurrent):
                names = [name for name in module.weight_shapes() if name.startswith("weight")]
                weights += [getattr(module, name) for name in names]
                is_computed = is_computed or is_parametrized(module)
        if LINEAR in kinds:
            weights += [layer.weight for layer in linear_layers(model)]
        columns: set[bytes] = set()
        for weight in weights:
            columns.update(columns_of(*rounded_columns(weight.detach().float().numpy())))
        tables = []
        if EMBEDDING in kinds:
            for table in embeddings(model):
                levels, _ = rounded_table(table.weight.detach().numpy())
                tables.append(levels.tobytes())
        return cls(None if is_computed else frozenset(columns), frozenset(tables))


def columns_of(levels: np.ndarray, steps: np.ndarray) -> Iterable[bytes]:
    """levels (K, M) in int8, the steps of each column (M,) in float32 -> each column and its step."""
    scales = (steps / np.float32(ROW_LEVELS)).astype(np.float32)
    return scaled_columns(levels, scales)


def scaled_columns(levels: np.ndarray, scales: np.ndarray) -> Iterable[bytes]:
    """levels (K, M) in int8, what one is worth in each column (M,) in float32 -> each column and that."""
    for column, scale in zip(np.ascontiguousarray(levels.T), scales, strict=True):
        yield column.tobytes() + scale.tobytes()
