"""The recurrent layers in a checkpoint: a state_dict, or dicts in dicts as training loops and Lightning save them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deploy_rnn.errors import TargetError

WEIGHT_NAME = re.compile(r"(?:weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(\d+)(_reverse)?")
"""A weight of a recurrent layer, under its own name; with its layer number and direction."""


@dataclass(frozen=True)
class FoundLayer:
    """What looks like the weights of one recurrent layer.

    Attributes:
        path: the keys of the dicts around it and the prefix of its names, such as "state_dict.encoder.rnn".
        weights: under the layer's own names.
        alone: whether the dict that holds it holds nothing else.
    """

    path: str
    weights: dict[str, Any]
    alone: bool


def select_layer(content: Mapping[Any, Any], key: str | None) -> Mapping[Any, Any]:
    """Return the weights of one layer.

    Args:
        content: a state_dict, or dicts in dicts.
        key: the path of the layer, or its end: "encoder.rnn" finds "state_dict.model.encoder.rnn" too. None for the
            only layer, if its dict holds nothing else.

    Returns:
        The weights under the layer's own names; `content` itself if it has no layer and `key` is None.

    Raises:
        TargetError: there is no such layer, or there are several; the message begins with a verb.
    """
    layers = list(_find_layers(content, ""))
    if key is not None:
        return _layer_at(layers, key).weights
    if not layers:
        return content
    if len(layers) > 1 or not layers[0].alone:
        raise TargetError(
            f"has more than the weights of one recurrent layer; choose one with --key: {_list_paths(layers)}. "
            "For the whole model give a `package.module:factory` instead."
        )
    return layers[0].weights


def _layer_at(layers: Sequence[FoundLayer], key: str) -> FoundLayer:
    exact = [layer for layer in layers if layer.path == key]
    ending = [layer for layer in layers if layer.path.endswith(f".{key}")]
    found = exact or ending
    if len(found) == 1:
        return found[0]
    if found:
        raise TargetError(f"has {_list_paths(found)}; give more of the path to --key (={key!r}).")
    known = f"its recurrent layers are {_list_paths(layers)}" if layers else "nor anywhere else"
    raise TargetError(f"has no recurrent layer at --key (={key!r}); {known}.")


def _find_layers(content: Mapping[Any, Any], path: str) -> Iterator[FoundLayer]:
    """Every layer in a dict, then those in the dicts within it."""
    weights_of: dict[str, dict[str, Any]] = {}
    tensors = 0
    for name, value in content.items():
        if not isinstance(name, str) or isinstance(value, Mapping):
            continue
        tensors += isinstance(value, Tensor)
        prefix, _, own_name = name.rpartition(".")
        if WEIGHT_NAME.fullmatch(own_name):
            weights_of.setdefault(prefix, {})[own_name] = value
    for prefix, weights in weights_of.items():
        layer_path = ".".join(filter(None, [path, prefix]))
        yield FoundLayer(layer_path, weights, alone=len(weights) >= tensors)
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Mapping):
            yield from _find_layers(value, f"{path}.{name}" if path else name)


def _list_paths(layers: Sequence[FoundLayer]) -> str:
    """The paths, the first few of them."""
    shown = [f"`{layer.path}`" for layer in layers[:6]]
    if len(layers) > 6:
        shown.append(f"{len(layers) - 6} more")
    return ", ".join(shown)
