"""Cells with parameters of their own, against the same equations written as one loop for each direction."""

import itertools
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn import Cell
from deploy_rnn.export import export_bundle, export_onnx


def peephole_lstm(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Gates that see c by a diagonal weight each."""
    i, f, g, o = torch.baddbmm(projected, states[0], weights[0]).chunk(4, -1)
    old = states[1]
    c = torch.sigmoid(f + weights[2] * old) * old
    c = c + torch.sigmoid(i + weights[1] * old) * torch.tanh(g)
    return [torch.sigmoid(o + weights[3] * c) * torch.tanh(c), c]


def norm_lstm(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Layer norms with gain and shift: of W x, of U h, of c."""
    width = projected.size(-1)
    hidden = torch.bmm(states[0], weights[0])
    total = (
        F.layer_norm(projected, [width]) * weights[1] + F.layer_norm(hidden, [width]) * weights[2]
    )
    i, f, g, o = (total + weights[3]).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    c = F.layer_norm(c, [c.size(-1)]) * weights[4] + weights[5]
    return [torch.sigmoid(o) * torch.tanh(c), c]


def projected_lstm(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """A gain of the output before W_hr, which comes last."""
    i, f, g, o = torch.baddbmm(projected, states[0], weights[0]).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c) * weights[1]
    return [torch.bmm(h, weights[2]), c]


def mixing(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """A bias within the step, and then a second matrix, (2*H, H): not square, so that its transposition shows."""
    h = states[0]
    wide = torch.bmm(h, weights[2]) + weights[3]
    keep, new = torch.sigmoid(wide).chunk(2, -1)
    hidden = torch.baddbmm(weights[1], h, weights[0])
    return [keep * h + (1 - keep) * torch.tanh(projected + new * hidden)]


class PeepholeLSTM(deploy_rnn.LSTM):
    cell = Cell(
        peephole_lstm,
        gates=4,
        states=2,
        parameters={name: lambda size: (size,) for name in ("peep_i", "peep_f", "peep_o")},
    )


class NormLSTM(deploy_rnn.LSTM):
    cell = Cell(
        norm_lstm,
        gates=4,
        states=2,
        parameters={
            "gain_i": lambda size: (4 * size,),
            "gain_h": lambda size: (4 * size,),
            "shift": lambda size: (4 * size,),
            "gain_c": lambda size: (size,),
            "shift_c": lambda size: (size,),
        },
        initial={"gain_i": 1.0, "gain_h": 1.0, "gain_c": 1.0, "shift_c": 0.0},
    )


class ProjectedLSTM(deploy_rnn.LSTM):
    cell = Cell(
        projected_lstm,
        gates=4,
        states=2,
        projection=True,
        parameters={"gain": lambda size: (size,)},
    )


class Mixing(deploy_rnn.Recurrent):
    cell = Cell(
        mixing,
        bias_in_step=True,
        parameters={
            "weight_mix": lambda size: (2 * size, size),
            "bias_mix": lambda size: (2 * size,),
        },
    )


def reference_step(
    layer: Any, w: Mapping[str, Tensor], x: Tensor, states: Sequence[Tensor]
) -> list[Tensor]:
    """One step of one direction, x (B, I), from the parameters as `state_dict` has them."""
    projected = x @ w["weight_ih"].T
    hidden = states[0] @ w["weight_hh"].T
    if isinstance(layer, Mixing):
        h = states[0]
        keep, new = torch.sigmoid(h @ w["weight_mix"].T + w["bias_mix"]).chunk(2, -1)
        inner = projected + w.get("bias_ih", 0) + new * (hidden + w.get("bias_hh", 0))
        return [keep * h + (1 - keep) * torch.tanh(inner)]
    projected = projected + w.get("bias_ih", 0) + w.get("bias_hh", 0)
    c = states[1]
    if isinstance(layer, NormLSTM):
        width = [projected.size(-1)]
        total = (
            F.layer_norm(projected, width) * w["gain_i"] + F.layer_norm(hidden, width) * w["gain_h"]
        )
        i, f, g, o = (total + w["shift"]).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        c = F.layer_norm(c, [c.size(-1)]) * w["gain_c"] + w["shift_c"]
        return [o.sigmoid() * c.tanh(), c]
    i, f, g, o = (projected + hidden).chunk(4, -1)
    if isinstance(layer, PeepholeLSTM):
        c = (f + w["peep_f"] * c).sigmoid() * c + (i + w["peep_i"] * c).sigmoid() * g.tanh()
        return [(o + w["peep_o"] * c).sigmoid() * c.tanh(), c]
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return [(o.sigmoid() * c.tanh() * w["gain"]) @ w["weight_hr"].T, c]


def reference(layer: Any, x: Tensor) -> list[Tensor]:
    """-> output (T, B, D*P), final states (L*D, B, P) ..."""
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    finals: list[list[Tensor]] = [[] for _ in layer.state_sizes()]
    for number in range(layer.num_layers):
        outputs = []
        for suffix in suffixes:
            end = f"_l{number}{suffix}"
            weights = {
                name.removesuffix(end): weight
                for name, weight in layer.named_parameters()
                if name.endswith(end)
            }
            states = [x.new_zeros(x.size(1), size) for size in layer.state_sizes()]
            steps: dict[int, Tensor] = {}
            for t in reversed(range(len(x))) if suffix else range(len(x)):
                states = reference_step(layer, weights, x[t], states)
                steps[t] = states[0]
            for kind, state in zip(finals, states, strict=True):
                kind.append(state)
            outputs.append(torch.stack([steps[t] for t in range(len(x))]))
        x = torch.cat(outputs, -1)
    return [x, *(torch.stack(kind) for kind in finals)]


def flat(result: tuple[Tensor, Any]) -> list[Tensor]:
    output, finals = result
    return [output, *finals] if isinstance(finals, tuple) else [output, finals]


KINDS: dict[str, Callable[..., Any]] = {
    "peephole": PeepholeLSTM,
    "norm": NormLSTM,
    "projected": lambda *args, **options: ProjectedLSTM(*args, proj_size=2, **options),
    "mixing": Mixing,
}


def made(kind: str, num_layers: int = 1, **options: Any) -> Any:
    layer = KINDS[kind](3, 4, num_layers, **options)
    with torch.no_grad():
        # Initial numbers would hide a gain that is another layer's.
        for weight in layer.parameters():
            weight.uniform_(-1, 1)
    return layer


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_and_gradients(
    kind: str, bidirectional: bool, num_layers: int, bias: bool
) -> None:
    layer = made(kind, num_layers, bidirectional=bidirectional, bias=bias, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = reference(layer, x)
    actual = flat(layer(x))
    torch.testing.assert_close(actual, expected)
    weights = list(layer.parameters())
    # The sum alone would not tell the rows from one another.
    expected_gradients = torch.autograd.grad(expected[0].square().sum(), weights, allow_unused=True)
    actual_gradients = torch.autograd.grad(actual[0].square().sum(), weights, allow_unused=True)
    torch.testing.assert_close(actual_gradients, expected_gradients)
    output, _ = layer(x, None, torch.tensor([3, 5]))
    torch.testing.assert_close(output[:3, :1], reference(layer, x[:3, :1])[0])


def test_names_shapes_and_first_values() -> None:
    layer = NormLSTM(3, 4, 2, bidirectional=True)
    assert layer.gain_i_l0.shape == layer.gain_h_l1_reverse.shape == (16,)
    assert list(layer.state_dict())[:9] == [
        "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "gain_i_l0", "gain_h_l0", "shift_l0", "gain_c_l0",
        "shift_c_l0",
    ]  # fmt: skip
    for name, weight in layer.named_parameters():
        if name.startswith("gain"):
            assert torch.equal(weight, torch.ones_like(weight))
    assert not layer.shift_c_l1.any()
    assert layer.shift_l0.unique().numel() > 1
    again = pickle.loads(pickle.dumps(layer))
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(again(x), layer(x))
    again.load_state_dict(NormLSTM(3, 4, 2, bidirectional=True).state_dict())


def test_what_a_cell_refuses() -> None:
    with pytest.raises(
        ValueError, match="`parameters` has 'bias_hh', which must be a Python name, and not one of"
    ):
        Cell(mixing, parameters={"bias_hh": lambda size: (size,)})
    with pytest.raises(ValueError, match="`initial` has 'gain', which must be one of `parameters`"):
        Cell(mixing, initial={"gain": 1.0})
    with pytest.raises(
        ValueError, match=r"`gain` has the shape \[4, 1, 1\]; .* must be a vector or a matrix"
    ):
        deploy_rnn.Recurrent(
            3, 4, cell=Cell(mixing, parameters={"gain": lambda size: (size, 1, 1)})
        )


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", KINDS)
def test_scripted(kind: str) -> None:
    layer = made(kind, 2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(flat(torch.jit.script(layer)(x)), reference(layer, x))


EXPORTS = [
    ("peephole", "scan", {"bidirectional": True}, torch.float32),
    ("norm", "scan", {"num_layers": 2, "bidirectional": True}, torch.float32),
    ("norm", "unrolled", {"bidirectional": True}, torch.float64),
    ("projected", "scan", {"num_layers": 3}, torch.float64),
    ("mixing", "unrolled", {"num_layers": 2, "bias": False}, torch.float32),
]


@pytest.mark.parametrize(("kind", "form", "options", "dtype"), EXPORTS)
def test_exported(
    kind: str, form: Any, options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    """With lengths and states, and with neither; the report compares the file with the layer."""
    layer = made(kind, dtype=dtype, **options)
    x = torch.randn(4, 2, 3, dtype=dtype)
    kwargs = {"lengths": torch.tensor([4, 2])} if layer.bidirectional else {}
    with torch.no_grad():
        states = layer(x)[1] if layer.bidirectional else None
    report = export_onnx(layer, (x, states), tmp_path / "cell.onnx", kwargs=kwargs, form=form)
    assert report.failures == ()


class Grid(nn.Module):
    """Every depth and direction of a cell with parameters and one without, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for depth, bidirectional in itertools.product((1, 2), (False, True)):
            options: dict[str, Any] = {"num_layers": depth, "bidirectional": bidirectional}
            self.layers.append(made("peephole", **options))
            self.layers.append(deploy_rnn.Recurrent(3, 4, cell=Cell(leaky), **options))

    def forward(self, x: Tensor) -> Any:
        return [layer(x)[0] for layer in self.layers]


def leaky(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    return [0.9 * states[0] + torch.tanh(torch.baddbmm(projected, states[0], weights[0]))]


@pytest.mark.parametrize("form", ["scan", "unrolled"])
def test_every_depth_and_direction_is_exported(form: Any, tmp_path: Path) -> None:
    model = Grid()
    report = export_onnx(model, torch.randn(3, 2, 3), tmp_path / "m.onnx", form=form, sizes=(3,))
    assert report.failures == ()
    assert len({comparison.output for comparison in report.comparisons}) == 8


def test_a_bundle_of_a_model_around_it(tmp_path: Path) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = made("peephole", bidirectional=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.rnn(x)[0])
            return scores

    model = Tagger().eval()
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(deploy_rnn.convert(model)(x), model.head(reference(model.rnn, x)[0]))
    export_bundle(model, (x,), tmp_path / "bundle", forms=["scan"])


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_with_gradients() -> None:
    layer = made("peephole")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    x = torch.randn(6, 3, 3)
    expected = reference(layer, x)
    actual = flat(compiled(x))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    weights = list(layer.parameters())
    expected_gradients = torch.autograd.grad(expected[0].square().sum(), weights, allow_unused=True)
    actual_gradients = torch.autograd.grad(actual[0].square().sum(), weights, allow_unused=True)
    torch.testing.assert_close(actual_gradients, expected_gradients, rtol=1e-3, atol=1e-4)
