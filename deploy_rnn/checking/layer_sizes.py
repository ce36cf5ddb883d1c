"""`layer_sizes`: the batch and the steps that recurrent layers are called with."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class LayerSizes(NamedTuple):
    """What one call of a recurrent layer gets.

    Attributes:
        batch: the number of rows; None for one row alone, (T, I).
        steps: the number of steps; of a packed sequence, those of its longest row.
    """

    batch: int | None
    steps: int


@contextmanager
def layer_sizes(layers: Iterable[nn.Module]) -> Iterator[list[LayerSizes]]:
    """A list that gets the sizes of each call of one of these layers, in the order of the calls."""
    sizes: list[LayerSizes] = []

    def note(layer: Any, args: Any, kwargs: Any) -> None:
        # A subclass may call its input something else than torch.nn.
        input = next(iter([*args, *kwargs.values()]), None)
        if not isinstance(input, (Tensor, PackedSequence)):
            return
        if isinstance(input, PackedSequence):
            sizes.append(LayerSizes(int(input.batch_sizes[0]), input.batch_sizes.size(0)))
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
