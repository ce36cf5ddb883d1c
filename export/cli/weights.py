"""A bare recurrent layer from nothing but its weights.

Family, sizes, layers, directions, biases and dtype are read off the tensors. No code in a file is run.
"""

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy_rnn.errors import TargetError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""Files that are read as weights; all but the first by `torch.load(weights_only=True)`."""

FAMILIES: Mapping[int, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {1: nn.RNN, 3: nn.GRU, 4: nn.LSTM}
"""Rows of weight_ih for each unit -> the layer."""

_NAME = re.compile(r"(?:weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(\d+)(_reverse)?")


def read_layer(path: Path, *, nonlinearity: str | None = None, batch_first: bool = False) -> nn.RNNBase:
    """The layer of `torch.nn` that has the weights in a file, in evaluation mode on the CPU.

    Args:
        path: .safetensors, or a state_dict in .pt, .pth or .bin; a common prefix of the names, such as "rnn.", is
            dropped.
        nonlinearity: "tanh" or "relu", None for "tanh": the weights of an RNN do not say.
        batch_first: the layout of its input: the weights do not say either.

    Raises:
        TargetError: no file, no weights, more than weights, or not those of one recurrent layer.
    """
    weights = _without_prefix(path, _read(path))
    layer = _layer(path, weights, nonlinearity, batch_first)
    _check(path, {name: list(weight.shape) for name, weight in layer.state_dict().items()}, weights)
    layer.load_state_dict(weights, assign=True)
    return layer.eval()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise TargetError(f"there is no file {str(path)!r}.")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    if not isinstance(found, Mapping) or not found:
        raise TargetError(f"{str(path)!r} holds {_kind(found)}, no state_dict; save `layer.state_dict()`.")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TargetError(
                f"{str(path)!r} has {_kind(value)} at {name!r}, no tensor; save `layer.state_dict()` and nothing else."
            )
        if value.layout is not torch.strided or value.device.type != "cpu" or not value.is_floating_point():
            raise TargetError(
                f"{str(path)!r} has a tensor of {value.dtype}, {value.layout}, on {value.device} at `{name}`; the "
                "weights of a recurrent layer are dense floats."
            )
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in found.items()}


def _kind(value: Any) -> str:
    return "an empty dict" if isinstance(value, Mapping) and not value else f"a {type(value).__name__}"


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise TargetError(f"{str(path)!r} needs `safetensors`; run: pip install safetensors") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise TargetError(f"{str(path)!r} is no safetensors file: {error}.") from None


def _read_pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of formats; what cannot be read is an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can raise anything
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code is None:
            reason = (
                str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0] or type(error).__name__
            )
            raise TargetError(f"{str(path)!r} is no file that torch.load(weights_only=True) reads: {reason}") from None
        raise TargetError(
            f"{str(path)!r} asks for `{code[1]}`, and a file that could run code is not loaded; "
            "save `layer.state_dict()`, not the layer itself."
        ) from None


def _without_prefix(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the layer has them; "rnn." or "module." before all of them is dropped."""
    prefixes = {name.rpartition(".")[0] for name in weights}
    named = {name.rpartition(".")[2] if len(prefixes) == 1 else name: value for name, value in weights.items()}
    if unknown := [name for name in named if not _NAME.fullmatch(name)]:
        raise TargetError(
            f"{str(path)!r} is not one bare recurrent layer: it has {_listed(unknown)}. For a whole model give a "
            "`package.module:factory` instead."
        )
    return named


def _layer(path: Path, weights: Mapping[str, Tensor], nonlinearity: str | None, batch_first: bool) -> nn.RNNBase:
    """The layer, without storage, that the shapes of the first weights and the names of all ask for."""
    _require(path, weights)
    rows, inputs = weights["weight_ih_l0"].shape
    outputs = weights["weight_hh_l0"].size(1)
    projection = weights.get("weight_hr_l0")
    hidden = outputs if projection is None or projection.dim() != 2 else projection.size(1)
    family = FAMILIES.get(rows // hidden) if not rows % hidden else None
    if family is None or (projection is not None and family is not nn.LSTM):
        raise TargetError(
            f"{str(path)!r} is no RNN, GRU or LSTM: `weight_ih_l0` has {rows} rows for {hidden} units; they have 1, 3 "
            "and 4 for each, and only an LSTM has `weight_hr_l0`."
        )
    if nonlinearity is not None and family is not nn.RNN:
        raise TargetError(f"--nonlinearity is for an RNN; {str(path)!r} is a {family.__name__}.")
    options: dict[str, Any] = {"nonlinearity": nonlinearity or "tanh"} if family is nn.RNN else {}
    if projection is not None:
        options["proj_size"] = outputs
    return family(
        inputs,
        hidden,
        num_layers=len({_number(name) for name in weights}),
        bias="bias_ih_l0" in weights,
        batch_first=batch_first,
        bidirectional=any(name.endswith("_reverse") for name in weights),
        dtype=weights["weight_ih_l0"].dtype,
        device="meta",
        **options,
    )


def _require(path: Path, weights: Mapping[str, Tensor]) -> None:
    """The two weights that say the sizes, and one dtype."""
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in weights:
            raise TargetError(f"{str(path)!r} is no recurrent layer: it has no `{name}`, but {_listed([*weights])}.")
        if weights[name].dim() != 2 or not weights[name].numel():
            raise TargetError(f"{str(path)!r}: `{name}` is {list(weights[name].shape)}, no matrix with values.")
    if len(dtypes := {str(weight.dtype) for weight in weights.values()}) > 1:
        raise TargetError(f"{str(path)!r} mixes {' and '.join(sorted(dtypes))}; save the layer in one dtype.")


def _number(name: str) -> int:
    matched = _NAME.fullmatch(name)
    assert matched is not None  # `_without_prefix` refused all others
    return int(matched[1])


def _check(path: Path, expected: Mapping[str, list[int]], weights: Mapping[str, Tensor]) -> None:
    """Every weight that such a layer has, with its shape, and no other."""
    faults = []
    if missing := [name for name in expected if name not in weights]:
        faults.append(f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if surplus := [name for name in weights if name not in expected]:
        faults.append(f"{_listed(surplus)} {'is' if len(surplus) == 1 else 'are'} too much")
    faults += [
        f"`{name}` is {list(weights[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in weights and list(weights[name].shape) != shape
    ]
    if faults:
        raise TargetError(f"{str(path)!r} is no whole recurrent layer: {'; '.join(faults[:4])}.")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def example(
    layer: nn.RNNBase, *, steps: int, batch: int, lengths: bool
) -> tuple[tuple[Tensor], dict[str, Tensor] | None]:
    """Arguments for `layer`: input (T, B, I), or (B, T, I) with `batch_first`, of normal noise; with `lengths`, also
    those of the rows, from T down to 1.
    """
    shape = (batch, steps) if layer.batch_first else (steps, batch)
    noise = torch.randn(*shape, layer.input_size, generator=torch.Generator().manual_seed(0))
    rows = torch.linspace(steps, 1, batch).round().long()
    return (noise.to(next(layer.parameters()).dtype),), {"lengths": rows} if lengths else None
