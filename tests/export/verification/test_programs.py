"""`verify` against a model of which only its program is left: TorchScript, or an `ExportedProgram`."""

import inspect
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from deploy_rnn import convert
from deploy_rnn.checking.program import runnable
from deploy_rnn.errors import ConversionError, ExportError, VerificationError
from deploy_rnn.export import export_onnx, verify
from deploy_rnn.export.cli.target import load_target


class Scored(nn.Module):
    """An LSTM and a linear layer; `bias` may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(me, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        scores = me.head(me.rnn(x)[0]) * scale
        if bias is not None:
            scores = scores + bias
        return scores


MODEL = Scored().eval()
ARGS = (torch.randn(2, 5, 3), torch.tensor(2.0))


def loaded(program: Any) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(program, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def exported() -> Any:
    shapes = {"x": {0: Dim("B", max=300), 1: Dim("T", max=300)}, "scale": None}
    return torch.export.export(convert(MODEL), ARGS, dynamic_shapes=shapes)


OF_ONE_SIZE = "exported of the size"

PROGRAMS: dict[str, Callable[[], Any]] = {
    "scripted": lambda: torch.jit.script(MODEL),
    "loaded": lambda: loaded(torch.jit.script(MODEL)),
    "traced": lambda: torch.jit.trace(MODEL, ARGS),
    "frozen": lambda: loaded(torch.jit.freeze(torch.jit.script(MODEL))),
    "exported": exported,
    "module of exported": lambda: exported().module(),
    OF_ONE_SIZE: lambda: torch.export.export(MODEL, ARGS),
}

WITHOUT_FLOAT64 = ("traced", "frozen")
"""Their code names float32, or has the weights in it."""


def program_of(kind: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PyTorch says of its own
        return PROGRAMS[kind]()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "scored.onnx"
    export_onnx(MODEL, ARGS, path)
    return path


@pytest.fixture(scope="module")
def wrong_file(file: Path) -> Path:
    """The same with one weight changed."""
    model = onnx.load(file)
    weight = next(one for one in model.graph.initializer if numpy_helper.to_array(one).size == 8)
    values = numpy_helper.to_array(weight).copy()
    values.flat[3] += 0.002
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    path = file.with_name("wrong.onnx")
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", PROGRAMS)
def test_the_file_of_a_program_is_right_and_a_wrong_one_is_found(
    kind: str, file: Path, wrong_file: Path
) -> None:
    program = program_of(kind)
    x, scale = ARGS
    kwargs = None if "exported" in kind else {"scale": scale}
    report = verify(file, program, (x,) if kwargs else ARGS, kwargs=kwargs)
    assert not report.failures
    assert any("B=7" in one.case for one in report.comparisons) == (kind != OF_ONE_SIZE)
    assert ("refuses B=7" in "".join(report.left_out)) == (kind == OF_ONE_SIZE)
    assert ("float64" in "".join(report.left_out)) == (kind in WITHOUT_FLOAT64)
    with pytest.raises(VerificationError, match=r"wrong\.onnx is not the model"):
        verify(wrong_file, program, ARGS)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_scripted_forward_has_the_names_and_defaults_that_it_was_written_with() -> None:
    forward = runnable(torch.jit.script(MODEL)).forward
    assert str(inspect.signature(forward)) == "(x, scale, bias=None)"


class Counting(nn.Module):
    """A state between the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.last + x.sum(0)
        return self.last


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_state_of_a_scripted_model_is_named_and_stays_as_it_was(file: Path) -> None:
    model = torch.jit.script(Counting())
    with pytest.raises(ExportError, match=r"keeps a state.*`program\.last`"):
        verify(file, model, torch.ones(2, 3))
    assert model.last.tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_scripted_module_without_a_forward_is_refused(file: Path) -> None:
    with pytest.raises(
        ConversionError, match="`model` is a TorchScript module without a `forward`"
    ):
        verify(file, torch.jit.script(nn.ModuleList([nn.Linear(3, 4)])), ARGS)


def test_the_command_line_takes_a_program_that_a_function_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = torch.export.export(nn.Linear(3, 4), (torch.zeros(2, 3),))
    made = ModuleType("made_programs")
    monkeypatch.setattr(made, "exported", lambda: (program, (torch.zeros(2, 3),)), raising=False)
    monkeypatch.setitem(sys.modules, "made_programs", made)
    assert load_target("made_programs:exported").model is program
