"""Every form has the numbers of torch.nn: PyTorch's own grid of ONNX tests, and what lies beyond it.

The grid is exported by the pieces of `export_onnx` without its check, and run here, so that nothing hides behind what
the check itself gets wrong. Its layers stand in one model: one trace serves all of them.
"""

from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import deploy_rnn
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.export import export_onnx
from deploy_rnn.export.capture.capture import Tracer
from deploy_rnn.export.forms.lower import lower
from deploy_rnn.runtime import open_session

FORMS = ("unrolled", "scan", "native")
HELD = "native, held"
"""Form "native" with row_ends="held"."""
INPUT, HIDDEN, STEPS = 3, 7, 3

FAMILIES: dict[str, Callable[..., nn.RNNBase]] = {
    "elman_tanh": nn.RNN,
    "elman_relu": lambda *args, **options: nn.RNN(*args, nonlinearity="relu", **options),
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}

PROJECTED = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)


class Grid(nn.Module):
    """Every layer of the grid, on one input.

    forward(x, lengths (B,), h: {"1": (1, B, H), ...}, c: as h) -> for each layer: output, finals
    """

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.layers = nn.ModuleDict()
        for family, num_layers, bidirectional in product(FAMILIES, (1, 3), (False, True)):
            # Both values with both of everything else; a single layer has none.
            dropout = 0.2 * (num_layers > 1 and bidirectional != batch_first)
            options = {
                "batch_first": batch_first,
                "bidirectional": bidirectional,
                "dropout": dropout,
            }
            name = f"{family}, layers={num_layers}, bidirectional={bidirectional}"
            self.layers[name] = FAMILIES[family](INPUT, HIDDEN, num_layers, **options)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, h: Any = None, c: Any = None
    ) -> dict[str, Any]:
        if lengths is None:
            return {name: layer(x, start(layer, h, c)) for name, layer in self.layers.items()}
        results: dict[str, Any] = {}
        steps = x.size(1 if self.batch_first else 0)
        packed = pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=False)
        for name, layer in self.layers.items():
            packed_output, finals = layer(packed, start(layer, h, c))
            output, _ = pad_packed_sequence(packed_output, self.batch_first, total_length=steps)
            results[name] = output, finals
        return results


def start(layer: Any, h: Mapping[str, Tensor] | None, c: Mapping[str, Tensor] | None) -> Any:
    if h is None or c is None:
        return None
    rows = str(layer.num_layers * (2 if layer.bidirectional else 1))
    return (h[rows], c[rows]) if layer.mode == "LSTM" else h[rows]


@cache
def trained(batch_first: bool) -> Grid:
    """Some steps towards random targets: no weight has the value that it was made with. In training mode."""
    torch.manual_seed(3)
    grid = Grid(batch_first=batch_first)
    before = [parameter.detach().clone() for parameter in grid.parameters()]
    optimizer = torch.optim.SGD(grid.parameters(), lr=0.2)
    x, targets = torch.randn(4, 4, INPUT), torch.randn(4, 4, 2 * HIDDEN)
    for _ in range(20):
        optimizer.zero_grad()
        outputs = [output for output, _ in grid(x).values()]
        losses = [
            nn.functional.mse_loss(output, targets[..., : output.size(-1)]) for output in outputs
        ]
        torch.stack(losses).sum().backward()
        optimizer.step()
    moved = [(new - old).abs().max() for new, old in zip(grid.parameters(), before, strict=True)]
    assert min(moved) > 1e-4
    assert all((output != 0).float().mean() > 0.1 for output in outputs)
    return grid


def arguments(
    steps: int, batch: int, *, batch_first: bool, with_lengths: bool, with_states: bool
) -> dict[str, Any]:
    """Random, by name. The lengths are in no order; one row is full."""
    shape = (batch, steps, INPUT) if batch_first else (steps, batch, INPUT)
    kwargs: dict[str, Any] = {"x": torch.randn(shape)}
    if with_lengths:
        kwargs["lengths"] = torch.randint(1, steps + 1, (batch,))
        kwargs["lengths"][batch // 2] = steps
    if with_states:
        for name in ("h", "c"):
            kwargs[name] = {str(rows): torch.randn(rows, batch, HIDDEN) for rows in (1, 2, 3, 6)}
    return kwargs


def axes(call: ExampleCall, *, batch_first: bool, time: bool) -> list[dict[int, Any]]:
    batch, steps = (0, 1) if batch_first else (1, 0)
    axes_of_x: dict[int, Any] = {batch: "B"}
    if time:
        axes_of_x[steps] = "T"
    return [axes_of_x, *({1 if tensor.dim() == 3 else 0: "B"} for tensor in call.tensors[1:])]


@cache
def captured(batch_first: bool, with_lengths: bool, with_states: bool, time: bool) -> ir.Model:
    """The trained grid as one graph whose stacks are still to be written."""
    kwargs = arguments(
        STEPS, 3, batch_first=batch_first, with_lengths=with_lengths, with_states=with_states
    )
    grid = trained(batch_first)
    call = ExampleCall.of(grid, (), kwargs)
    tracer = Tracer(grid, call, opset_version=18)
    return tracer.capture(axes(call, batch_first=batch_first, time=time)).model


def assert_equal(
    outputs: list[np.ndarray], expected: list[Tensor], labels: list[str], *, limit: float = 1e-5
) -> None:
    for output, tensor, label in zip(outputs, expected, labels, strict=True):
        assert output.shape == tuple(tensor.shape), label
        difference = np.abs(output - tensor.numpy()) / np.maximum(1.0, np.abs(tensor.numpy()))
        assert difference.max() < limit, f"{label}: {difference.max()}"


def options_of(form: str) -> dict[str, Any]:
    return {"form": "native", "row_ends": "held"} if form == HELD else {"form": form}


@pytest.mark.parametrize("form", [*FORMS, HELD])
@pytest.mark.parametrize("with_states", [False, True], ids=["", "h0"])
@pytest.mark.parametrize(
    ("with_lengths", "batch_first"),
    [(False, False), (True, False), (True, True)],
    ids=["", "lengths", "batch_first"],
)
def test_the_grid(
    form: str, with_lengths: bool, batch_first: bool, with_states: bool, tmp_path: Path
) -> None:
    model = captured(batch_first, with_lengths, with_states, form != "unrolled").clone()
    ir.save(lower(model, **options_of(form)), tmp_path / "grid.onnx")
    session = open_session(
        tmp_path / "grid.onnx", threads=1, optimize=form != "unrolled"
    )  # which would take seconds
    grid = trained(batch_first)
    reference = Grid(batch_first=batch_first).eval()
    reference.load_state_dict(grid.state_dict())
    for steps, batch in (
        [(STEPS, 3), (STEPS, 1), (STEPS, 6)] if form == "unrolled" else [(3, 3), (7, 2), (1, 1)]
    ):
        kwargs = arguments(
            steps,
            batch,
            batch_first=batch_first,
            with_lengths=with_lengths,
            with_states=with_states,
        )
        with torch.no_grad():
            results = reference(**kwargs)
        expected = [
            tensor
            for result in results.values()
            for tensor in torch.utils._pytree.tree_leaves(result)
        ]
        labels = [
            f"{name}, output {number}, T={steps}, B={batch}"
            for name, result in results.items()
            for number, _ in enumerate(torch.utils._pytree.tree_leaves(result))
        ]
        tensors = ExampleCall.of(reference, (), kwargs).tensors
        feeds = {
            put.name: tensor.numpy()
            for put, tensor in zip(session.get_inputs(), tensors, strict=True)
        }
        assert_equal(session.run(None, feeds), expected, labels)


@pytest.mark.parametrize("form", ["unrolled", "scan", HELD])
def test_what_lies_beyond_the_end_of_a_row_is_not_read(form: str, tmp_path: Path) -> None:
    layer, lengths = deploy_rnn.LSTM(3, 4, 2, bidirectional=True).eval(), torch.tensor([5, 1, 3])
    x = torch.randn(5, 3, 3)
    export_onnx(
        layer,
        (x,),
        tmp_path / "lengths.onnx",
        kwargs={"lengths": lengths},
        sizes=(2,),
        **options_of(form),
    )
    with torch.no_grad():
        output, (h_n, c_n) = layer(x, None, lengths)
    for row, length in enumerate(lengths):
        x[length:, row] = torch.nan
    outputs = open_session(tmp_path / "lengths.onnx").run(
        None, {"input": x.numpy(), "lengths": lengths.numpy()}
    )
    assert_equal(outputs, [output, h_n, c_n], ["output", "h_n", "c_n"])


class Counted(nn.Module):
    """Lengths that the model counts itself, so that a row can be empty; for PyTorch's layers, it would be refused."""

    def __init__(self, family: Any) -> None:
        super().__init__()
        self.rnn = family(3, 4, 2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Any:
        lengths = (x[:, :, 0] != 0).sum(1)
        states = (h, h + 1) if h is not None and self.rnn.mode == "LSTM" else h
        return self.rnn(x, states, lengths)


@pytest.mark.parametrize("form", [*FORMS, HELD])
@pytest.mark.parametrize("with_state", [False, True], ids=["", "h0"])
@pytest.mark.parametrize("family", [deploy_rnn.RNN, deploy_rnn.GRU, deploy_rnn.LSTM])
def test_an_empty_row_keeps_its_first_states(
    family: Any, with_state: bool, form: str, tmp_path: Path
) -> None:
    model = Counted(family).eval()
    x = torch.randn(4, 5, 3)
    state = torch.randn(4, 4, 4)
    args = (x, state) if with_state else (x,)
    export_onnx(model, args, tmp_path / "counted.onnx", sizes=(2,), **options_of(form))
    for row, length in enumerate([5, 0, 2, 0]):
        x[row, length:] = 0
    output, *finals = run(tmp_path / "counted.onnx", ExampleCall.of(model, args, None))
    filled = [0, 2]
    with torch.no_grad():
        results = model(x[filled], state[:, filled] if with_state else None)
    expected = torch.utils._pytree.tree_leaves(results)
    given = [output[filled], *(final[:, filled] for final in finals)]
    assert_equal(given, expected, ["output", "h_n", "c_n"][: len(given)])
    assert not output[[1, 3]].any()
    for number, final in enumerate(finals):
        first = (state + number).numpy() if with_state else np.zeros((4, 4, 4))
        np.testing.assert_array_equal(final[:, [1, 3]], first[:, [1, 3]])


class Labels(nn.Module):
    """A dict, a tuple and whole numbers in, a dict out; three stacks, one called twice, two with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 3)
        self.a, self.b = (
            nn.LSTM(3, 4, batch_first=True, bidirectional=True),
            nn.GRU(8, 4, batch_first=True),
        )
        self.twice, self.shared = nn.RNN(4, 4, batch_first=True), nn.RNN(4, 4, batch_first=True)
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            setattr(self.shared, name, getattr(self.twice, name))

    def forward(self, more: Any, tokens: Any) -> dict[str, Any]:
        y, (h, c) = self.a(self.embed(tokens["ids"]) + more[0])
        z, g = self.b(y)
        once, _ = self.twice(z)
        again, last = self.twice(once)
        return {
            "output": again + self.shared(z.flip(1))[0],
            "states": (h + c.mean(), g, last),
            "loss": again.square().mean(),
        }


class LastStep(nn.Module):
    """Takes the tuple apart."""

    def forward(self, result: tuple[Tensor, Tensor]) -> Tensor:
        return result[0][:, -1] + result[1][-1]


def run(path: Path, call: ExampleCall) -> list[np.ndarray]:
    session = open_session(path, threads=1)
    feeds = {
        put.name: tensor.numpy()
        for put, tensor in zip(session.get_inputs(), call.tensors, strict=True)
    }
    return list(session.run(None, feeds))


def assert_file_is_model(path: Path, model: nn.Module, args: Any, kwargs: Any = None) -> None:
    call = ExampleCall.of(model, args, kwargs)
    expected = call.run(model.eval())
    limit = 1e-5 if expected[0].dtype is torch.float32 else 1e-12
    labels = [f"output {number}" for number, _ in enumerate(expected)]
    assert_equal(run(path, call), expected, labels, limit=limit)


@pytest.mark.parametrize("form", FORMS)
def test_whole_models(form: str, tmp_path: Path) -> None:
    model, path, wide = Labels(), tmp_path / "labels.onnx", form != "unrolled"

    def args(batch: int, steps: int) -> Any:
        return (torch.randn(batch, steps, 3),), {"ids": torch.randint(9, (batch, steps))}

    report = export_onnx(model, args(2, 4), path, form=form)
    assert [spec.shape[:2] for spec in report.inputs] == 2 * [("B", "T" if wide else 4)]
    assert len(report.outputs) == 5
    for batch, steps in [(2, 4), (3, 7 if wide else 4), (1, 1 if wide else 4)]:
        assert_file_is_model(path, model, args(batch, steps))
    sequential = nn.Sequential(nn.GRU(3, 5, batch_first=True), LastStep(), nn.Linear(5, 2))
    export_onnx(sequential, torch.randn(2, 4, 3), path, form=form)
    assert_file_is_model(path, sequential, torch.randn(3, 6 if wide else 4, 3))
