"""Functions that torch.export takes for the example's sizes only, or not at all, and their replacements."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_rnn.any_size import AnySize, size_reading
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.conversion import convert_for_inference
from deploy_rnn.errors import DynamicAxisError
from deploy_rnn.export import export_onnx
from deploy_rnn.known_numbers import KnownNumbers
from deploy_rnn.packaging.axes import Axis
from deploy_rnn.packaging.tracing import trace
from deploy_rnn.tensor_spec import SizeRange


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    dims = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}
    with AnySize(inside=__name__, model=nn.Identity()):
        return torch.export.export(model, (torch.randn(2, 4, 12),), dynamic_shapes=(dims,))


@pytest.mark.parametrize(
    "function",
    [
        nn.MaxPool1d(2),
        nn.MaxPool1d(3, stride=2, padding=1, dilation=2, ceil_mode=True),
        lambda x: torch.max_pool1d(x, [3], [1], [1]),
        lambda x: F.max_pool1d(x, kernel_size=(4,), stride=(3,)),
        lambda x: F.max_pool1d(x[0], 2).unsqueeze(0),
        lambda x: F.pad(x, (3, 1), mode="circular"),
        lambda x: F.pad(x[None], (0, 2, 1, 0), mode="circular")[0],
        nn.Conv1d(4, 2, 3, padding=1, padding_mode="circular"),
        nn.AdaptiveAvgPool1d(1),
        nn.AdaptiveAvgPool1d(5),
        nn.AdaptiveMaxPool1d(1),
        nn.AdaptiveMaxPool1d(9),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((3, 4)),
        nn.AdaptiveMaxPool2d((None, 2)),
        lambda x: torch.adaptive_avg_pool1d(x, [3]),
        lambda x: F.max_pool1d(x, x.size(2)),
        lambda x: torch.max_pool1d(x, [x.size(2)]),
        lambda x: F.avg_pool1d(x, (x.size(-1),)),
        lambda x: F.avg_pool2d(x, (1, x.shape[2])),
        lambda x: F.max_pool2d(x, x.size()[1:]),
        lambda x: F.adaptive_avg_pool3d(x[None], (None, 2, 3)),
        lambda x: F.adaptive_max_pool3d(x[None], (2, 2, 10)),
        lambda x: F.pad(x, (3, 1), value=2.0),
        lambda x: x + max(x[0, 0]) - min(x[0, :, 0]),
        lambda x: F.one_hot(x[0].argmax(-1), x.size(2)),
        lambda x: torch.distributions.Categorical(logits=x).probs,
        lambda x: torch.distributions.Normal(x, x.exp()).variance,
    ],
)
def test_the_numbers_are_the_same_for_every_size(function: Callable[[Tensor], Tensor]) -> None:
    program = exported(Function(function))
    for rows, steps in ((1, 7), (2, 12), (3, 31)):
        x = torch.randn(rows, 4, steps)
        actual, expected = program.module()(x), function(x)
        assert actual.dtype is expected.dtype
        torch.testing.assert_close(actual, expected)


class Clamping(nn.Module):
    """Clamps between numbers that are whole, or in float32, and others."""

    least: Tensor
    most: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("least", torch.tensor(-1))
        self.register_buffer("most", torch.tensor(0.5))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [
            torch.clamp(x, self.least, 0.25),
            torch.clip(x, max=self.most, min=-1),
            x.clamp(self.least, self.most),
            x.clip(min=self.least),
            (x + 0).clamp_(self.least, 0.25),
            x.double().clamp(self.least, 0.1),
            (10 * x).long().clamp(self.least, 2),
        ]


# PyTorch warns of its own code.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_a_clamp_between_a_tensor_and_a_number() -> None:
    program = exported(Clamping()).run_decompositions()
    x = torch.randn(3, 4, 7)
    torch.testing.assert_close(program.module()(x), Clamping()(x))


def normalized(x: Tensor) -> Tensor:
    """Over every axis but the first."""
    axes: list[int] = torch.arange(1, x.dim()).tolist()
    return x - x.mean(axes, keepdim=True)


def test_numbers_out_of_a_range_are_known() -> None:
    def function(x: Tensor) -> Tensor:
        axes = [int(axis) for axis in torch.arange(0, 4, 2)]
        return torch.jit.script_if_tracing(normalized)(x).sum(axes)

    x = torch.randn(3, 4, 7)
    torch.testing.assert_close(exported(Function(function)).module()(x), function(x))


class Framed(nn.Module):
    """Pads to whole frames, and computes by how much with the buffers of its kernel and stride."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 5, stride=3)
        self.register_buffer("size", torch.tensor(5), persistent=False)
        self.register_buffer("stride", torch.tensor(3), persistent=False)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        frames = torch.ceil((length - self.size) / self.stride + 1).to(torch.int64) - 1
        missing = frames * self.stride + self.size - length
        before, after = self.size - self.stride, missing
        if length <= max(before, after):
            x = F.pad(x, (0, 9))
        y: Tensor = self.conv(F.pad(x, (before, after), mode="reflect"))
        return y


def test_numbers_in_buffers_are_known() -> None:
    model = Framed()
    any_size = AnySize(inside=__name__, model=model)
    open_axes = ({2: torch.export.Dim.AUTO},)
    with any_size, any_size.known.of_buffers(model), torch.no_grad():
        program = torch.export.export(
            model, (torch.randn(1, 1, 14),), dynamic_shapes=open_axes, strict=False
        )
        for length in (12, 15, 16, 29):
            x = torch.randn(1, 1, length)
            torch.testing.assert_close(program.module()(x), model(x))


def test_a_number_that_is_changed_is_not_known() -> None:
    model = Framed()
    known = KnownNumbers()
    known[model.size] = 5
    known.note(torch.add, (model.size, 2), {}, result := torch.tensor(7))
    assert known[result] == 7
    known.note(Tensor.add_, (result, 1), {}, result)
    assert result not in known
    known.note(torch.add, (model.size, model.calls), {}, result)
    assert result not in known


def test_indices_of_a_maximum_are_left_to_pytorch() -> None:
    x = torch.randn(2, 4, 12)
    with AnySize(inside=__name__, model=nn.Identity()):
        values, indices = F.max_pool1d(x, 3, return_indices=True)
    torch.testing.assert_close(x.gather(2, indices), values)


class Recognizer(nn.Module):
    """Circular convolution, clamps between numbers of two kinds, a maximum over windows, a recurrent layer."""

    least: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 3, padding=1, padding_mode="circular")
        self.pool = nn.MaxPool1d(2)
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.register_buffer("least", torch.tensor(-1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(self.conv(x), self.least, 0.5).clamp(-1, 0.25)
        output: Tensor = self.rnn(self.pool(x).transpose(1, 2))[0]
        return output


def test_a_file_is_for_every_size(tmp_path: Path) -> None:
    """One row, too, which PyTorch's circular padding leaves out."""
    with pytest.warns(UserWarning, match="can have a size of 2 or more only"):
        report = export_onnx(
            Recognizer().eval(), torch.randn(2, 3, 10), tmp_path / "m.onnx", form="scan"
        )
    assert report.file.inputs[0].shape == ("B", 3, "T")
    assert report.ranges == {"T": SizeRange(2)}


def test_a_number_that_is_changed_in_place_is_another_one() -> None:
    with AnySize(inside=__name__, model=nn.Identity()):
        number = torch.arange(3).unbind()[0]
        number += 1
        assert int(number) == 1


class Shaped(nn.Module):
    """Reads sizes in one of the ways that TorchScript has."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "axis":
            return x + torch.zeros(x.size(0), 1, 1)
        if self.way == "shape":
            return x.reshape(x.shape)
        if self.way == "len":
            return x + len(x)
        return x + len([x])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize(
    ("way", "reading"),
    [
        ("axis", "axis 0 of `x`"),
        ("shape", "the sizes of `x`"),
        ("len", "axis 0 of `x`"),
        ("none", ""),
    ],
)
def test_what_scripted_code_reads(way: str, reading: str) -> None:
    part = torch.jit.freeze(torch.jit.script(Shaped(way).eval()), preserved_attrs=["training"])
    assert size_reading(part) == reading
    rows = torch.jit.trace(lambda x: x.reshape(x.size(0), -1), torch.randn(2, 3, 4))
    assert size_reading(rows) == "axis 0 of `x`"


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_scripted_part_that_fixes_an_axis_is_named(tmp_path: Path) -> None:
    """PyTorch reads all sizes of a tensor for its scripted code."""
    model = nn.Sequential(
        torch.jit.script(nn.Tanh()), torch.jit.script(Shaped("axis")), nn.GRU(3, 4)
    ).eval()
    x, path = torch.randn(6, 2, 3), tmp_path / "m.onnx"
    reason = r"\(the scripted part `1` reads axis 0 of `x`, and PyTorch traces"
    with pytest.warns(UserWarning, match=f"every axis is fixed: .* by itself {reason}"):
        export_onnx(model, x, path, form="scan")
    with pytest.raises(DynamicAxisError, match=f"the model fixes it at 6 {reason}.*; leave it"):
        export_onnx(model, x, path, form="scan", dynamic_shapes={"input": {0: "T"}})
    with pytest.raises(DynamicAxisError, match=f"the model fixes it at 6 {reason}"):
        trace(convert_for_inference(model), ExampleCall.of(model, x), [{0: Axis("T")}])


def test_a_class_that_one_hot_does_not_have_is_refused() -> None:
    """As many classes as the input has steps."""
    program = exported(Function(lambda x: F.one_hot(x[0].long(), x.size(2))))
    x = torch.zeros(1, 4, 7)
    for wrong in (-1, 7):
        x[0, 0, 0] = wrong
        with pytest.raises(IndexError):
            program.module()(x)
