"""`KnownNumbers`: what stands in tensors of no axes that a model computes with sizes, while it is traced."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

Number = Any
"""An int, a float or a bool, or PyTorch's symbol for one."""


class KnownNumbers:
    """Tensors of no axes with their numbers: buffers, and what is computed from these and from sizes.

    A kernel size that a module keeps in a buffer, for example, and a padding that is computed from it and from the
    length of the input. To torch.export the values of all tensors are unknown.
    """

    def __init__(self) -> None:
        self._numbers: MutableMapping[Tensor, Number] = WeakTensorKeyDictionary()

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self._numbers

    def __getitem__(self, tensor: Tensor) -> Number:
        return self._numbers[tensor]

    def __setitem__(self, tensor: Tensor, number: Number) -> None:
        self._numbers[tensor] = number

    @contextmanager
    def of_buffers(self, model: nn.Module) -> Iterator[None]:
        """While it is entered, the numbers in the buffers of `model` are known."""
        hooks = []
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it takes no hooks
            numbers = {
                name: buffer.item()
                for name, buffer in module.named_buffers(recurse=False)
                if buffer.dim() == 0 and buffer.dtype in _DTYPES
            }
            if numbers:

                def note(module: nn.Module, _: Any, numbers: Any = numbers) -> None:
                    # Those of the trace, which have no values.
                    for name, number in numbers.items():
                        self[getattr(module, name)] = number

                hooks.append(module.register_forward_pre_hook(note))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Compute what `func`, called with these arguments, has put into `result`, as far as that is known."""
        if _changes(func) and args and args[0] in self:
            del self._numbers[args[0]]
        compute = _COMPUTED.get(func)
        if compute is None or kwargs or not any(arg in self for arg in args):
            return
        if all(arg in self or not isinstance(arg, Tensor) for arg in args):
            self[result] = compute(*self.in_place_of(args))

    def in_place_of(self, values: Sequence[Any]) -> list[Any]:
        """The values with the number in the place of each tensor that is known."""
        return [self._number(value) for value in values]

    def _number(self, value: Any) -> Any:
        known = isinstance(value, Tensor) and value in self._numbers
        return self._numbers[value] if known else value


_DTYPES = (torch.int64, torch.int32, torch.float32, torch.float64)


def _changes(func: Any) -> bool:
    """Whether a function of torch changes its first argument."""
    name = getattr(func, "__name__", "")
    is_in_place = name.endswith("_") and not name.endswith("__")
    return is_in_place or (name.startswith("__i") and name not in ("__int__", "__index__"))


def _reversed(compute: Callable[[Number, Number], Number]) -> Callable[[Number, Number], Number]:
    return lambda first, second: compute(second, first)


def _to(number: Number, dtype: Any) -> Number:
    return torch.sym_int(number) if dtype in (torch.int64, torch.int32) else number


_COMPUTED: dict[Any, Callable[..., Number]] = {
    Tensor.__rsub__: _reversed(operator.sub),
    Tensor.__rdiv__: _reversed(operator.truediv),
    Tensor.__rtruediv__: _reversed(operator.truediv),
    Tensor.__neg__: operator.neg,
    torch.ceil: math.ceil,
    Tensor.ceil: math.ceil,
    torch.floor: math.floor,
    Tensor.floor: math.floor,
    Tensor.long: torch.sym_int,
    Tensor.int: torch.sym_int,
    Tensor.to: _to,
    torch.maximum: torch.sym_max,
    torch.minimum: torch.sym_min,
}
for _name, _compute in {
    "add": operator.add, "radd": operator.add, "sub": operator.sub, "mul": operator.mul, "rmul": operator.mul,
    "div": operator.truediv, "truediv": operator.truediv, "floordiv": operator.floordiv,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}.items():  # fmt: skip
    for _owner, _known_as in ((Tensor, f"__{_name}__"), (Tensor, _name), (torch, _name)):
        if hasattr(_owner, _known_as):
            _COMPUTED[getattr(_owner, _known_as)] = _compute
