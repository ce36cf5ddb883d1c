"""What is said of a model that no file can be made of: one or two sentences, the model's line, and what to do."""

import errno
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploy_rnn import convert, package
from deploy_rnn.errors import DeployError, ExportError, LoadError
from deploy_rnn.export import export_bundle, export_onnx, verify
from deploy_rnn.export.verification import on_onnxruntime
from deploy_rnn.serving import Engine

X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


@dataclass
class Scores:
    values: Tensor


class Model(nn.Module):
    """A GRU, and a function in the place of what comes after it."""

    def __init__(self, after: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.rnn(x)[0])


class Lazy(Model):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x)[0])


class Keywords(Model):
    def forward(self, **arguments: Tensor) -> Any:
        return self.rnn(arguments["x"])[0]


@torch.library.custom_op("test_messages::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return 2 * x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def through_numpy(y: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(y.numpy()))


def size_in_numpy(y: Tensor) -> Tensor:
    return y + torch.from_numpy(np.arange(y.size(0)))[:, None, None]


def printed(y: Tensor) -> Tensor:
    str(float(y.mean()))
    return y


def of_operator(y: Tensor) -> Tensor:
    doubled_y: Tensor = doubled(y)
    return doubled_y


def message(model: Any, args: Any = X, **options: Any) -> str:
    """What export_onnx says in its own words."""
    with pytest.raises((DeployError, TypeError)) as raised:
        export_onnx(model, args, "m.onnx", form="scan", **options)
    assert not list(Path().iterdir())
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("a", "what the model returns is of type str (='a'); a file returns tensors, alone or in tuples, lists"),
        ({"y": X, "n": "a"}, "`['n']` of what the model returns is of type str (='a'); a file"),
        ((X, Scores(X)), "the result of the model contains a dataclass of type `Scores`, in which PyTorch does"),
        (Scores(X), "the result of the model is a dataclass of type `Scores`, in which PyTorch does not look"),
        (3, "the model returns no tensor, so that a file of it would have no output"),
        (None, "the model returns no tensor, so that a file of it would have no output"),
        (torch.view_as_complex(X.reshape(2, 5, 2, 2)), "is complex64, and ONNX has no complex outputs; let"),
        (X.to_sparse(), "what the model returns is torch.sparse_coo; let `forward` return a dense tensor."),
    ],
)  # fmt: skip
def test_what_a_file_cannot_return(result: Any, text: str) -> None:
    assert text in message(Model(lambda y: result))


def test_a_complex_argument() -> None:
    model = Model(lambda y: y)
    z = torch.view_as_complex(X.reshape(2, 5, 2, 2))
    assert message(model, z).startswith(
        "`x` is complex64, and ONNX has no complex inputs; let `forward` take torch.view_as_real"
    )


def test_a_lazy_layer_that_has_not_run() -> None:
    model = Lazy()
    assert message(model).startswith("`head` is a torch.nn.LazyLinear that has not run, ")
    model(X)
    export_onnx(model, X, "m.onnx", form="scan")


def test_weights_without_values() -> None:
    text = message(Model().to("meta"))
    assert text.startswith("`weight_ih_l0` of `rnn` is on the meta device, ")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", [nn.GRU, nn.Linear])
def test_a_quantized_model(layer: Any) -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), Model()), {layer})
    assert "` is a quantized " in message(model)


def test_weights_that_were_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = Model()
        x = X.clone()
    export_onnx(model, x, "m.onnx", form="scan")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (X.to("meta"), "`x` is on the meta device, where tensors have no values."),
        (X.to_sparse(), "`x` is torch.sparse_coo, and must be dense (torch.strided)."),
        ((X.tolist(),), "`args` has no torch.Tensor in it (but float); give example tensors."),
        (5, "`args` must be a tuple of arguments, or one tensor, got int."),
        (None, "`args` must be a tuple of arguments, or one tensor, got NoneType."),
        ((X, X), "`args` does not fit Model.forward: too many positional arguments."),
        (X.double(), "the model itself fails on its arguments: ValueError: RNN input dtype"),
    ],
)
def test_arguments_that_no_model_takes(args: Any, text: str) -> None:
    assert text in message(Model(), args)


def test_keywords_without_a_parameter() -> None:
    text = "`x` reaches Keywords.forward through its `**arguments`; give the forward a parameter of that name."
    assert message(Keywords(), (), kwargs={"x": X}) == text
    assert "`kwargs` must be a dict of arguments by name, got list." in message(
        Model(), X, kwargs=[X]
    )


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ("B", "`dynamic_shapes` (='B') must be a dict by argument, such as {'x': {0: 'B'}}."),
        ({"x": {"0": "B"}}, "`dynamic_shapes` has axis '0' for `x`; an axis is a whole number, such as 0."),
    ],
)  # fmt: skip
def test_dynamic_shapes_of_another_kind(shapes: Any, text: str) -> None:
    assert message(Model(), dynamic_shapes=shapes) == text


@pytest.mark.parametrize(
    ("after", "line", "text"),
    [
        (through_numpy, "np.tanh(y.numpy()", "the model goes through numpy here, "),
        (size_in_numpy, "np.arange(y.size(0))", "the model goes through numpy here, "),
        (printed, "str(float(y.mean()))", "the model takes a number out of a tensor here, or before, as"),
        # torch.onnx keeps the line of the forward.
        (of_operator, "self.after(self.rnn(x)[0])", "ONNX has no operator for `test_messages.doubled`, and"),
    ],
)  # fmt: skip
def test_the_line_and_what_to_do(
    after: Any, line: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shown_line, _, rest = message(Model(after)).partition("`: ")
    assert shown_line.startswith(f"{__file__}:")
    assert line in shown_line
    assert rest.startswith(text)
    assert capfd.readouterr() == ("", "")


class LoopOverTrimmedSteps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 3, batch_first=True)
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        padded, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        state = x.new_zeros(x.shape[0], 4)
        for step in range(padded.shape[1]):
            state = self.cell(padded[:, step], state)
        return state


def test_a_loop_over_steps_that_padding_trims() -> None:
    text = message(LoopOverTrimmedSteps(), (torch.randn(2, 5, 3), torch.tensor([5, 3])))
    assert "range(padded.shape[1])" in text
    assert "let pad_packed_sequence have `total_length=x.size(...)`." in text


class TakenApart(Model):
    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        output = self.rnn(x)[0]
        return torch.stack([output[row, steps - 1] for row, steps in enumerate(lengths.tolist())])


def test_an_axis_that_nobody_named_and_the_model_fixes() -> None:
    text = message(TakenApart(), (X, torch.tensor([5, 3])))
    start, _, rest = text.partition("), although it is the batch or the steps")
    assert start.startswith(
        "axis 0 of `lengths` cannot be dynamic: the model fixes it at 2 (taken apart in "
    )
    assert "lengths.tolist()" in start
    assert rest
    assert "leave it out" not in text


def test_a_full_disk_is_not_an_error_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    for way in (partial(export_onnx, form="scan"), export_bundle):
        with pytest.raises(OSError, match=r"No space left on device: '.*/out'$") as raised:
            way(Model(), X, "out")
        assert raised.value.errno == errno.ENOSPC
    # The forms are measured in a temporary folder, which may be the one that is full.
    with pytest.raises(OSError, match=r"No space left on device: '.*/scan\.onnx'$"):
        export_onnx(Model(), X, "out")
    monkeypatch.setattr(torch.jit.RecursiveScriptModule, "save", refuse_to_write)
    with pytest.raises(ExportError, match="the file cannot be written; is there enough space"):
        package(nn.GRU(4, 8), X, "m.pt")


def refuse_to_write(*_: Any, **__: Any) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")


def test_a_warning_is_shown_at_the_line_of_the_user() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 8)

        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            output: Tensor = self.rnn(x)[0] * n
            return output

    for way in (export_onnx, export_bundle):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            way(Constant(), (X, torch.tensor(3)), "m.onnx")
        files = {entry.filename for entry in caught}
        assert any("has one value all over" in str(entry.message) for entry in caught)
        assert files == {__file__}
        Path("m.onnx").unlink() if Path("m.onnx").is_file() else None


def test_no_temporary_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> Any:
        raise LoadError(f"onnxruntime cannot open {str(path)!r}: Load model from {path} failed")

    monkeypatch.setattr(on_onnxruntime, "open_session", refuse)
    text = message(Model())
    assert text == "onnxruntime cannot open 'm.onnx': Load model from m.onnx failed"


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no devices")
def test_a_device_is_not_replaced() -> None:
    with pytest.raises(FileExistsError, match="'/dev/null' is not an ordinary file, and must not"):
        export_onnx(Model(), X, "/dev/null", form="unrolled")


def test_a_folder_without_the_right_to_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    for way in (export_onnx, export_bundle):
        with pytest.raises(PermissionError, match=r"nothing can be written in '.*'; give another"):
            way(Model(), X, folder / "m.onnx")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"forms": "scan"}, "`forms` (='scan') must be a list of names, such as ['scan']."),
        ({"buckets": 8}, "`buckets` (=8) must be whole numbers from 1, such as (32, 128)."),
        ({"buckets": (0, 4)}, "`buckets` (=(0, 4)) must be whole numbers from 1, such as (32, 128)."),
        ({"buckets": ("8",)}, "`buckets` (=('8',)) must be whole numbers from 1, such as (32, 128)."),
    ],
)  # fmt: skip
def test_options_of_a_bundle(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ExportError) as raised:
        export_bundle(Model(), X, "bundle", **options)
    assert str(raised.value) == text


def test_what_is_no_path_model_or_number() -> None:
    with pytest.raises(TypeError, match="a path must be a string or a Path, got NoneType"):
        export_onnx(Model(), X, None, form="unrolled")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`atol` \(='1'\) must be a number, got str"):
        export_onnx(Model(), X, "m.onnx", atol="1", form="unrolled")  # type: ignore[arg-type]
    with pytest.raises(
        FileNotFoundError, match=r"is a folder; give an \.onnx file, such as one of"
    ):
        verify(".", Model(), X)
    with pytest.raises(
        ValueError, match=r"`threads` \(='2'\) must be a whole number from 1 to 1024, or"
    ):
        Engine("m.onnx", threads="2")  # type: ignore[arg-type]
    for model in ("model.pt", None):
        with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module, got (str|None)"):
            convert(model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got the class Model; give an instance of it"):
        convert(Model)  # type: ignore[arg-type]
