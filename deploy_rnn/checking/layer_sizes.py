"""`layer_sizes`: the batch and the steps that recurrent layers are called with."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from deploy_rnn.nn.loops import in_step


class LayerSizes(NamedTuple):
    """What one call of a recurrent layer gets.

    Attributes:
        batch: the number of rows; None for one row alone, (T, I).
        steps: the number of steps; of a packed sequence, those of its longest row.
    """

    batch: int | None
    steps: int


class PaddedSteps(TorchDispatchMode):
    """While it is entered, the steps of each tensor that is packed are noted: of all rows, not of the longest."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # By the id of the batch sizes, which are kept, so that no other tensor gets it.
        self._steps: dict[int, tuple[Tensor, int]] = {}

    def of(self, packed: PackedSequence) -> int:
        """The steps of what was packed; of its longest row if that is not known."""
        batch_sizes = packed.batch_sizes
        return self._steps.get(id(batch_sizes), (batch_sizes, batch_sizes.size(0)))[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._pack_padded_sequence.default:
            input, _, batch_first = args
            self._steps[id(result[1])] = result[1], input.size(1 if batch_first else 0)
        return result


@contextmanager
def layer_sizes(
    layers: Iterable[nn.Module], padded: PaddedSteps | None = None
) -> Iterator[list[LayerSizes]]:
    """A list that gets the sizes of each call of one of these layers, in the order of the calls.

    With `padded`, which the caller has entered, the steps of a packed sequence are those of what was packed.
    """
    sizes: list[LayerSizes] = []

    def note(layer: Any, args: Any, kwargs: Any) -> None:
        # A subclass may call its input something else than torch.nn.
        input = next(iter([*args, *kwargs.values()]), None)
        # The step of a loop calls a layer as often as the loop has steps, which says nothing of the layer's own.
        if in_step() or not isinstance(input, (Tensor, PackedSequence)):
            return
        if isinstance(input, PackedSequence):
            steps = padded.of(input) if padded else input.batch_sizes.size(0)
            sizes.append(LayerSizes(int(input.batch_sizes[0]), steps))
        elif input.dim() == 3:
            time = 1 if layer.batch_first else 0
            sizes.append(LayerSizes(input.size(1 - time), input.size(time)))
        else:
            # Of one row alone, the steps come first even with `batch_first`.
            sizes.append(LayerSizes(None, input.size(0)))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()
