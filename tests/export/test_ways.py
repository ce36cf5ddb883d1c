"""`deploy_rnn.check`: each way goes or is refused with its reason, and nothing is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn.errors import ExportError
from deploy_rnn.export import ways
from deploy_rnn.export.ways import NAMES, Way, first_sentence


class Tagger(nn.Module):
    def __init__(self, bidirectional: bool = False) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, bidirectional=bidirectional, batch_first=True)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.rnn(x)[0])


class Branching(nn.Module):
    """Doubles its outputs beyond twenty steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output * 2 if x.size(1) > 20 else output


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways that need minutes of a C++ compiler are refused."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise ExportError("there is no compiler. Install one.")

    monkeypatch.setattr(ways, "compile", refuse)
    monkeypatch.setattr(ways, "package", refuse)


@pytest.mark.slow
def test_every_way_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Tagger().train()
    x = torch.randn(2, 6, 3)
    check = deploy_rnn.check(model, (x,))
    assert [way.name for way in check.ways] == list(NAMES)
    assert {way.name: way.reason for way in check.ways} == dict.fromkeys(NAMES, "")
    assert all(way.milliseconds and way.milliseconds > 0 for way in check.ways)
    assert check.milliseconds > 0
    assert {way.name: way.sizes for way in check.ways} == {
        **dict.fromkeys(NAMES, "any B and T"),
        "unrolled": "any B, T=6 only",
    }
    assert model.training
    assert list(tmp_path.iterdir()) == []
    assert str(check).startswith("x: float32 [2, 6, 3]: ")


@pytest.mark.usefixtures("without_compiler")
def test_a_way_that_is_refused_says_why() -> None:
    check = deploy_rnn.check(Tagger(bidirectional=True), torch.randn(2, 6, 3))
    assert {way.name for way in check.ways if way.goes} == {"native", "scan", "unrolled"}
    assert check["streaming"].reason == (
        "`rnn` is bidirectional, and cannot stream: its reverse direction starts at the last step, which the first "
        "chunk does not have."
    )
    assert check["streaming"].message.endswith("without `streaming`.")
    assert check[".pt2"].reason == "there is no compiler."
    assert not check["compile"].goes
    assert "  compile: refused: there is no compiler." in str(check).splitlines()
    fields = {way["name"]: way for way in check.to_dict()["ways"]}
    assert fields["unrolled"]["fixed"] == {"T": 6}
    assert fields["scan"]["goes"]


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.filterwarnings("ignore:axis 1 of `x`, T, can have a size of 1 to 20 only:UserWarning")
def test_a_way_for_one_side_of_a_branch() -> None:
    check = deploy_rnn.check(Branching(), torch.randn(2, 6, 3))
    assert check["scan"].sizes == "any B, T of 1 to 20"
    assert check["unrolled"].sizes == "any B, T=6 only"
    fields = {way["name"]: way for way in check.to_dict()["ways"]}
    assert json.loads(json.dumps(fields["scan"]["ranges"])) == {"T": [1, 20]}


class OnlyTraced(Branching):
    """A file is made from its graph: TorchScript refuses its code."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = getattr(self, "rn" + "n")(x)[0]
        return output * 2 if x.size(1) > 20 else output


@pytest.mark.parametrize(
    ("model", "sizes"), [(Branching, "any B and T"), (OnlyTraced, "any B, T of 1 to 20")]
)
@pytest.mark.filterwarnings("ignore:axis 1 of `x`, T, can have a size of 1 to 20 only:UserWarning")
def test_a_file_has_both_sides_of_a_branch_or_one(
    model: type[Branching], sizes: str, tmp_path: Path
) -> None:
    """What is scripted has both; what is made from a graph has one."""
    candidate = ways.Candidate(model(), torch.randn(2, 6, 3), None, tmp_path)
    judges = candidate.judges()
    judges["scan"]()
    assert candidate.way(".pt", 1.0, judges[".pt"]()).sizes == sizes


@pytest.mark.usefixtures("without_compiler")
def test_lengths_of_a_bare_layer() -> None:
    layer = nn.LSTM(3, 4)
    check = deploy_rnn.check(layer, torch.randn(6, 2, 3), kwargs={"lengths": torch.tensor([6, 2])})
    assert [spec.name for spec in check.inputs] == ["input", "lengths"]
    assert check["native"].sizes == "any T and B"
    assert "has no `lengths`" in check["streaming"].reason


def test_an_error_that_nobody_expected_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, without_compiler: None
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("a graph break\n\n  of five pages")

    monkeypatch.setattr(ways, "compile", fail)
    check = deploy_rnn.check(Tagger(), torch.randn(2, 6, 3))
    assert check["compile"].reason == "RuntimeError: a graph break."


def test_a_model_that_fails_on_its_example_cannot_be_judged() -> None:
    with pytest.raises(ExportError, match="the model itself fails on its arguments: RuntimeError"):
        deploy_rnn.check(Tagger(), torch.randn(2, 6, 9))
    with pytest.raises(TypeError, match=r"does not fit Tagger\.forward"):
        deploy_rnn.check(Tagger(), (torch.randn(2, 6, 3), 7))


class Weights(nn.Module):
    """Gives other numbers when it is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x * (2.0 if torch.compiler.is_compiling() else 1.0))[0]


@pytest.mark.slow
def test_a_compiled_model_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise ExportError("not tried.")

    monkeypatch.setattr(ways, "package", refuse)
    check = deploy_rnn.check(Weights(), torch.randn(6, 2, 3))
    assert check["compile"].reason.startswith(
        "the compiled model is not the model: output 0 differs by "
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a is b. Use c.", "a is b."),
        ("model.py:3: `x.y = 1. + 2`: no. Use `c`.", "model.py:3: `x.y = 1. + 2`: no."),
        ("what\n  is wrong:\n\nthe graph", "what is wrong."),
        ("needs 1.5 GB", "needs 1.5 GB."),
        ("`a` is b. `c` is d.", "`a` is b."),
    ],
)
def test_the_first_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


def test_sizes_in_words() -> None:
    assert Way("scan", 1.0, open=("B", "T")).sizes == "any B and T"
    assert Way("unrolled", 1.0, open=(), fixed={"T": 5}).sizes == "T=5 only"
    assert Way("native", 1.0, open=()).sizes == "the example's sizes only"
    assert str(Way("compile", 1.0)) == "compile: goes, 1 ms"
