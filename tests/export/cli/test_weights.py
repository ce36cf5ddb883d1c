"""A weights file becomes the layer that it came from, or is refused with a message about what is wrong in it."""

import itertools
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deploy_rnn.errors import TargetError
from deploy_rnn.export.cli.target import from_weights, load_target
from deploy_rnn.export.cli.weights import read_layer

FAMILIES: list[tuple[type[nn.RNNBase], dict[str, Any]]] = [
    (nn.RNN, {}),
    (nn.GRU, {}),
    (nn.LSTM, {}),
    (nn.LSTM, {"proj_size": 2}),
]


def assert_same(layer: nn.RNNBase, original: nn.RNNBase, x: Tensor) -> None:
    assert type(layer) is type(original)
    assert repr(layer) == repr(original)
    assert not layer.training
    with torch.no_grad():
        assert torch.equal(layer(x)[0], original(x)[0])


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("hidden", [3, 7])
@pytest.mark.parametrize(("inputs", "prefix"), [(1, ""), (3, "encoder.rnn."), (12, "module.")])
@pytest.mark.parametrize(("family", "options"), FAMILIES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_layer_comes_back(
    family: Any,
    options: dict[str, Any],
    hidden: int,
    inputs: int,
    prefix: str,
    suffix: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / f"w{suffix}"
    for layers, both, bias, dtype in itertools.product(
        (1, 2, 11), (False, True), (False, True), (torch.float32, torch.float64)
    ):
        layer = family(
            inputs, hidden, layers, bias=bias, bidirectional=both, dtype=dtype, **options
        ).eval()
        weights = {
            f"{prefix}{name}": weight.contiguous() for name, weight in layer.state_dict().items()
        }
        (torch.save if suffix == ".pt" else save_file)(weights, path)
        assert_same(read_layer(path), layer, torch.randn(4, 2, inputs, dtype=dtype))


@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_dtype_layout_and_nonlinearity(suffix: str, tmp_path: Path) -> None:
    layer = nn.RNN(3, 5, nonlinearity="relu", batch_first=True, dtype=torch.float64).eval()
    torch.save(layer.state_dict(), tmp_path / f"w{suffix}")
    restored = read_layer(tmp_path / f"w{suffix}", nonlinearity="relu", batch_first=True)
    assert_same(restored, layer, torch.randn(2, 4, 3, dtype=torch.float64))
    assert read_layer(tmp_path / f"w{suffix}").nonlinearity == "tanh"


def test_the_example(tmp_path: Path) -> None:
    torch.save(nn.LSTM(3, 5, dtype=torch.float64).state_dict(), tmp_path / "w.pt")
    target = from_weights(tmp_path / "w.pt")
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in target.args] == [
        ((32, 2, 3), torch.float64)
    ]
    assert target.kwargs is None
    target = load_target(str(tmp_path / "w.pt"), steps=7, batch=3, lengths=True, batch_first=True)
    assert target.args[0].shape == (3, 7, 3)
    assert target.kwargs is not None
    assert target.kwargs["lengths"].tolist() == [7, 4, 1]
    assert target.shown_as == (
        f"{tmp_path / 'w.pt'}: LSTM(3, 5, batch_first=True), float64; not in the file, and so assumed: "
        "batch_first=True (--batch-first)"
    )


def test_a_weight_that_shares_memory_or_needs_gradients(tmp_path: Path) -> None:
    layer = nn.GRU(4, 4).eval()
    shared = torch.randn(12, 4, requires_grad=True)
    weights = {**layer.state_dict(), "weight_ih_l0": shared, "weight_hh_l0": shared}
    torch.save(weights, tmp_path / "w.pt")
    layer.load_state_dict(weights)
    assert_same(read_layer(tmp_path / "w.pt"), layer, torch.randn(4, 2, 4))


def gru(**changed: Tensor | None) -> dict[str, Tensor]:
    weights = {**nn.GRU(3, 5, 2, bidirectional=True).state_dict(), **changed}
    return {name: weight for name, weight in weights.items() if weight is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gru(weight_hh_l1_reverse=None), "is not a complete recurrent layer: missing `weight_hh_l1_reverse`."),
        (gru(bias_hh_l0=None, bias_hh_l1=None), "missing `bias_hh_l0`, `bias_hh_l1`."),
        (
            gru(bias_ih_l0=None),
            "unexpected `bias_hh_l0`, `bias_ih_l0_reverse`, `bias_hh_l0_reverse`, `bias_ih_l1` and 3 more.",
        ),
        (
            gru(weight_hh_l1=torch.zeros(15, 4)),
            "is not a complete recurrent layer: `weight_hh_l1` has shape [15, 4], must be [15, 5].",
        ),
        (gru(bias_ih_l1=torch.zeros(3)), "`bias_ih_l1` has shape [3], must be [15]."),
        (gru(weight_ih_l999999999=torch.zeros(15, 10)), "and 4 more; unexpected `weight_ih_l999999999`."),
        (gru(weight_ih_l0=None), "is not a recurrent layer: `weight_ih_l0` is missing; it has `weight_hh_l0`, `bias_"),
        (gru(weight_hh_l0=torch.zeros(15)), "has `weight_hh_l0` of shape [15]; it must be a matrix that is not empty."),
        (gru(weight_hh_l0=torch.zeros(15, 0)), "has `weight_hh_l0` of shape [15, 0]; it must be a matrix that is not"),
        (gru(weight_hh_l0=torch.zeros(15, 4)), "is not an RNN, GRU or LSTM: `weight_ih_l0` has 15 rows for 4 units; "),
        (gru(weight_hr_l0=torch.zeros(2, 5)), "only an LSTM has `weight_hr_l0`."),
        (gru(bias_ih_l0=torch.zeros(15).double()), "mixes torch.float32 and torch.float64; save the layer in one"),
        (gru(bias_ih_l0=torch.zeros(15).int()), "a tensor of torch.int32, torch.strided, on cpu at `bias_ih_l0`; the"),
        (gru(weight_ih_l0=torch.zeros(15, 3).to_sparse()), "torch.sparse_coo, on cpu at `weight_ih_l0`; the weights"),
        (gru(weight_ih_l0=torch.zeros(15, 3, device="meta")), "torch.strided, on meta at `weight_ih_l0`; the weights"),
        (nn.Linear(3, 5).state_dict(), "is not a single recurrent layer: it has `weight`, `bias`. For a whole model"),
        ({"optimizer": {"lr": 3}, "epoch": 3}, "has a dict at 'optimizer', not a tensor; save `layer.state_dict()`"),
        ({3: torch.zeros(2)}, "has a Tensor at 3, not a tensor; save"),
        ([torch.zeros(3)], "contains a list, not a state_dict; save `layer.state_dict()`."),
        ({}, "contains an empty dict, not a state_dict;"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_a_layer_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(TargetError) as raised:
        read_layer(tmp_path / "w.pt")
    assert message in str(raised.value)
    assert repr(str(tmp_path / "w.pt")) in str(raised.value)


MODEL = {
    **{f"encoder.rnn.{name}": weight for name, weight in gru().items()},
    **{f"decoder.rnn.{name}": weight for name, weight in nn.LSTM(2, 3).state_dict().items()},
    "score.weight": torch.zeros(2, 5),
}
LIGHTNING = {
    "epoch": 3,
    "state_dict": {f"model.{name}": weight for name, weight in MODEL.items()},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    "hyper_parameters": {"lr": 0.1},
}


@pytest.mark.parametrize(
    ("content", "key", "family"),
    [
        (MODEL, "encoder.rnn", nn.GRU),
        (MODEL, "decoder", None),
        (MODEL, "decoder.rnn", nn.LSTM),
        (LIGHTNING, "model.encoder.rnn", nn.GRU),
        (LIGHTNING, "state_dict.model.encoder.rnn", nn.GRU),
        (LIGHTNING, "encoder.rnn", nn.GRU),
        ({"state_dict": gru(), "epoch": 3}, None, nn.GRU),
        ({"state_dict": gru(), "epoch": 3}, "state_dict", nn.GRU),
        ({"model": {"net": {f"rnn.{name}": weight for name, weight in gru().items()}}, 3: 4}, None, nn.GRU),
        ({"model": gru(), "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}, None, nn.GRU),
        ({f"rnn.{name}": weight for name, weight in gru().items()}, "rnn", nn.GRU),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_a_layer_of_a_checkpoint(
    content: Any, key: str | None, family: Any, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save(content, path)
    if family is None:
        with pytest.raises(TargetError, match="has no recurrent layer at --key"):
            read_layer(path, key=key)
        return
    layer = read_layer(path, key=key)
    assert type(layer) is family
    stored = {
        name.rpartition(".")[2]: weight for name, weight in flat(content) if "exp_avg" not in name
    }
    if content not in (MODEL, LIGHTNING):
        assert all(torch.equal(weight, stored[name]) for name, weight in layer.state_dict().items())


def flat(content: Any, path: str = "") -> list[tuple[str, Tensor]]:
    found = []
    for name, value in content.items():
        if isinstance(value, Tensor):
            found.append((f"{path}{name}", value))
        elif isinstance(value, dict):
            found += flat(value, f"{path}{name}.")
    return found


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        (MODEL, None, "has more than the weights of one recurrent layer; choose one with --key: `encoder.rnn`, `deco"),
        (LIGHTNING, None, "--key: `state_dict.model.encoder.rnn`, `state_dict.model.decoder.rnn`. For the whole model"),
        (LIGHTNING, "rnn", "has `state_dict.model.encoder.rnn`, `state_dict.model.decoder.rnn`; give more of the pa"),
        (MODEL, "score", "no recurrent layer at --key (='score'); its recurrent layers are `encoder.rnn`, `deco"),
        (MODEL, "coder.rnn", "has no recurrent layer at --key (='coder.rnn')"),
        ({"score.weight": torch.zeros(2)}, "rnn", "has no recurrent layer at --key (='rnn'); nor anywhere else."),
        (
            {**{f"rnn.{name}": weight for name, weight in gru().items()}, "score.weight": torch.zeros(2, 5)},
            None,
            "has more than the weights of one recurrent layer; choose one with --key: `rnn`. For the whole model give",
        ),
        ({"model": {**gru(), "scale": torch.zeros(2)}}, None, "has more than the weights of one recurrent layer"),
        ({"model": gru(weight_hh_l1=None)}, None, "is not a complete recurrent layer: missing `weight_hh_l1`."),
    ],
)  # fmt: skip
def test_what_a_key_cannot_find(
    content: Any, key: str | None, message: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.ckpt")
    with pytest.raises(TargetError) as raised:
        read_layer(tmp_path / "w.ckpt", key=key)
    assert message in str(raised.value)


def test_a_key_in_safetensors(tmp_path: Path) -> None:
    save_file(
        {name: weight.contiguous() for name, weight in MODEL.items()}, tmp_path / "w.safetensors"
    )
    layer = read_layer(tmp_path / "w.safetensors", key="encoder.rnn")
    assert torch.equal(layer.weight_hh_l1, MODEL["encoder.rnn.weight_hh_l1"])  # type: ignore[arg-type]
    target = from_weights(tmp_path / "w.safetensors", key="decoder.rnn")
    assert target.shown_as.startswith(
        f"{tmp_path / 'w.safetensors'}, decoder.rnn: LSTM(2, 3), float32; "
    )


def test_a_nonlinearity_for_another_family_is_refused(tmp_path: Path) -> None:
    torch.save(gru(), tmp_path / "w.pt")
    with pytest.raises(TargetError, match=r"w.pt' is a GRU; --nonlinearity is for an RNN\."):
        read_layer(tmp_path / "w.pt", nonlinearity="tanh")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_sixteen_bits_are_read_as_float32(
    dtype: torch.dtype, suffix: str, tmp_path: Path
) -> None:
    """As most hubs store them; some keep the biases in float32."""
    path = tmp_path / f"w{suffix}"
    weights = {name: weight.to(dtype) for name, weight in nn.GRU(2, 3).state_dict().items()}
    weights["bias_ih_l0"] = weights["bias_ih_l0"].float()
    (torch.save if suffix == ".pt" else save_file)(weights, path)
    layer = read_layer(path)
    for name, weight in layer.state_dict().items():
        assert weight.dtype is torch.float32
        assert torch.equal(weight, weights[name].float())


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def pickle_as(protocol: int) -> Any:
    return lambda content, path: path.write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize("save", [torch.save, pickle_as(2), pickle_as(5)])
def test_a_pickle_with_code_is_refused_and_does_not_run(save: Any, tmp_path: Path) -> None:
    save({**gru(), "bias_ih_l0": Code(tmp_path / "ran")}, tmp_path / "w.pt")
    refusal = r"asks for `[\w.]+`, and a file that could run code is not loaded; save|Unsupported operand 149"
    with pytest.raises(TargetError, match=refusal):
        read_layer(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_layer_is_refused(tmp_path: Path) -> None:
    torch.save(nn.GRU(2, 3), tmp_path / "w.pt")
    with pytest.raises(
        TargetError,
        match=r"asks for `torch.nn.modules.rnn.GRU`.*save `layer.state_dict\(\)`, not the",
    ):
        read_layer(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not a zip", b"\x80\x02."])
def test_a_file_that_does_not_contain_weights_is_refused(content: bytes, tmp_path: Path) -> None:
    for name, message in (
        ("w.pt", "is not a file that torch.save wrote, or is damaged ("),
        ("w.safetensors", "is not a safetensors file: "),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TargetError) as raised:
            read_layer(tmp_path / name)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
        assert "weights_only" not in str(
            raised.value
        )  # torch's advice, which no option of the command follows


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 3)).save(str(tmp_path / "w.pt"))
    with pytest.raises(
        TargetError, match=r"w.pt' is a TorchScript archive, .*; save `layer.state_dict\(\)` of"
    ):
        read_layer(tmp_path / "w.pt")


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        TargetError, match=r"w.safetensors' needs `safetensors`; run: pip install safetensors$"
    ):
        read_layer(tmp_path / "w.safetensors")
