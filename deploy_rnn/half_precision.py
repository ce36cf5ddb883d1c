"""`half_precision`: whether a part of a model computes in float16 or bfloat16, found by running it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

COARSEST_FIRST = {torch.bfloat16: "bfloat16", torch.float16: "float16"}

# Operators that give the numbers that they take, and round none.
MOVES = {
    "_to_copy",
    "cat",
    "clone",
    "copy_",
    "embedding",
    "gather",
    "index",
    "index_select",
    "stack",
}


def half_precision(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """Return the coarsest half precision in which a run of a model computes.

    An operator counts if it rounds to float16 or bfloat16: by itself, because of its weights, or under autocast. A
    table of such numbers that is only looked up and widened is exact, and does not count.

    Args:
        model: what is run.
        run: calls it.

    Returns:
        "bfloat16", "float16" or None. If the run fails while it is watched, the dtypes of the weights decide.
    """
    rounding = _Rounding()
    with suppress(Exception), rounding:  # the model's own code can raise anything
        run()
        return _coarsest(rounding.dtypes)
    return _coarsest({weight.dtype for weight in model.parameters()})


def _coarsest(dtypes: set[torch.dtype]) -> str | None:
    return next((name for dtype, name in COARSEST_FIRST.items() if dtype in dtypes), None)


class _Rounding(TorchDispatchMode):
    """Notes the half precisions to which operators round. It sees what autocast makes of a model."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Before the call: an operator in place changes what it takes.
        taken = {
            leaf.dtype for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            is_half = isinstance(leaf, Tensor) and leaf.dtype in COARSEST_FIRST
            if is_half and not _only_moves(func, leaf.dtype, taken):
                self.dtypes.add(leaf.dtype)
        return result


def _only_moves(func: Any, dtype: torch.dtype, taken: set[torch.dtype]) -> bool:
    """Whether an operator gives numbers of `dtype` as it takes them."""
    arguments = func._schema.arguments
    if any(one.alias_info is not None and not one.alias_info.is_write for one in arguments):
        return True  # a view
    if func._overloadpacket.__name__ not in MOVES:
        return False
    return all(other is dtype or not other.is_floating_point for other in taken)
