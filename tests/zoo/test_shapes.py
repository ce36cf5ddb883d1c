"""Small modules in the shapes of the zoo's models: how each leads its input to a recurrent layer, and back.

The zoo itself is not part of the tests. Shapes that other tests have are not repeated: rows that are packed
(capture/test_packing.py), strided convolutions and upsampling (capture/test_related_axes.py), a squeezed channel
(capture/test_squeezing.py), hooks and weight norm (test_export_onnx.py), streams (capture/test_streaming.py).
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deploy_rnn.export import export_onnx
from deploy_rnn.serving import Engine


class Channels(nn.Module):
    """Demucs's BLSTM: channels first, the layer's steps last, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, bidirectional=True)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(self.lstm(x.permute(2, 0, 1))[0])
        return y.permute(1, 2, 0) + x


class Padded(nn.Module):
    """Encodec: causal convolutions whose padding is computed from the length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 4, stride=2)
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        frames = (x.shape[-1] - 4 + 2) / 2 + 1
        extra = (math.ceil(frames) - 1) * 2 + 2 - x.shape[-1]
        y = self.conv(functional.pad(x, (2, extra)))
        return y + self.lstm(y.permute(2, 0, 1))[0].permute(1, 2, 0)


class Beside(nn.Module):
    """LSTM-FCN: the last step beside a mean over convolutions of the same series."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.conv = nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        last = self.lstm(x.permute(0, 2, 1))[0][:, -1]
        return torch.cat([last, self.conv(x).mean(-1)], 1)


class Spectrogram(nn.Module):
    """Open-Unmix: four axes become rows of one linear layer, and the mask multiplies the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2 * 3, 4)
        self.lstm = nn.LSTM(4, 2, bidirectional=True)
        self.last = nn.Linear(8, 2 * 3)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(3, 0, 1, 2)
        steps, batch, channels, bins = y.shape
        hidden = self.first(y.reshape(-1, channels * bins)).reshape(steps, batch, 4)
        hidden = torch.cat([hidden, self.lstm(hidden)[0]], -1)
        mask = self.last(hidden.reshape(-1, 8)).reshape(steps, batch, channels, bins)
        return (torch.relu(mask) * y).permute(1, 2, 3, 0)


class Scaled(nn.Module):
    """DeepAR: divided by the mean of what was observed, lags beside it, and multiplied again."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 4, num_layers=2, batch_first=True)
        self.score = nn.Linear(4, 1)

    def forward(self, past: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        count = observed.sum(1, keepdim=True).clamp(min=1)
        scale = (past.abs() * observed).sum(1, keepdim=True) / count + 1e-3
        scaled = past / scale
        lags = torch.stack([scaled[:, 1:], scaled[:, :-1]], -1)
        return self.score(self.lstm(lags)[0]).squeeze(-1) * scale, scale


class Pooled(nn.Module):
    """PyanNet: convolutions with poolings and instance norms on a waveform, then layers in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(1, affine=True)
        self.conv = nn.Conv1d(1, 4, 5, stride=2)
        self.layers = nn.ModuleList(
            [nn.LSTM(4, 2, batch_first=True, bidirectional=True) for _ in range(2)]
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.max_pool1d(self.conv(self.norm(x)).abs(), 2).transpose(1, 2)
        for layer in self.layers:
            y, _ = layer(y)
        return functional.log_softmax(y, -1)


class Layers(nn.Module):
    """JumpingKnowledge: a list of tensors is the sequence, and its rows are the nodes of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, bidirectional=True, batch_first=True)
        self.attention = nn.Linear(6, 1)

    def forward(self, xs: list[Tensor]) -> Tensor:
        x = torch.stack(xs, 1)
        weights = torch.softmax(self.attention(self.lstm(x)[0]).squeeze(-1), -1)
        return (x * weights.unsqueeze(-1)).sum(1)


class Columns(nn.Module):
    """EasyOCR: the columns of a picture's features are the steps, over the mean of their height."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.height = nn.AdaptiveAvgPool2d((None, 1))
        self.lstm = nn.LSTM(4, 3, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.conv(x)).permute(0, 3, 1, 2)
        output: Tensor = self.lstm(self.height(features).squeeze(3))[0]
        return output


class Handed(nn.Module):
    """A temporal fusion transformer: a decoder goes on from the states of an encoder, and attends to both."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 4, batch_first=True)
        self.decoder = nn.LSTM(3, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, past: Tensor, future: Tensor) -> Tensor:
        encoded, states = self.encoder(past)
        decoded, _ = self.decoder(future, states)
        both = torch.cat([encoded, decoded], 1)
        attended: Tensor = self.attention(decoded, both, both)[0]
        return decoded + attended


SHAPES: dict[str, tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]] = {
    "demucs": (Channels(), (torch.randn(2, 4, 6),), (torch.randn(3, 4, 9),)),
    "encodec": (Padded(), (torch.randn(2, 2, 16),), (torch.randn(3, 2, 22),)),
    "tsai": (Beside(), (torch.randn(2, 3, 6),), (torch.randn(3, 3, 9),)),
    "openunmix": (Spectrogram(), (torch.randn(2, 2, 3, 6),), (torch.randn(3, 2, 3, 9),)),
    "gluonts": (
        Scaled(),
        (torch.rand(2, 6), torch.ones(2, 6)),
        (torch.rand(3, 9), torch.ones(3, 9)),
    ),
    "pyannote": (Pooled(), (torch.randn(2, 1, 40),), (torch.randn(3, 1, 61),)),
    "easyocr": (Columns(), (torch.randn(2, 1, 6, 8),), (torch.randn(3, 1, 6, 11),)),
    "gluonts_tft": (
        Handed(),
        (torch.randn(2, 6, 3), torch.randn(2, 4, 3)),
        (torch.randn(3, 9, 3), torch.randn(3, 5, 3)),
    ),
    "torch_geometric": (
        Layers(),
        ([torch.randn(5, 4), torch.randn(5, 4)],),
        ([torch.randn(7, 4), torch.randn(7, 4)],),
    ),
}


@pytest.mark.filterwarnings("ignore:axis 2 of `x`, T, can have a size of 7 or more only")
@pytest.mark.filterwarnings("ignore:an axis is fixed. the recurrent layers have steps:UserWarning")
@pytest.mark.filterwarnings("ignore:axis 2 of `x`. fixed at the size in the example:UserWarning")
@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_a_model_of_the_zoo(name: str, tmp_path: Path) -> None:
    """It is exported with its batch and steps open, and answers at other sizes than the example's."""
    model, example, other = SHAPES[name]
    report = export_onnx(model, example, tmp_path / "m.onnx", form="scan")
    tensors = other[0] if isinstance(other[0], list) else other
    feeds = {spec.name: one.numpy() for spec, one in zip(report.inputs, tensors, strict=True)}
    outputs = list(Engine(tmp_path / "m.onnx").run(feeds).values())
    with torch.no_grad():
        expected = model(*other)
    if isinstance(expected, Tensor):
        expected = (expected,)
    for one, output in zip(expected, outputs, strict=True):
        np.testing.assert_allclose(output, one.numpy(), atol=1e-5)
