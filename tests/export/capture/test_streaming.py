"""`export_onnx(..., streaming=True)`: any chunking of a sequence gives what the whole sequence gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.export import export_onnx, verify
from deploy_rnn.export.forms import FORMS


class Tagger(nn.Module):
    """Two stacks; the first is given zeros that the model makes itself, the second nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 4)
        self.lower = nn.LSTM(4, 6, 2, batch_first=True)
        self.upper = nn.GRU(6, 5, batch_first=True)
        self.score = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        zeros = torch.zeros(2, tokens.size(0), 6)
        scores: Tensor = self.score(
            self.upper(self.lower(self.embed(tokens), (zeros, zeros))[0])[0]
        )
        return scores


class Smoothed(nn.Module):
    """Looks one step ahead, which a chunk cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = nn.Conv1d(4, 4, 3, padding=1)
        self.rnn = nn.RNN(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(self.smooth(x.permute(1, 2, 0)).permute(2, 0, 1))[0]
        return output


class Doubled(nn.Module):
    """Its first state is made of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.rnn(x, x[:1] * 2)


class Unfolded(nn.Module):
    """Makes five steps of one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x[0].expand(5, -1, -1))[0]
        return output


class Carrier(nn.Module):
    """Two layers whose states come in one tensor and go out in one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.GRU(4, 4, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor, state: Tensor) -> Any:
        lasts = []
        for layer, first in zip(self.layers, self.parts(state), strict=True):
            x, last = layer(x, first)
            lasts.append(last)
        return x, *self.joined(lasts)

    def parts(self, state: Tensor) -> list[Tensor]:
        return [state[:1], state[1:]]

    def joined(self, lasts: list[Tensor]) -> list[Tensor]:
        return [torch.cat(lasts)]


class Assigned(Carrier):
    """Takes its states apart by number, and assigns the last ones to parts of a tensor."""

    def parts(self, state: Tensor) -> list[Tensor]:
        return [part.unsqueeze(0) for part in state.unbind()]

    def joined(self, lasts: list[Tensor]) -> list[Tensor]:
        joined = torch.zeros(2, *lasts[0].shape[1:])
        for number, last in enumerate(lasts):
            joined[number] = last[0]
        return [joined]


class Flat(Carrier):
    """The states of one row are one vector: (B, 2*H)."""

    def parts(self, state: Tensor) -> list[Tensor]:
        return list(state.view(-1, 2, 4).transpose(0, 1).contiguous().chunk(2))

    def joined(self, lasts: list[Tensor]) -> list[Tensor]:
        return [torch.stack([last[0] for last in lasts], 1).flatten(1)]


class Swapped(Carrier):
    """Gives its states back in another order than it takes them."""

    def joined(self, lasts: list[Tensor]) -> list[Tensor]:
        return [torch.cat(lasts[::-1])]


class Apart(Carrier):
    """Gives each state back by itself."""

    def joined(self, lasts: list[Tensor]) -> list[Tensor]:
        return lasts


class StackedLSTM(nn.Module):
    """The h and c of all layers are one tensor (L, 2, B, H)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(4, 4) for _ in range(2))

    def forward(self, x: Tensor, state: Tensor) -> Any:
        lasts = []
        for layer, pair in zip(self.layers, state, strict=True):
            x, last = layer(x, (pair[:1], pair[1:]))
            lasts.append(torch.cat(last))
        return x, torch.stack(lasts)


class CellsFirst(nn.Module):
    """Takes the h of all layers, then the c, and gives back the c first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(4, 4) for _ in range(2))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        lasts = []
        for layer, *first in zip(self.layers, h.split(1), c.split(1), strict=True):
            x, last = layer(x, tuple(first))
            lasts.append(last)
        return x, torch.cat([last[1] for last in lasts]), torch.cat([last[0] for last in lasts])


class TwoRates(nn.Module):
    """Two samples of a wave for each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 4, batch_first=True)

    def forward(self, wave: Tensor, frames: Tensor) -> Tensor:
        both = torch.cat([wave, frames.repeat_interleave(2, 1)], -1)
        output: Tensor = self.rnn(both)[0]
        return output


class Cut(nn.Module):
    """Takes the states of one layer in two arguments, and gives them back in two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, 2)

    def forward(self, x: Tensor, lower: Tensor, upper: Tensor) -> Any:
        output, last = self.rnn(x, torch.cat([lower, upper]))
        return output, last[:1], last[1:]


class Both(nn.Module):
    """Two layers start with the same state."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.GRU(4, 4)
        self.right = nn.GRU(4, 4)

    def forward(self, x: Tensor, state: Tensor) -> Any:
        return self.left(x, state)[0] + self.right(x, state)[0]


def in_chunks(
    path: Path, feeds: dict[str, np.ndarray], time: dict[str, int], sizes: list[int]
) -> list[np.ndarray]:
    """The first output, chunk by chunk; what is fed besides `time` is the states, and follows them in the outputs."""
    session, at, outputs = InferenceSession(str(path)), 0, []
    for size in sizes:
        chunk = {
            name: np.take(feeds[name], range(at, at + size), axis) for name, axis in time.items()
        }
        output, *states = session.run(None, feeds | chunk)
        feeds = feeds | dict(zip((name for name in feeds if name not in time), states, strict=True))
        outputs.append(output)
        at += size
    return outputs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", [nn.RNN, nn.GRU, nn.LSTM])
def test_chunks_of_a_layer_are_the_whole(family: Any, form: str, tmp_path: Path) -> None:
    layer, path = family(4, 6, 2), tmp_path / "layer.onnx"
    report = export_onnx(layer, torch.randn(3, 2, 4), path, form=form, streaming=True)
    names = ["h", "c"][: len(report.states)]
    assert report.states == {f"{name}0": f"{name}_n" for name in names}
    x = torch.randn(12, 2, 4)
    zeros = {f"{name}0": np.zeros((2, 2, 6), np.float32) for name in names}
    sizes = [3, 3, 3, 3] if form == "unrolled" else [1, 4, 2, 5]
    parts = in_chunks(path, {"input": x.numpy(), **zeros}, {"input": 0}, sizes)
    np.testing.assert_allclose(np.concatenate(parts), layer(x)[0].detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_states_of_a_model_are_named_after_its_layers(form: str, tmp_path: Path) -> None:
    model, path = Tagger(), tmp_path / "tagger.onnx"
    report = export_onnx(model, torch.randint(20, (2, 3)), path, form=form, streaming=True)
    assert report.states == {
        "lower.h0": "lower.h_n",
        "lower.c0": "lower.c_n",
        "upper.h0": "upper.h_n",
    }
    tokens = torch.randint(20, (2, 6))
    shapes = [(2, 2, 6), (2, 2, 6), (1, 2, 5)]
    zeros = {
        name: np.zeros(shape, np.float32) for name, shape in zip(report.states, shapes, strict=True)
    }
    parts = in_chunks(path, {"tokens": tokens.numpy(), **zeros}, {"tokens": 1}, [3, 3])
    np.testing.assert_allclose(np.concatenate(parts, 1), model(tokens).detach().numpy(), atol=1e-6)
    labels = {each.case for each in verify(path, model, torch.randint(20, (2, 3))).comparisons}
    assert any(label.startswith("a sequence in chunks of ") for label in labels)


@pytest.mark.filterwarnings("ignore:an axis is fixed")
@pytest.mark.parametrize(
    ("model", "kwargs", "error", "message"),
    [
        (
            nn.GRU(4, 6, bidirectional=True),
            {},
            ExportError,
            "`model` is bidirectional, and cannot stream: its reverse",
        ),
        (
            nn.GRU(4, 6),
            {"lengths": torch.tensor([3, 2])},
            ExportError,
            "a streaming file has no `lengths`",
        ),
        (Doubled(), {}, ExportError, "the first state of `rnn` is computed by the model"),
        (Unfolded(), {}, ExportError, "no input has the steps of a recurrent layer as an axis"),
        (
            Smoothed(),
            {},
            VerificationError,
            r"a sequence in chunks of \d+(, \d+)+\. A chunk is not enough .* export without `streaming`",
        ),
    ],
)
def test_what_cannot_stream_is_refused(
    model: Any, kwargs: Any, error: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_onnx(
            model,
            torch.randn(3, 2, 4),
            tmp_path / "m.onnx",
            kwargs=kwargs,
            form="scan",
            streaming=True,
        )
    assert not list(tmp_path.iterdir())


def test_two_arguments_are_the_states_of_one_layer(tmp_path: Path) -> None:
    args = (torch.randn(5, 3, 4), torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))
    options: dict[str, Any] = {"form": "native", "streaming": True, "sizes": (2,)}
    report = export_onnx(Cut(), args, tmp_path / "m.onnx", **options)
    assert report.states == {"lower": "output_1", "upper": "output_2"}


def test_inputs_of_two_rates_do_not_come_in_chunks(tmp_path: Path) -> None:
    wave, frames = torch.randn(2, 8, 3), torch.randn(2, 4, 2)
    with pytest.raises(ExportError) as raised:
        export_onnx(
            TwoRates(), (wave, frames), tmp_path / "m.onnx", form="scan", streaming=True, sizes=(2,)
        )
    text = str(raised.value)
    assert text.startswith(
        "the model takes no sequence of 24 steps of `wave` and `frames`, in chunks of 8 each: "
    )
    assert ": RuntimeError: Sizes of tensors must match" in text
    assert text.endswith("export without `streaming`, or export the recurrent part by itself.")
    assert "list. A streaming file gets as many steps of each input at a time" in text


def test_joined_states_that_come_back_in_another_order_are_paired(tmp_path: Path) -> None:
    args = (torch.randn(5, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    options: dict[str, Any] = {"form": "native", "streaming": True, "sizes": (2,)}
    report = export_onnx(CellsFirst(), args, tmp_path / "m.onnx", **options)
    assert report.states == {"h": "output_2", "c": "output_1"}


@pytest.mark.parametrize("form", ["unrolled", "native"])
def test_one_argument_carries_the_states_of_all_layers(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = Carrier().eval(), tmp_path / "m.onnx"
    state = torch.randn(2, 3, 4)
    example = (torch.randn(3, 4, 4), state)
    report = export_onnx(model, example, path, form=form, streaming=True, sizes=(3,))
    assert report.states == {"state": "output_1"}
    labels = {each.case for each in report.comparisons}
    assert any(label.startswith("a sequence in chunks of ") for label in labels)
    x = torch.randn(3, 8, 4)
    feeds = {"x": x.numpy(), "state": state.numpy()}
    sizes = [4, 4] if form == "unrolled" else [1, 5, 2]
    parts = in_chunks(path, feeds, {"x": 1}, sizes)
    expected = model(x, state)[0].detach().numpy()
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "state", "message"),
    [
        (Assigned(), torch.zeros(2, 3, 4), None),
        (Flat(), torch.zeros(3, 8), None),
        (StackedLSTM(), torch.zeros(2, 2, 3, 4), None),
        (
            Swapped(),
            torch.zeros(2, 3, 4),
            "in chunks of .* or for states that come back in another order",
        ),
        (
            Apart(),
            torch.zeros(2, 3, 4),
            "parts of `state` are the first states of `layers.0` and `layers.1`, and no output of its shape has",
        ),
        (
            Both(),
            torch.zeros(1, 3, 4),
            "parts of `state` are the first states of `left` and `right`, and no output",
        ),
    ],
)
def test_how_a_state_is_cut_and_joined(
    model: Any, state: Tensor, message: str | None, tmp_path: Path
) -> None:
    steps_first = not isinstance(model, Carrier)
    x = torch.randn(5, 3, 4) if steps_first else torch.randn(3, 5, 4)
    arguments: dict[str, Any] = {"form": "scan", "streaming": True, "sizes": (2,)}
    if message is None:
        report = export_onnx(model.eval(), (x, state), tmp_path / "m.onnx", **arguments)
        assert report.states == {"state": "output_1"}
        return
    with pytest.raises(ExportError, match=message):
        export_onnx(model.eval(), (x, state), tmp_path / "m.onnx", **arguments)
