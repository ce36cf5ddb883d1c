"""`WeightProducts`: while a model runs, it multiplies by certain weights as a file in eight bits does.

The step of a cell or of a loop is a user's code, and runs as it is. Only PyTorch's products are looked at: rows times a
weight that the file has in eight bits is rounded as `rounding` defines it. A weight is known by its numbers, however
the model gets it: a parameter, its transpose, or some of its columns.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .rounding import rounded_columns
from .simulation import Columns, Simulation, largest_of_rows
from .weights import columns_of, weight_key

PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.bmm.default})
"""rows, weight -> rows @ weight"""

ADDED_PRODUCTS = frozenset({torch.ops.aten.addmm.default, torch.ops.aten.baddbmm.default})
"""bias, rows, weight, beta=1, alpha=1 -> beta * bias + alpha * rows @ weight"""


class WeightProducts(TorchDispatchMode):
    """While it is entered, products with some weights round.

    Args:
        model: what is run.
        simulation: rounds; it has made the weights of its own steps.
        keys: `weight_key` of each weight that is of eight bits.

    Attributes:
        columns: those of the weights that products have had so far, as `columns_of` gives them.
    """

    def __init__(self, model: nn.Module, simulation: Simulation, keys: Collection[bytes]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.columns: set[bytes] = set()
        self._simulation = simulation
        self._keys = keys
        self._storages = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._known: dict[Any, Columns | None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCTS:
            product = self._product(*args)
            if product is not None:
                return product
        elif func in ADDED_PRODUCTS:
            bias, rows, weight = args
            product = self._product(rows, weight)
            if product is not None:
                return kwargs.get("beta", 1) * bias + kwargs.get("alpha", 1) * product
        return func(*args, **kwargs)

    def _product(self, rows: Tensor, weight: Tensor) -> Tensor | None:
        """rows (..., K) @ weight (K, M) or (1, K, M), rounded; None for another weight."""
        columns = self._columns_of(weight)
        if columns is None:
            return None
        rounding = self._simulation.rounding
        numbers = rows.to(rounding.dtype)
        return rounding.product(numbers, columns, largest_of_rows(numbers)).to(rows.dtype)

    def _columns_of(self, weight: Tensor) -> Columns | None:
        is_matrix = weight.dim() == 2 or weight.size(0) == 1
        if not is_matrix or not weight.is_floating_point():
            return None
        storage = _storage(weight)
        if storage not in self._storages and storage not in self._simulation.storages:
            return self._rounded(weight)
        # Such a storage is not freed meanwhile, so that this tells one part of it from another.
        version = 0 if weight.is_inference() else weight._version
        part = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, version)
        if part not in self._known:
            self._known[part] = self._rounded(weight)
        return self._known[part]

    def _rounded(self, weight: Tensor) -> Columns | None:
        matrix = weight.reshape(weight.shape[-2:])
        levels, steps = rounded_columns(matrix.t().detach().float().numpy())
        if not np.isfinite(steps).all() or weight_key(levels, steps) not in self._keys:
            return None
        self.columns.update(columns_of(levels, steps))
        return Columns.from_levels(levels, steps)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
