"""A recurrent layer from nothing but its weights.

Type, sizes, layers, directions, biases and dtype follow from the tensors. No code in a file is run.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy_rnn.errors import TargetError

from .checkpoint import WEIGHT_NAME, select_layer

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Files that are read as weights; all but the first by `torch.load(weights_only=True)`."""

FAMILIES: Mapping[int, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {
    1: nn.RNN,
    3: nn.GRU,
    4: nn.LSTM,
}
"""Rows of weight_ih for each hidden unit -> the layer."""

WIDENED = (torch.float16, torch.bfloat16)
"""What most hubs store, and no file computes in: such weights are read as float32, which has each of their values."""


def read_layer(
    path: Path,
    *,
    key: str | None = None,
    nonlinearity: str | None = None,
    batch_first: bool = False,
) -> nn.RNNBase:
    """Return the layer of `torch.nn` that has the weights in a file, in evaluation mode on the CPU.

    Weights in float16 or bfloat16 become float32.

    Args:
        path: .safetensors, or a state_dict in .pt, .pth, .bin or .ckpt, by itself or in dicts; a prefix of the names,
            such as "rnn.", is dropped.
        key: the path of the layer, or its end, such as "model.encoder.rnn"; None if it is the only one.
        nonlinearity: "tanh" or "relu" for an RNN, None for "tanh"; the weights do not show it.
        batch_first: whether the input is (B, T, I); the weights do not show it either.

    Raises:
        TargetError: the file is missing, has no weights or more than weights, or not those of one recurrent layer.
    """
    if not path.is_file():
        raise TargetError(f"there is no file {str(path)!r}.")
    try:
        weights = _without_prefix(_read(path, key))
        layer = _make_layer(weights, nonlinearity, batch_first)
        _check_complete(layer, weights)
    except TargetError as error:
        # The messages below begin with a verb: "is not a complete recurrent layer".
        raise TargetError(f"{str(path)!r} {error}") from None
    layer.load_state_dict(weights, assign=True)
    return layer.eval()


def _read(path: Path, key: str | None) -> dict[str, Tensor]:
    """Read a state_dict, or the layer at `key` in it; tensors are copied, since weights in a file may share memory."""
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(content, Mapping) or not content:
        raise TargetError(
            f"contains {_describe(content)}, not a state_dict; save `layer.state_dict()`."
        )
    content = select_layer(content, key)
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TargetError(
                f"has {_describe(value)} at {name!r}, not a tensor; save `layer.state_dict()` and nothing else."
            )
        on_cpu = value.device.type == "cpu"  # a tensor on "meta" has no values
        dense = value.layout is torch.strided
        known_dtype = value.dtype in (*WIDENED, torch.float32, torch.float64)
        if not (on_cpu and dense and known_dtype):
            raise TargetError(
                f"has a tensor of {value.dtype}, {value.layout}, on {value.device} at `{name}`; the weights of a "
                "recurrent layer must be dense floats of 16, 32 or 64 bits."
            )
    return {name: _own_copy(weight) for name, weight in content.items()}


def _own_copy(weight: Tensor) -> Tensor:
    if weight.dtype in WIDENED:
        return weight.detach().float().contiguous()
    return weight.detach().clone(memory_format=torch.contiguous_format)


def _describe(value: Any) -> str:
    if isinstance(value, Mapping) and not value:
        return "an empty dict"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise TargetError("needs `safetensors`; run: pip install safetensors") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise TargetError(f"is not a safetensors file: {error}.") from None


def _read_pickle(path: Path) -> Any:
    if _is_torchscript(path):
        raise TargetError(
            "is a TorchScript archive, whose layers are compiled; save `layer.state_dict()` of the module that was "
            "scripted or traced."
        )
    try:
        # Warnings are about formats; a file that cannot be read is an error.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can raise anything
        text = str(error)
        code = (
            re.search(r"GLOBAL (\S+)", text) if isinstance(error, pickle.UnpicklingError) else None
        )
        if code is not None:
            raise TargetError(
                f"asks for `{code[1]}`, and a file that could run code is not loaded; "
                "save `layer.state_dict()`, not the layer itself."
            ) from None
        # torch wraps the reason in advice to load the file without `weights_only`.
        first_line = text.rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        reason = type(error).__name__
        if first_line and "weights_only" not in first_line:
            reason = first_line.partition(". ")[0]
        raise TargetError(
            f"is not a file that torch.save wrote, or is damaged ({reason}); save `layer.state_dict()` again."
        ) from None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names that the layer has; "rnn." or "module." before all of them is dropped."""
    prefixes = {name.rpartition(".")[0] for name in weights}
    if len(prefixes) == 1:
        weights = {name.rpartition(".")[2]: weight for name, weight in weights.items()}
    unknown_names = [name for name in weights if not WEIGHT_NAME.fullmatch(name)]
    if unknown_names:
        raise TargetError(
            f"is not a single recurrent layer: it has {_list_names(unknown_names)}. For a whole model give a "
            "`package.module:factory` instead."
        )
    return dict(weights)


def _make_layer(
    weights: Mapping[str, Tensor], nonlinearity: str | None, batch_first: bool
) -> nn.RNNBase:
    """Return a layer, without storage, with the sizes of the first weights and the layers that the names call for."""
    _check_first_weights(weights)
    rows, input_size = weights["weight_ih_l0"].shape
    output_size = weights["weight_hh_l0"].size(1)
    # Without a projection the output is the hidden state; with one, only weight_hr (P, H) has the hidden size.
    projection = weights.get("weight_hr_l0")
    hidden_size = output_size
    if projection is not None and projection.dim() == 2:
        hidden_size = projection.size(1)
    rows_per_unit, rest = divmod(rows, hidden_size)
    family = None if rest else FAMILIES.get(rows_per_unit)
    if family is None or (projection is not None and family is not nn.LSTM):
        raise TargetError(
            f"is not an RNN, GRU or LSTM: `weight_ih_l0` has {rows} rows for {hidden_size} units; they have 1, 3 and 4 "
            "rows for each unit, and only an LSTM has `weight_hr_l0`."
        )
    if nonlinearity is not None and family is not nn.RNN:
        raise TargetError(f"is a {family.__name__}; --nonlinearity is for an RNN.")
    options: dict[str, Any] = {}
    if family is nn.RNN:
        options["nonlinearity"] = nonlinearity or "tanh"
    if projection is not None:
        options["proj_size"] = output_size
    layer_numbers = {_layer_number(name) for name in weights}
    return family(
        input_size,
        hidden_size,
        num_layers=len(layer_numbers),
        bias="bias_ih_l0" in weights,
        batch_first=batch_first,
        bidirectional=any(name.endswith("_reverse") for name in weights),
        dtype=weights["weight_ih_l0"].dtype,
        device="meta",
        **options,
    )


def _check_first_weights(weights: Mapping[str, Tensor]) -> None:
    """Raises: TargetError: a layer without the two weights that have its sizes, or with several dtypes."""
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in weights:
            raise TargetError(
                f"is not a recurrent layer: `{name}` is missing; it has {_list_names([*weights])}."
            )
        weight = weights[name]
        if weight.dim() != 2 or weight.numel() == 0:
            shape = list(weight.shape)
            raise TargetError(
                f"has `{name}` of shape {shape}; it must be a matrix that is not empty."
            )
    dtypes = {str(weight.dtype) for weight in weights.values()}
    if len(dtypes) > 1:
        raise TargetError(f"mixes {' and '.join(sorted(dtypes))}; save the layer in one dtype.")


def _layer_number(name: str) -> int:
    match = WEIGHT_NAME.fullmatch(name)
    assert match is not None  # `_without_prefix` refused all other names
    return int(match[1])


def _check_complete(layer: nn.RNNBase, weights: Mapping[str, Tensor]) -> None:
    """Raises: TargetError: a weight that is missing or has another shape than the layer's, or one too many."""
    shapes = {name: list(weight.shape) for name, weight in layer.state_dict().items()}
    faults = []
    missing_names = [name for name in shapes if name not in weights]
    if missing_names:
        faults.append(f"missing {_list_names(missing_names)}")
    unexpected_names = [name for name in weights if name not in shapes]
    if unexpected_names:
        faults.append(f"unexpected {_list_names(unexpected_names)}")
    for name, expected in shapes.items():
        if name not in weights:
            continue
        shape = list(weights[name].shape)
        if shape != expected:
            faults.append(f"`{name}` has shape {shape}, must be {expected}")
    if faults:
        raise TargetError(f"is not a complete recurrent layer: {'; '.join(faults[:4])}.")


def _list_names(names: Sequence[str]) -> str:
    text = ", ".join(f"`{name}`" for name in names[:4])
    if len(names) > 4:
        text += f" and {len(names) - 4} more"
    return text


def example(
    layer: nn.RNNBase, *, steps: int, batch: int, lengths: bool
) -> tuple[tuple[Tensor], dict[str, Tensor] | None]:
    """Return arguments and keyword arguments for `layer`.

    The input is (T, B, I), or (B, T, I) with `batch_first`, of normal noise. With `lengths` there are also the lengths
    of the rows, from T down to 1.
    """
    shape = (batch, steps) if layer.batch_first else (steps, batch)
    noise = torch.randn(*shape, layer.input_size, generator=torch.Generator().manual_seed(0))
    x = noise.to(next(layer.parameters()).dtype)
    if not lengths:
        return (x,), None
    return (x,), {"lengths": torch.linspace(steps, 1, batch).round().long()}
