"""One .onnx file in the layout of its graph: what its metadata says is checked, and every shape comes back as it is."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploy_rnn.errors import InputError, LoadError, RunError
from deploy_rnn.export import export_bundle, export_onnx
from deploy_rnn.serving import Engine
from deploy_rnn.serving.engine.session import translate_errors


@pytest.fixture(scope="module")
def layer() -> nn.GRU:
    torch.manual_seed(0)
    return nn.GRU(4, 3, bidirectional=True).eval()


@pytest.fixture(scope="module")
def path(layer: nn.GRU, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Time-major, with lengths."""
    file = tmp_path_factory.mktemp("files") / "gru.onnx"
    lengths = torch.tensor([5, 3])
    export_onnx(layer, (torch.randn(5, 2, 4),), file, form="scan", kwargs={"lengths": lengths})
    return file


def make_input(steps: int, rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((steps, rows, 4), np.float32)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([0, 5], "`lengths` has 0 in row 0; a row has 1 to 5 steps."),
        ([5, -3], "`lengths` has -3 in row 1; a row has 1 to 5 steps."),
        ([9, 5], "`lengths` has 9 in row 0; a row has 1 to 5 steps."),
    ],
)
def test_lengths_are_checked(lengths: list[int], message: str, path: Path) -> None:
    with pytest.raises(InputError) as raised:
        Engine(path).run({"input": make_input(5, 2), "lengths": np.array(lengths)})
    assert str(raised.value) == message


def test_lengths_may_be_left_out(layer: nn.GRU, path: Path) -> None:
    x = make_input(7, 3)
    output, h_n = layer(torch.from_numpy(x))
    outputs = Engine(path).run({"input": x})
    np.testing.assert_allclose(outputs["output"], output.detach(), atol=1e-6)
    np.testing.assert_allclose(outputs["h_n"], h_n.detach(), atol=1e-6)


def test_warming_up_keeps_the_layout(layer: nn.GRU, path: Path) -> None:
    engine = Engine(path)
    engine.warm_up()
    x = make_input(7, 3)
    outputs = engine.run({"input": x, "lengths": np.array([7, 2, 4])})
    packed = pack_padded_sequence(
        torch.from_numpy(x), torch.tensor([7, 2, 4]), enforce_sorted=False
    )
    output, h_n = layer(packed)
    np.testing.assert_allclose(
        outputs["output"], pad_packed_sequence(output)[0].detach(), atol=1e-6
    )
    np.testing.assert_allclose(outputs["h_n"], h_n.detach(), atol=1e-6)


def test_metadata_of_inputs_that_are_gone_is_ignored(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {"deploy_rnn.lengths": '{"n": "T"}', "deploy_rnn.states": '{"h0": "h_n"}'}
    )
    onnx.save(model, tmp_path / "renamed.onnx")
    inputs = {"input": make_input(5, 2), "lengths": np.array([5, 2])}
    assert Engine(tmp_path / "renamed.onnx").run(inputs)["h_n"].shape == (2, 2, 3)


def test_metadata_that_is_damaged(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"deploy_rnn.lengths": "lengths"})
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(LoadError, match="has metadata of deploy-rnn that is not a JSON object"):
        Engine(tmp_path / "damaged.onnx")


def test_states_may_be_left_out_and_carried(tmp_path: Path) -> None:
    layer = nn.LSTM(4, 6).eval()
    export_onnx(layer, (torch.randn(5, 2, 4),), tmp_path / "l.onnx", form="native", streaming=True)
    engine = Engine(tmp_path / "l.onnx")
    x = make_input(8, 2)
    first = engine.run({"input": x[:3]})
    second = engine.run({"input": x[3:], "h0": first["h_n"], "c0": first["c_n"]})
    joined = np.concatenate([first["output"], second["output"]])
    np.testing.assert_allclose(joined, layer(torch.from_numpy(x))[0].detach(), atol=1e-6)


@pytest.mark.parametrize("wrong", [(1, 2, 8), (1, 4, 8)])
def test_sizes_that_do_not_fit_together_are_the_fault_of_the_inputs(
    wrong: tuple[int, ...], tmp_path: Path
) -> None:
    """The file names the batch of each input anew, so that only its nodes know that they are one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            nn.GRU(4, 8).eval(), (torch.randn(5, 2, 4), torch.zeros(1, 2, 8)), tmp_path / "g.onnx",
            dynamo=False, input_names=["x", "h"], output_names=["y", "h_n"],
            dynamic_axes={"x": {0: "t", 1: "b"}, "h": {1: "bh"}},
        )  # fmt: skip
    engine = Engine(tmp_path / "g.onnx")
    inputs = {"x": make_input(7, 3), "h": np.zeros((1, 3, 8), np.float32)}
    assert engine.run(inputs)["y"].shape == (7, 3, 8)
    with pytest.raises(InputError, match="the graph cannot take these inputs"):
        engine.run(inputs | {"h": np.zeros(wrong, np.float32)})


@pytest.mark.parametrize(
    "reason", ["Failed to allocate memory for requested buffer", "CUDA failure 700", "bad_alloc"]
)
def test_a_fault_of_the_machine_is_not_that_of_the_inputs(reason: str) -> None:
    def fail() -> Any:
        raise RuntimeError(f"returned while running Add node. Name:'x' Status Message: {reason}")

    with pytest.raises(RunError, match="onnxruntime failed"):
        translate_errors(fail)


class Scaled(nn.Module):
    """One input and one output without axes."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        output = self.rnn(x)[0] / temperature
        return output, output.mean()


def test_tensors_of_no_axes(tmp_path: Path) -> None:
    model = Scaled().eval()
    example = (torch.randn(3, 6, 4), torch.tensor(2.0))
    export_onnx(model, example, tmp_path / "m.onnx", form="scan")
    export_bundle(model, example, tmp_path / "b", forms=["native"], sizes=(2,))
    x, temperature = torch.randn(2, 9, 4), torch.tensor(0.5)
    expected = model(x, temperature)[1].detach().numpy()
    for file in ("m.onnx", "b"):
        mean = Engine(tmp_path / file).run({"x": x.numpy(), "temperature": temperature.numpy()})[
            "output_1"
        ]
        assert isinstance(mean, np.ndarray)
        assert mean.shape == ()
        np.testing.assert_allclose(mean, expected, atol=1e-6)


class Squeezed(nn.Module):
    """`rows`: scores (B,), or () for one row. Otherwise (B, T), or without the axes of size 1."""

    def __init__(self, *, rows: bool) -> None:
        super().__init__()
        self.rows = rows
        self.rnn = nn.GRU(4, 6, batch_first=True)
        self.score = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        output = self.rnn(x)[0]
        scores: Tensor = self.score(output[:, -1] if self.rows else output).squeeze()
        return scores


@pytest.mark.parametrize("rows", [True, False])
def test_axes_that_a_squeeze_drops(rows: bool, tmp_path: Path) -> None:
    model = Squeezed(rows=rows).eval()
    export_onnx(model, (torch.randn(3, 12, 4),), tmp_path / "m.onnx", form="scan")
    export_bundle(model, (torch.randn(3, 12, 4),), tmp_path / "b", forms=["native"], sizes=(2,))
    for file in ("m.onnx", "b"):
        engine = Engine(tmp_path / file)
        engine.warm_up()
        for batch, steps in [(2, 9), (1, 9), (2, 1), (1, 1), (4, 5)]:
            x = torch.randn(batch, steps, 4)
            expected = model(x).detach().numpy()
            given = engine.run({"x": x.numpy()})["output"]
            assert given.shape == expected.shape
            np.testing.assert_allclose(given, expected, atol=1e-6)


class SqueezedSteps(nn.Module):
    """Time-major scores (T, B), or without the axes of size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6)
        self.score = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(self.rnn(x)[0]).squeeze()
        return scores


def test_a_dropped_axis_that_would_have_to_be_transposed_is_refused(tmp_path: Path) -> None:
    export_bundle(
        SqueezedSteps(), (torch.randn(6, 3, 4),), tmp_path / "b", forms=["native"], sizes=(2,)
    )
    engine = Engine(tmp_path / "b")
    assert engine.run({"x": np.ones((2, 5, 4), np.float32)})["output"].shape == (2, 5)
    with pytest.raises(RunError, match=r"`output` has shape \[5\].* name the axis"):
        engine.run({"x": np.ones((1, 5, 4), np.float32)})
