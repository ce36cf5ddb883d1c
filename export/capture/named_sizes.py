"""`NamedSizes`: which sizes of a traced model are one dynamic axis, such as the T of an input and of its mask."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.checking.example_call import Axes, ExampleCall

from ..torch_onnx import AUTO


class NamedSizes:
    """The sizes of the dynamic axes while a model is being traced.

    torch.export has a symbol for each axis of each input, also where two have one name: it would take equal names for
    an order to make the sizes equal.

    Args:
        call: the example.
        axes: what is dynamic in each tensor of the call. Axes that are left to `AUTO` count as one if they have one
            size in the example: which of them go together is found later.
    """

    def __init__(self, call: ExampleCall, axes: Sequence[Axes]) -> None:
        self._call = call
        self._axes = axes
        self._names: dict[str, set[Hashable]] = {}

    @contextmanager
    def noted(self, model: nn.Module) -> Iterator[None]:
        """Note the sizes of the inputs when the model is called."""

        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            leaves = pytree.tree_leaves((args, kwargs))
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            for tensor, example, axes in zip(tensors, self._call.tensors, self._axes, strict=True):
                for axis, dim in axes.items():
                    name = example.size(axis) if dim is AUTO else getattr(dim, "__name__", dim)
                    self._names.setdefault(str(tensor.size(axis)), set()).add(name)

        hook = model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def same(self, first: Any, second: Any) -> bool:
        """Whether two sizes, numbers or symbols of torch.export, are those of one axis."""
        # As texts: comparing unknown sizes would fix them.
        first, second = str(first), str(second)
        if first == second:
            return True
        return not self._names.get(first, set()).isdisjoint(self._names.get(second, set()))
