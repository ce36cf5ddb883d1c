"""Running or tracing a model without a trace of it: one copy then serves all of them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo what a `forward` does to the model itself: to its buffers, its attributes, and containers among them.

    A counter of calls or a cache would otherwise reach the next trace, and the file. Parameters are not saved: in
    evaluation mode nothing changes them, and they are most of the model.
    """
    modules = [(module, dict(vars(module))) for module in model.modules()]
    containers = [
        (value, copy.copy(value))
        for _, attributes in modules
        for value in attributes.values()
        if isinstance(value, (dict, list, set))
    ]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, attributes in modules:
            vars(module).clear()
            vars(module).update(attributes)
        for container, contents in containers:
            _refill(container, contents)
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(contents)
    else:
        container.update(contents)
