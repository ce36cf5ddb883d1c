"""docs/adding-a-cell.md, followed literally: its code runs, prints what it promises, and its cell is right."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn.export import export_onnx

PAGE = (Path(__file__).parents[2] / "docs/adding-a-cell.md").read_text(encoding="utf-8")


def code(page: str) -> str:
    """All blocks, in order, as one file."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))


def imported(source: str, path: Path) -> ModuleType:
    """A real module: TorchScript reads its source, and torch.compile looks for it by name."""
    path.write_text(source, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        return importlib.import_module(path.stem)


@pytest.fixture(scope="module")
def cls(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The class of the page, from the blocks that define it."""
    definitions, _, _ = PAGE.partition("## Run")
    return imported(code(definitions), tmp_path_factory.mktemp("page") / "page_definitions.py").IndRNN


def slow(layer: nn.Module, x: Tensor, h0: Tensor) -> list[Tensor]:
    """The equation, one step and one direction at a time: -> output (T, B, D*H), h_n (L*D, B, H)"""
    weights = dict(layer.named_parameters())
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    finals = []
    for number in range(layer.num_layers):
        sides = []
        for suffix in suffixes:
            w, u, *biases = (each for name, each in weights.items() if name.endswith(f"_l{number}{suffix}"))
            h, states = h0[len(finals)], {}
            for t in reversed(range(len(x))) if suffix else range(len(x)):
                h = states[t] = torch.relu(x[t] @ w.T + sum(biases) + u * h)
            finals.append(h)
            sides.append(torch.stack([states[t] for t in range(len(x))]))
        x = torch.cat(sides, -1)
    return [x, torch.stack(finals)]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit, and what torch compiles through
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A comment after `print(...)` is what it prints."""
    monkeypatch.chdir(tmp_path)
    imported(code(PAGE), tmp_path / "page_in_full.py")
    promised = re.findall(r"^print\(.*\)  # (.*)$", code(PAGE), re.MULTILINE)
    assert len(promised) == code(PAGE).count("print(") > 5
    assert capsys.readouterr().out.splitlines() == promised


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_cell_is_right(cls: Any, bidirectional: bool, num_layers: int, bias: bool, tmp_path: Path) -> None:
    """Eager and its gradients, lengths, and the ONNX file, with and without h_0."""
    layer = cls(3, 5, num_layers, bias, bidirectional=bidirectional, dtype=torch.float64)
    walks = num_layers * (2 if bidirectional else 1)
    x, h0 = torch.randn(7, 2, 3, dtype=torch.float64), torch.randn(walks, 2, 5, dtype=torch.float64)
    zeros = torch.zeros_like(h0)
    torch.testing.assert_close(gradients(layer, layer, x, h0), gradients(layer, lambda *a: slow(layer, *a), x, h0))
    torch.testing.assert_close([*layer(x)], slow(layer, x, zeros))
    output, h_n = layer(x, None, torch.tensor([4, 7]))
    expected = slow(layer, x[:4, :1], zeros[:, :1])
    torch.testing.assert_close([output[:4, :1], h_n[:, :1]], expected)
    report = export_onnx(layer, (x, h0) if bias == bidirectional else (x,), tmp_path / "cell.onnx")
    graph = onnx.load(tmp_path / "cell.onnx").graph
    assert sum(node.op_type in ("Mul", "Add", "Relu") for node in graph.node) == 3 * 7 * walks
    assert report.nodes <= 3 * 7 * walks + 6 * walks + 10


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch compiles through its own deprecated modules
def test_gradients_through_the_compiled_cell(cls: Any) -> None:
    layer = cls(3, 5, bidirectional=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for steps, batch in [(4, 3), (9, 2)]:
        x, h0 = torch.randn(steps, batch, 3), torch.randn(2, batch, 5)
        found, expected = gradients(layer, compiled, x, h0), gradients(layer, lambda *a: slow(layer, *a), x, h0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def gradients(layer: nn.Module, run: Any, x: Tensor, h0: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of a loss that reads all of them."""
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    layer.zero_grad()
    output, h_n = run(x, h0)
    (output.square().sum() + h_n.sin().sum()).backward()
    return [output, h_n, x.grad, h0.grad, *(weight.grad for weight in layer.parameters())]


def test_a_model_with_the_cell_converts_and_exports(cls: Any, tmp_path: Path) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 3)
            self.first = cls(3, 5, bidirectional=True, batch_first=True)
            self.second = nn.GRU(10, 4, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            output: Tensor = self.second(self.first(self.embed(tokens))[0])[0]
            return output

    model = Tagger().eval()
    tokens = torch.randint(20, (2, 6))
    converted = deploy_rnn.convert(model)
    assert type(converted.first) is cls
    torch.testing.assert_close(converted(tokens), model(tokens))
    assert export_onnx(model, (tokens,), tmp_path / "model.onnx").inputs[0].shape == ("B", 6)
