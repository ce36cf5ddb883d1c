"""docs/adding-a-cell.md, followed literally: its code runs and prints what it promises, and its cell is right."""

import importlib
import re
from functools import partial
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


def import_source(source: str, path: Path) -> ModuleType:
    """Import from a real file: TorchScript reads the source, and torch.compile looks the module up by name."""
    path.write_text(source, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        return importlib.import_module(path.stem)


@pytest.fixture(scope="module")
def cls(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The class of the page, from the blocks that define it."""
    definitions, _, _ = PAGE.partition("## Run")
    return import_source(
        code(definitions), tmp_path_factory.mktemp("page") / "page_definitions.py"
    ).IndRNN


def reference(layer: nn.Module, x: Tensor, h0: Tensor) -> list[Tensor]:
    """The equation, one step and one direction at a time: -> output (T, B, D*H), h_n (L*D, B, H)"""
    weights = dict(layer.named_parameters())
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    steps = range(len(x))
    final_states = []
    for number in range(layer.num_layers):
        outputs = []
        for suffix in suffixes:
            w, u, *biases = (
                weight for name, weight in weights.items() if name.endswith(f"_l{number}{suffix}")
            )
            h = h0[len(final_states)]
            states = {}
            for t in reversed(steps) if suffix else steps:
                h = states[t] = torch.relu(x[t] @ w.T + sum(biases) + u * h)
            final_states.append(h)
            outputs.append(torch.stack([states[t] for t in steps]))
        x = torch.cat(outputs, -1)
    return [x, torch.stack(final_states)]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch.jit, and what torch compiles through
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.slow
def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comment after `print(...)` is what it prints."""
    monkeypatch.chdir(tmp_path)
    import_source(code(PAGE), tmp_path / "page_in_full.py")
    promised = re.findall(r"^print\(.*\)  # (.*)$", code(PAGE), re.MULTILINE)
    assert len(promised) == code(PAGE).count("print(") > 5
    assert capsys.readouterr().out.splitlines() == promised


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_cell_is_right(
    cls: Any, bidirectional: bool, num_layers: int, bias: bool, tmp_path: Path
) -> None:
    """Eager and its gradients, lengths, and the ONNX file, with and without h_0."""
    layer = cls(3, 5, num_layers, bias, bidirectional=bidirectional, dtype=torch.float64)
    num_states = num_layers * (2 if bidirectional else 1)
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    h0 = torch.randn(num_states, 2, 5, dtype=torch.float64)
    zeros = torch.zeros_like(h0)
    expected_gradients = gradients(layer, partial(reference, layer), x, h0)
    torch.testing.assert_close(gradients(layer, layer, x, h0), expected_gradients)
    torch.testing.assert_close([*layer(x)], reference(layer, x, zeros))
    output, h_n = layer(x, None, torch.tensor([4, 7]))
    expected = reference(layer, x[:4, :1], zeros[:, :1])
    torch.testing.assert_close([output[:4, :1], h_n[:, :1]], expected)
    args = (x, h0) if bias == bidirectional else (x,)
    report = export_onnx(layer, args, tmp_path / "cell.onnx", form="unrolled")
    graph = onnx.load(tmp_path / "cell.onnx").graph
    assert sum(node.op_type in ("Mul", "Add", "Relu") for node in graph.node) == 3 * 7 * num_states
    assert report.nodes <= 3 * 7 * num_states + 6 * num_states + 10


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch compiles through its own deprecated modules
def test_gradients_through_the_compiled_cell(cls: Any) -> None:
    layer = cls(3, 5, bidirectional=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for steps, batch in [(4, 3), (9, 2)]:
        x = torch.randn(steps, batch, 3)
        h0 = torch.randn(2, batch, 5)
        expected = gradients(layer, partial(reference, layer), x, h0)
        torch.testing.assert_close(
            gradients(layer, compiled, x, h0), expected, rtol=1e-4, atol=1e-5
        )


def gradients(layer: nn.Module, run: Any, x: Tensor, h0: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of a loss that reads all of them."""
    x = x.clone().requires_grad_()
    h0 = h0.clone().requires_grad_()
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
            features, _ = self.first(self.embed(tokens))
            output: Tensor = self.second(features)[0]
            return output

    model = Tagger().eval()
    tokens = torch.randint(20, (2, 6))
    converted = deploy_rnn.convert(model)
    assert type(converted.first) is cls
    torch.testing.assert_close(converted(tokens), model(tokens))
    assert export_onnx(model, (tokens,), tmp_path / "model.onnx", form="unrolled").inputs[
        0
    ].shape == ("B", 6)
