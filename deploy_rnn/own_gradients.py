"""`separate_gradients`: no two gradients that compiled code returns share memory.

Autograd keeps the gradient that it gets as the `grad` of a parameter, and adds the next one to it in place. Of
gradients that are equal, as those of the two biases of a layer, torch.compile returns one tensor for all: the next one
would be added to both of them twice, and `clip_grad_norm_` would scale both twice (torch 2.13 to 2.15).
"""

from typing import Any, NamedTuple

import torch
from torch import fx


class Memory(NamedTuple):
    """Where the elements of a tensor are.

    Attributes:
        storage: names its storage.
        start, end: the first element in it, and the one behind the last; sizes of a graph may be unknown.
    """

    storage: Any
    start: Any
    end: Any

    def overlaps(self, other: "Memory") -> bool:
        """Whether an element may be in both."""
        if self.storage != other.storage:
            return False
        ends = (self.start, self.end, other.start, other.end)
        if not all(isinstance(end, int) for end in ends):
            return True
        return bool(self.start < other.end and other.start < self.end)


def separate_gradients(graph: fx.Graph) -> None:
    """Copy each gradient that shares memory with another, or with what the graph gets, in place.

    Args:
        graph: of inductor; one of a forward pass stays as it is.
    """
    placeholders = graph.find_nodes(op="placeholder")
    if not any("tangents" in node.name for node in placeholders):
        return
    (output,) = graph.find_nodes(op="output")
    taken = [memory for node in placeholders if (memory := _memory(node)) is not None]
    gradients = list(output.args[0])
    for number, gradient in enumerate(gradients):
        memory = _memory(gradient)
        if memory is None:
            continue
        if any(memory.overlaps(other) for other in taken):
            with graph.inserting_before(output):
                gradients[number] = _copied(graph, gradient)
        else:
            taken.append(memory)
    output.args = (type(output.args[0])(gradients), *output.args[1:])


def _memory(node: Any) -> Memory | None:
    """None for what is not a tensor in memory."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return None
    steps = [(size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)]
    start = value.storage_offset()
    return Memory(value.untyped_storage()._cdata, start, start + sum(steps) + 1)


def _copied(graph: fx.Graph, node: fx.Node) -> fx.Node:
    copy = graph.call_function(torch.ops.aten.clone.default, (node,))
    copy.meta["val"] = node.meta["val"].clone()
    return copy
