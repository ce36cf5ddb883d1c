"""What models take and return besides tuples of tensors: each exports under its own names, or says what to do."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy_rnn import package
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import ExportError
from deploy_rnn.export import export_bundle, export_onnx, verify
from deploy_rnn.serving import Engine

X = torch.randn(2, 5, 3)


class Returns(nn.Module):
    """Returns what a function makes of the model itself, its input, and the output and state of its layer."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.register_buffer("means", torch.randn(3))
        self.make = make

    def forward(self, x: Tensor) -> Any:
        output, state = self.rnn(x)
        return self.make(self, x, output, state)


class Scores(NamedTuple):
    logits: Tensor
    state: Tensor


@dataclass
class Known:
    logits: Tensor
    state: Tensor


torch.export.register_dataclass(Known, serialized_type_name="tests.export.test_structures.Known")


@dataclass
class Unknown:
    logits: Tensor
    state: Tensor | None = None


RESULTS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "a dict": (lambda m, x, y, h: {"logits": y, "state": h}, ["logits", "state"]),
    "a subclass's order": (lambda m, x, y, h: OrderedDict(b=y, a=h), ["b", "a"]),
    "a named tuple": (lambda m, x, y, h: Scores(y, h), ["logits", "state"]),
    "a dataclass": (lambda m, x, y, h: Known(y, h), ["logits", "state"]),
    "nested": (
        lambda m, x, y, h: {"logits": {"a": y, "b": [h, y > 0]}, "best": y.argmax(-1)},
        ["logits_a", "logits_b_0", "logits_b_1", "best"],
    ),
    "tuples within tuples": (lambda m, x, y, h: (y, (h, x)), ["output_0", "output_1", "output_2"]),
    "a dict within a tuple": (lambda m, x, y, h: (y, {"h": h}), ["output_0", "output_1_h"]),
    "a list of one": (lambda m, x, y, h: [y], ["output"]),
    "the input's own name": (lambda m, x, y, h: {"x": y, "x_": x}, ["x_", "x__"]),
    "names that are none": (lambda m, x, y, h: {"a.b": y, "a b": h}, ["a_b", "a_b_"]),
    "one tensor twice": (lambda m, x, y, h: {"a": y, "b": y, "x": x}, ["a", "b", "x_"]),
    "constants": (
        lambda m, x, y, h: (y, m.means, m.rnn.bias_hh_l0, m.means, torch.zeros(0, 2)),
        ["output_0", "output_1", "output_2", "output_3", "output_4"],
    ),
    "empty": (lambda m, x, y, h: {"y": y, "none": y[:, :0]}, ["y", "none"]),
    "empty at one step": (
        lambda m, x, y, h: {"y": y, "pairs": y[:, 1:] - y[:, :-1]},
        ["y", "pairs"],
    ),
    "numbers": (
        lambda m, x, y, h: {"y": y, "size": 4, "steps": y.size(1), "rate": 0.5, "ok": True},
        ["y", "size", "steps", "rate", "ok"],
    ),
    "scalars": (lambda m, x, y, h: (y.mean(), y.argmax()), ["output_0", "output_1"]),
}


@pytest.mark.parametrize(("make", "names"), RESULTS.values(), ids=list(RESULTS))
def test_results_have_their_names(
    make: Callable[..., Any], names: list[str], tmp_path: Path
) -> None:
    model = Returns(make).eval()
    report = export_onnx(model, (X,), tmp_path / "a.onnx", form="native")
    assert [spec.name for spec in report.outputs] == names
    x = torch.randn(3, 7, 3)
    outputs = Engine(tmp_path / "a.onnx").run({"x": x.numpy()})
    expected = ExampleCall.of(model, (x,)).run(model)
    for output, tensor in zip(outputs.values(), expected, strict=True):
        assert output.dtype == tensor.numpy().dtype
        np.testing.assert_allclose(output, tensor.numpy(), atol=1e-5)


def test_a_bundle_has_the_names_too(tmp_path: Path) -> None:
    model = Returns(lambda m, x, y, h: {"logits": y, "bias": m.means, "classes": 4}).eval()
    export_bundle(model, (X,), tmp_path / "bundle", forms=["native"])
    outputs = Engine(tmp_path / "bundle").run({"x": torch.randn(3, 7, 3).numpy()})
    assert list(outputs) == ["logits", "bias", "classes"]
    assert outputs["classes"] == 4


def test_a_string_is_refused(tmp_path: Path) -> None:
    model = Returns(lambda m, x, y, h: {"y": y, "kind": "tagger", "loss": None}).eval()
    with pytest.raises(ExportError, match=r"`\['kind'\]` of what the model returns is of type str"):
        export_onnx(model, (X,), tmp_path / "a.onnx", form="native")


class Box:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda m, x, y, h: Unknown(y), r"call torch\.export\.register_dataclass\(Unknown\) once"),
        (
            lambda m, x, y, h: (h, Box(y)),
            r"register Box with torch\.utils\._pytree\.register_pytree_node",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_result_that_pytorch_does_not_see(
    make: Callable[..., Any], remedy: str, suffix: str, tmp_path: Path
) -> None:
    model = Returns(make).eval()
    write = export_onnx if suffix == ".onnx" else package
    with pytest.raises(
        ExportError, match=f"the result of the model (is|contains) .*: {remedy}, or use a"
    ):
        write(model, (X,), tmp_path / f"a{suffix}")


class Takes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, batch: Any, *, scale: Any = None, shift: Any = None) -> Tensor:
        x = batch.logits if scale is None else batch.logits * scale
        if shift is not None:
            x = x + shift
        output: Tensor = self.rnn(x, batch.state)[0]
        return output


def test_an_argument_that_pytorch_does_not_see(tmp_path: Path) -> None:
    for args in [(Unknown(X),), ([X, Unknown(X)],)]:
        with pytest.raises(
            ExportError,
            match=r"`batch` (is|contains) a dataclass of type `Unknown`, in which PyTorch does",
        ):
            export_onnx(Takes(), args, tmp_path / "a.onnx", form="unrolled")


@pytest.mark.parametrize("cls", [Scores, Known])
@pytest.mark.parametrize("shapes", [None, "by name", "in order"])
def test_arguments_of_every_kind(cls: Any, shapes: str | None, tmp_path: Path) -> None:
    """A class, a keyword alone, and one that is left out."""
    model = Takes().eval()
    args = (cls(X, torch.randn(1, 2, 4)),)
    kwargs = {"scale": torch.rand(2, 5, 3), "shift": None}
    options: dict[str, Any] = {"form": "native"}
    if shapes is not None:
        x_axes = {0: "N", 1: "S"}
        parts: Any = [x_axes, {1: "N"}]
        if shapes == "by name" and cls is Known:
            parts = {"logits": x_axes, "state": {1: "N"}}
        options["dynamic_shapes"] = {"batch": parts, "scale": x_axes}
    report = export_onnx(model, args, tmp_path / "a.onnx", kwargs=kwargs, **options)
    assert [spec.name for spec in report.inputs] == ["batch_logits", "batch_state", "scale"]
    names = ("N", "S") if shapes else ("B", "T")
    assert report.inputs[0].shape == (*names, 3)
    assert not verify(tmp_path / "a.onnx", model, args, kwargs=kwargs).failures
