"""Linear layers and embeddings in eight bits: which they are, and what takes the place of their `forward`.

A linear layer rounds as the products of recurrent layers do. An embedding has eight bits, and a scale for each row.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploy_rnn.errors import ExportError
from deploy_rnn.nn.loops import in_step

from .rounding import rounded_table

LINEAR = "linear"
EMBEDDING = "embedding"
LAYERS = (LINEAR, EMBEDDING)
"""What may be of eight bits besides recurrent layers."""

TORCH_NAMES = {LINEAR: "Linear", EMBEDDING: "Embedding without `max_norm`"}

LEVELS = "int8_levels"
STEPS = "int8_steps"
"""The buffers of an embedding of eight bits; their names in a file end so."""

Product = Callable[[nn.Linear, Tensor], Tensor]
"""What computes a linear layer: the layer, rows (..., K) -> (..., M)"""


def linear_layers(model: nn.Module) -> Iterator[nn.Linear]:
    """The linear layers that can be of eight bits: those of torch.nn itself, in float32."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype is torch.float32:
            yield module


def embeddings(model: nn.Module) -> Iterator[nn.Embedding]:
    """The same of embeddings; one with `max_norm` changes its table."""
    for module in model.modules():
        if type(module) is not nn.Embedding or module.max_norm is not None:
            continue
        if module.weight.dtype is torch.float32:
            yield module


def round_layers(model: nn.Module, kinds: Collection[str], product: Product) -> None:
    """Let layers compute in eight bits, in place.

    Args:
        model: any module.
        kinds: some of `LAYERS`.
        product: computes the linear layers.

    Raises:
        ExportError: the model has no layer of a kind.
    """
    found: dict[str, list[Any]] = {
        LINEAR: list(linear_layers(model)),
        EMBEDDING: list(embeddings(model)),
    }
    for kind in kinds:
        if not found[kind]:
            raise ExportError(
                f"`int8_layers` has {kind!r}, and the model has no {TORCH_NAMES[kind]} of torch.nn itself in float32; "
                "leave it out."
            )
    if LINEAR in kinds:
        for layer in found[LINEAR]:
            _compute_with(layer, partial(_linear, layer, product))
    if EMBEDDING in kinds:
        for table in found[EMBEDDING]:
            levels, steps = rounded_table(table.weight.detach().numpy())
            table.register_buffer(LEVELS, torch.from_numpy(levels), persistent=False)
            table.register_buffer(STEPS, torch.from_numpy(steps), persistent=False)
            _compute_with(table, partial(_embedding, table))


def _compute_with(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
    """Exchange the `forward` of one module; its hooks stay."""
    vars(module)["forward"] = forward


def _linear(layer: nn.Linear, product: Product, input: Tensor) -> Tensor:
    # In the step of a loop it is written as it computes, and rounded as any product there; autocast may have cast its
    # input.
    if in_step() or input.dtype is not torch.float32:
        return nn.Linear.forward(layer, input)
    return product(layer, input)


def _embedding(table: nn.Embedding, input: Tensor) -> Tensor:
    levels = functional.embedding(input, table.get_buffer(LEVELS))
    steps = functional.embedding(input, table.get_buffer(STEPS))
    return levels.float() * steps
