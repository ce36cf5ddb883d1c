"""`scripted_program`: the graph of torch.export as TorchScript; it gives the same, and refuses what it is not for."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import deploy_rnn
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import ExportError
from deploy_rnn.packaging.axes import Axes, Axis
from deploy_rnn.packaging.script_program import scripted_program
from deploy_rnn.packaging.torchscript import METADATA
from deploy_rnn.packaging.tracing import trace

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")

X = torch.randn(6, 3, 5)
T, B = Axis("T"), Axis("B", least=2, most=9)


def script(
    model: nn.Module,
    args: Any,
    axes: list[Axes] | None = None,
    kwargs: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    call = ExampleCall.of(model, args, kwargs)
    traced = trace(model.eval(), call, axes or [{} for _ in call.tensors])
    return torch.jit.freeze(scripted_program(traced.program, call, traced.axes))


def check(function: Callable[..., Any], model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The same results, in the same structure."""
    with torch.no_grad():
        expected = model(*args, **kwargs)
        results = function(*args, **kwargs)
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-5)


class Functions(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def arithmetic(x: Tensor) -> Tensor:
    steps = x.size(0)
    half, more = steps // 2, math.ceil(steps / 4) + (steps * 3 - 1) % 7
    whole = torch.zeros(steps + more, half + 2 * steps)
    return whole + steps / 2 + max(half, 3)


def positions(x: Tensor) -> Tensor:
    """Numbers for floats, lists with None, a constant, an infinity, types of numbers."""
    table = torch.tensor([[1.0, -math.inf], [0.5, 2.0]])
    steps = torch.arange(x.size(0), dtype=torch.int32)
    chosen = x[steps.long(), :, steps.long() % 5]
    return torch.nn.functional.hardtanh(chosen, 0, 1)[None] + table[0, 0].double() + table[1].sum()


def branches(x: Tensor) -> Any:
    def negative(x: Tensor) -> tuple[Tensor, Tensor]:
        return -x, x.sum()

    def doubled(x: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, x.mean()

    return torch.cond(x.sum() > 0, negative, doubled, (x,))


def repeated(x: Tensor) -> Any:
    def goes_on(count: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return count < 5

    def body(count: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return count + 1, second.clone(), first + second

    start = torch.tensor(0), x, x + 1
    return torch._higher_order_ops.while_loop(goes_on, body, start)


def walked(x: Tensor) -> Any:
    """A loop that exchanges its states, and one within that is written out."""

    def step(states: tuple[Tensor, Tensor], slice: Tensor) -> Any:
        first, second = states
        return (second, first + slice), {"seen": first * slice, "none": None}

    states, outputs = deploy_rnn.scan(step, (torch.zeros(3, 5), torch.ones(3, 5)), x)
    return states, outputs["seen"]


@pytest.mark.parametrize("function", [arithmetic, positions, branches, repeated, walked])
def test_what_a_graph_computes(function: Callable[[Tensor], Any]) -> None:
    model = Functions(function)
    scripted = script(model, X, [{0: T}])
    for x in (X, -X.abs(), torch.rand(9, 3, 5)):
        check(scripted, model, x)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Structured(nn.Module):
    """Nested arguments and results; an option between tensors, and one behind them."""

    def forward(
        self,
        batch: dict[str, Tensor],
        states: tuple[Tensor, list[Tensor]],
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        scale: float = 2.0,
    ) -> Any:
        x = batch["x"] * scale if lengths is None else batch["x"] * lengths
        hidden, (first, second) = states
        return {
            "x": [x, hidden],
            "rest": [Pair(first, second)[0], second],
        }, (None, x.size(0), hidden)


def test_arguments_and_results_keep_their_structure() -> None:
    model = Structured()
    batch, states = {"x": X, "y": X}, (X + 1, [X, X[:2]])
    lengths = torch.rand(5)
    axes: list[Axes] = [{0: T}, {}, {}, {}, {}, {}]
    scripted = script(model, (batch, states), axes, {"lengths": lengths})
    check(scripted, model, batch, states, None, lengths)
    check(scripted, model, {"x": X[:2], "y": X}, states, lengths=lengths, scale=2.0)
    for args, kwargs, message in [
        ((batch, states), {}, "`lengths` is missing"),
        ((batch, states, X, lengths), {}, "`mask` must be None, as in the example call"),
        ((batch, states, None, lengths, 3.0), {}, "`scale` must be 2.0, as in the example call"),
        ((batch, (X, [X]), None, lengths), {}, r"`states\[1\]` has 1 entries; this file takes 2"),
        (({"x": X, "y": X[1:]}, states, None, lengths), {}, r"axis 0 of `batch\['y'\]` is 5; "),
    ]:
        with pytest.raises(torch.jit.Error, match=message):
            scripted(*args, **kwargs)


def test_inputs_of_other_kinds_are_refused_by_name() -> None:
    model = Functions(lambda x: x + x.size(0))
    scripted = script(model, X, [{0: T, 1: B}])
    check(scripted, model, X.transpose(0, 1).contiguous().transpose(0, 1)[::2])
    for x, message in [
        (X[0], "`x` has 2 axes; this file takes 3."),
        (X.double(), "`x` must be float32 on the CPU."),
        (X[:, :1], "axis 1 of `x` is 1; this file takes 2 or more."),
        (torch.zeros(2, 10, 5), "axis 1 of `x` is 10; this file takes 9 or less."),
        (X[..., 1:], "axis 2 of `x` is 4; this file takes 5 here."),
    ]:
        with pytest.raises(torch.jit.Error, match=message):
            scripted(x)


def test_what_a_graph_has_that_torchscript_has_not() -> None:
    @torch.library.custom_op("deploy_rnn_tests::own", mutates_args=())
    def own(x: Tensor) -> Tensor:
        return x.clone()

    own.register_fake(torch.empty_like)
    with pytest.raises(ExportError, match=r"no operator for `deploy_rnn_tests\.own"):
        script(Functions(own), X)


class Branching(nn.Module):
    """Has code that TorchScript refuses; goes another way beyond six steps for a row."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 4, batch_first=True)

    def forward(self, x: Tensor, states: tuple[Tensor, Tensor]) -> Any:
        output, states = getattr(self, "rn" + "n")(x, states)
        if x.size(1) > 6 * x.size(0):
            output = 2 * output
        return {"output": output, "states": [*states]}


def test_a_file_from_a_graph_says_so_and_holds_its_side_of_a_branch(tmp_path: Path) -> None:
    model = Branching().double().eval()
    x, states = torch.randn(3, 4, 5).double(), torch.zeros(1, 3, 4).double()
    report = deploy_rnn.package(model, (x, (states, states)), tmp_path / "m.pt")
    assert report.source == "graph"
    assert report.conditions == ("T <= 6*B",)
    shown = "x [B, T, 5], states[0] [1, B, 4], states[1] [1, B, 4]; where T <= 6*B; "
    assert shown in str(report)
    assert str(report).endswith("; from the graph of torch.export")
    extra_files = {METADATA: ""}
    loaded = torch.jit.load(tmp_path / "m.pt", _extra_files=extra_files)
    assert b'"conditions": ["T <= 6*B"]' in extra_files[METADATA]
    states = torch.ones(1, 1, 4).double()
    with torch.inference_mode():
        results = pytree.tree_leaves(loaded(x[:1], (states, states)))
        torch.testing.assert_close(results, pytree.tree_leaves(model(x[:1], (states, states))))
    with pytest.raises(
        torch.jit.Error, match=r"the sizes must be such that T <= 6\*B; the model refuses"
    ):
        loaded(torch.zeros(1, 7, 5).double(), (states, states))


class Last(nn.Module):
    """Takes a last number of steps behind a convolution with a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(5, 5, 3, stride=2)
        self.rnn = nn.GRU(5, 4, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.convolution((x * mask[..., None]).transpose(1, 2)).transpose(1, 2)
        output: Tensor = getattr(self, "rn" + "n")(x)[0]
        return output[:, -3:].reshape(-1, 12)


class Transducer(nn.Module):
    """Its predictor begins with a step of its own, and looks at a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 4, batch_first=True)

    def forward(self, x: Tensor, y: Tensor, memory: Tensor) -> Tensor:
        begun = torch.cat([y[:, :1], y], 1)
        predicted = getattr(self, "rn" + "n")(begun)[0]  # as TorchScript does not take it
        seen = predicted @ memory.transpose(1, 2) @ memory  # (B, U+1, 4)
        joined: Tensor = self.rnn(x)[0].unsqueeze(2) + seen.unsqueeze(1)
        return joined


def test_every_axis_that_may_differ_is_open(tmp_path: Path) -> None:
    model = Transducer().eval()
    args = torch.randn(2, 9, 5), torch.randn(2, 3, 5), torch.randn(2, 6, 4)
    report = deploy_rnn.package(model, args, tmp_path / "m.pt")
    assert report.source == "graph"
    assert report.inputs == {
        "x": ("B", "T", 5), "y": ("B", "T1", 5), "memory": ("B", "memory_1", 4)
    }  # fmt: skip
    other = torch.randn(3, 4, 5), torch.randn(3, 7, 5), torch.randn(3, 2, 4)
    with torch.inference_mode():
        torch.testing.assert_close(torch.jit.load(tmp_path / "m.pt")(*other), model(*other))


class SteppedLayer(nn.Module):
    """Calls a layer for each step, as a policy does that forgets at the end of an episode."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 4)

    def forward(self, x: Any, h: Tensor, goes_on: Tensor) -> Any:
        outputs = []
        for t in range(len(x)):
            output, h = self.rnn(x[t : t + 1], h * goes_on[t, :, None])
            outputs.append(output)
        return torch.cat(outputs), h


def test_a_loop_that_is_written_out_is_told(tmp_path: Path) -> None:
    args = torch.randn(3, 2, 5), torch.randn(1, 2, 4), torch.ones(3, 2)
    with pytest.warns(
        UserWarning, match=r"axis `x_0` .* a loop over axis 0 of `x`, which Py"
    ) as told:
        report = deploy_rnn.package(SteppedLayer(), args, tmp_path / "m.pt")
    assert len([one for one in told if one.category is UserWarning]) == 1
    assert "for t in range(len(x)):" in str(told[0].message)
    assert report.inputs == {"x": (3, "B", 5), "h": (1, "B", 4), "goes_on": (3, "B")}


class Ragged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 4)

    def forward(self, rows: Any) -> Tensor:
        output: Tensor = self.rnn(nn.utils.rnn.pad_sequence(rows))[0]
        return output


@pytest.mark.parametrize("file_name", ["m.pt", "m.onnx"])
def test_a_list_with_a_tensor_for_each_row(file_name: str, tmp_path: Path) -> None:
    """No file takes any number of them: what is fixed, and what to do, is said in one sentence."""
    write = deploy_rnn.package if file_name == "m.pt" else deploy_rnn.export.export_onnx
    with pytest.warns(
        UserWarning, match=r"let the model take one padded tensor, and the len"
    ) as told:
        write(Ragged(), ([torch.randn(4, 5), torch.randn(2, 5)],), tmp_path / file_name)
    assert len([one for one in told if one.category is UserWarning]) == 1
    assert f"{__file__}:" in str(told[0].message)


def test_a_range_that_the_model_needs_is_found_and_kept(tmp_path: Path) -> None:
    """torch.export takes the axes of one name for one size only where it knows that."""
    model = Last().eval()
    shapes = {"x": {0: "B", 1: "T"}, "mask": {0: "B", 1: "T"}}
    inputs = torch.randn(2, 12, 5), torch.ones(2, 12)
    report = deploy_rnn.package(model, inputs, tmp_path / "m.pt", dynamic_shapes=shapes)
    assert report.ranges == {"T": (7, None)}
    assert "; T of 7 or more; " in str(report)
    loaded = torch.jit.load(tmp_path / "m.pt")
    check(loaded, model, torch.randn(1, 7, 5), torch.ones(1, 7))
    with pytest.raises(torch.jit.Error, match="axis 1 of `x` is 6; this file takes 7 or more"):
        loaded(torch.randn(1, 6, 5), torch.ones(1, 6))
    with pytest.raises(torch.jit.Error, match="axis 1 of `mask` is 9; this file takes 8 here"):
        loaded(torch.randn(1, 8, 5), torch.ones(1, 9))


class Refused(nn.Module):
    """Neither TorchScript nor torch.export takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = getattr(self, "rn" + "n")(x)[0]
        return output if output.sum() > 0 else -output


def test_what_neither_takes_is_refused_with_both_reasons(tmp_path: Path) -> None:
    message = (
        r"(?s)`return output if output.sum\(\) > 0 else -output`: the model goes another way for other values.*"
        r"The model's own code is refused, too: .*TorchScript cannot compile Refused: getattr's"
    )
    with pytest.raises(ExportError, match=message):
        deploy_rnn.package(Refused(), X, tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())
