"""`scan` against the loop that it stands for: eager, and under torch.compile and torch.export."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

import deploy_rnn
from deploy_rnn import scan
from deploy_rnn.errors import ExportError
from deploy_rnn.nn.loops import noted_loops


class Attention(nn.Module):
    """An attention decoder: x (T, B, 3), memory (B, S, 4), lengths (B,) -> outputs (T, B, 2), weights (T, B, S), h."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3 + 4, 4)
        self.query = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)

    def one_step(self, states: Any, x: Tensor, memory: Tensor, mask: Tensor) -> Any:
        h, c = states
        scores = (self.query(h).unsqueeze(1) * memory).sum(-1)
        weights = scores.masked_fill(~mask, -1e9).softmax(-1)  # (B, S)
        context = (weights.unsqueeze(-1) * memory).sum(1)
        h, c = self.cell(torch.cat([x, context], -1), (h, c))
        return (h, c), {"y": self.out(h), "weights": weights, "nothing": None}

    def forward(self, x: Tensor, memory: Tensor, lengths: Tensor, *, plain: bool = False) -> Any:
        h = x.new_zeros(x.size(1), 4)
        mask = torch.arange(memory.size(1)) < lengths.unsqueeze(1)

        def step(states: Any, x: Tensor) -> Any:
            return self.one_step(states, x, memory, mask)

        if not plain:
            states, outputs = scan(step, (h, h), x)
            return outputs["y"], outputs["weights"], states[0]
        states = (h, h)
        outputs = []
        for slice in x.unbind(0):
            states, output = step(states, slice)
            outputs.append(output)
        ys = torch.stack([output["y"] for output in outputs])
        return ys, torch.stack([output["weights"] for output in outputs]), states[0]


def attention_call(steps: int, batch: int, places: int) -> tuple[Tensor, ...]:
    lengths = torch.randint(1, places + 1, (batch,))
    return torch.randn(steps, batch, 3), torch.randn(batch, places, 4), lengths


class Greedy(nn.Module):
    """Greedy decoding from h (B, 4): tokens (N, B); a row that has given token 1 goes on with 0.

    The GRU is a layer that takes one step, and the embedding has a number of its own that is no size.
    """

    def __init__(self, steps: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.gru = nn.GRU(3, 4)
        self.out = nn.Linear(4, 5)
        self.steps = steps

    def forward(self, h: Tensor) -> Tensor:
        def step(states: Any, _: None) -> Any:
            h, token, ended = states
            _, new_h = self.gru(self.embedding(token).unsqueeze(0), h.unsqueeze(0))
            token = self.out(new_h[0]).argmax(-1).masked_fill(ended, 0)
            h = torch.where(ended.unsqueeze(-1), h, new_h[0])
            return (h, token, ended | (token == 1)), token

        token = torch.full((h.size(0),), 2)
        ended = torch.zeros(h.size(0), dtype=torch.bool)
        tokens: Tensor = scan(step, (h, token, ended), length=self.steps)[1]
        return tokens


class Nested(nn.Module):
    """A loop over words (T, B, S, 3), each a loop over its letters."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.GRUCell(3, 4)
        self.words = nn.GRUCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        def word(h: Tensor, letters: Tensor) -> Any:
            def letter(state: Tensor, slice: Tensor) -> Any:
                state = self.letters(slice, state) + h
                return state, None

            last, _ = scan(letter, h, letters.transpose(0, 1))
            h = self.words(last, h)
            return h, h

        output: Tensor = scan(word, x.new_zeros(x.size(1), 4), x)[1]
        return output


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_loop_and_its_gradient(steps: int, dtype: torch.dtype) -> None:
    model = Attention().to(dtype)
    x, memory, lengths = attention_call(steps, 2, 3)
    x = x.to(dtype).requires_grad_()
    memory = memory.to(dtype).requires_grad_()
    actual = model(x, memory, lengths)
    expected = model(x, memory, lengths, plain=True)
    torch.testing.assert_close(actual, expected)
    sources = [x, memory, *model.parameters()]
    losses = [outputs[0].sin().sum() + outputs[2].sum() for outputs in (actual, expected)]
    grads = [torch.autograd.grad(loss, sources) for loss in losses]
    torch.testing.assert_close(grads[0], grads[1])


def test_structures_and_dtypes() -> None:
    def step(states: Any, slices: Any) -> Any:
        x, rest = slices
        states = {"count": states["count"] + 1, "sum": [states["sum"][0] + x]}
        return states, (states["sum"], None, [rest["flag"]])

    inputs = (torch.ones(3, 2), {"flag": torch.tensor([True, False, True])})
    first = {"count": torch.tensor(5), "sum": [torch.zeros(2)]}
    states, outputs = scan(step, first, inputs)
    assert int(states["count"]) == 8
    assert states["sum"][0].tolist() == [3, 3]
    assert outputs[0][0].tolist() == [[1, 1], [2, 2], [3, 3]]
    assert outputs[1] is None
    assert outputs[2][0].tolist() == [True, False, True]
    assert int(first["count"]) == 5


def test_no_outputs_and_a_length() -> None:
    last, outputs = scan(lambda total, _: (2 * total, None), torch.ones(2), length=4)
    assert last.tolist() == [16, 16]
    assert outputs is None
    last, _ = scan(lambda total, x: (total + x, None), torch.zeros(2), torch.ones(4, 2), length=4)
    assert last.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("states", "inputs", "length", "result", "error", "message"),
    [
        (torch.zeros(2), None, None, None, ValueError, "`scan` needs `inputs`, or a `length`"),
        (torch.zeros(2), torch.zeros(0, 2), None, None, ValueError, "needs at least one step, got 0"),
        (torch.zeros(2), None, 0, None, ValueError, "needs at least one step, got 0"),
        (torch.zeros(2), None, 2.5, None, TypeError, "`length` must be a whole number, got 2.5"),
        (torch.zeros(2), torch.zeros(3, 2), 4, None, ValueError, "got 4 and 3"),
        (torch.zeros(2), (torch.zeros(3), torch.zeros(5)), None, None, ValueError, "got 3 and 5"),
        (torch.zeros(2), torch.tensor(1.0), None, None, ValueError, "a tensor of no axes"),
        (2.0, torch.zeros(3), None, None, TypeError, "`states` must be tensors, got float"),
        ((), torch.zeros(3), None, None, ValueError, "`states` must have at least one tensor"),
        (torch.zeros(2), [1.0], None, None, TypeError, "`inputs` must be tensors, got float"),
        (torch.zeros(2), None, 2, torch.zeros(2), TypeError, "must return two values, .* got Tensor"),
        (torch.zeros(2), None, 2, ([torch.zeros(2)], None), ValueError, "Tensor of 1 tensors; got list of 1"),
        (torch.zeros(2), None, 2, (torch.zeros(3), None), ValueError, r"was torch.float32 \(2,\) and became .*\(3,\)"),
        (torch.zeros(2), None, 2, (torch.zeros(2).double(), None), ValueError, "became torch.float64"),
        (torch.zeros(2), None, 2, (torch.zeros(2), 1.0), TypeError, "`outputs` must be tensors, got float"),
    ],
)  # fmt: skip
def test_errors(
    states: Any, inputs: Any, length: Any, result: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scan(lambda *_: result, states, inputs, length=length)


def test_one_compilation_for_every_length() -> None:
    model = Attention().eval()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for steps, batch, places in ((5, 6, 7), (9, 8, 10), (2, 11, 9)):
            call = attention_call(steps, batch, places)
            torch.testing.assert_close(compiled(*call), model(*call, plain=True))
    assert counter.frame_count == 1


@pytest.mark.parametrize("model", [Nested, Greedy])
def test_compiled_like_eager(model: type[nn.Module]) -> None:
    module = deploy_rnn.convert(model().eval())
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    shapes = [(4, 2, 3, 3), (6, 5, 2, 3)] if model is Nested else [(2, 4), (5, 4)]
    with torch.no_grad():
        for shape in shapes:
            call = torch.randn(shape)
            torch.testing.assert_close(compiled(call), module(call))


def test_gradients_under_torch_compile() -> None:
    model = Attention()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, memory, lengths = attention_call(3, 2, 3)
    sources = [x.requires_grad_(), memory.requires_grad_(), *model.parameters()]
    grads = []
    for outputs in (compiled(x, memory, lengths), model(x, memory, lengths)):
        loss = outputs[0].sin().sum() + outputs[2].sum()
        grads.append(torch.autograd.grad(loss, sources))
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("model", [Attention, Nested, Greedy])
def test_exported_for_every_size(model: type[nn.Module]) -> None:
    module = deploy_rnn.convert(model().eval())
    calls: list[Any] = {
        Attention: [attention_call(5, 2, 3), attention_call(9, 4, 7)],
        Nested: [(torch.randn(4, 2, 3, 3),), (torch.randn(6, 5, 3, 3),)],
        Greedy: [(torch.randn(2, 4),), (torch.randn(5, 4),)],
    }[model]
    auto = torch.export.Dim.AUTO
    # The inner of two loops has a fixed number of steps.
    shapes = tuple(dict.fromkeys(range(min(tensor.dim(), 2)), auto) for tensor in calls[0])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.export.export(module, calls[0], dynamic_shapes=shapes, strict=False)
        assert "higher_order.scan" in str(program.graph)
        for call in calls:
            torch.testing.assert_close(program.module()(*call), module(*call))
        if model is Nested:
            with pytest.raises(ExportError, match="a `scan` within the step of another"):
                torch.export.export(
                    module, calls[0], dynamic_shapes=({2: torch.export.Dim.DYNAMIC},), strict=False
                )


class StateOf(nn.Module):
    """A loop over the steps of x (T, B, N) with a state of zeros of some shape."""

    def __init__(self, shape: Callable[[int, int], tuple[int, ...]]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(self.shape(x.size(1), x.size(2)))

        def step(state: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            new = state + row.mean()
            return new, new

        last: Tensor = scan(step, state, x)[0]
        return last


@pytest.mark.parametrize(
    "shape",
    [
        lambda batch, nodes: (batch, 4),
        lambda batch, nodes: (2, batch, 4),
        lambda batch, nodes: (batch, 5, 4),
        lambda batch, nodes: (batch, nodes, 4),
        lambda batch, nodes: (batch, 5, 4, 2),
    ],
)
def test_the_batch_of_a_state(shape: Callable[[int, int], tuple[int, ...]]) -> None:
    """Layers come before it, what a row has of its own after it."""
    batches: list[Any] = []

    def noted_shape(batch: int, nodes: int) -> tuple[int, ...]:
        batches.append(batch)
        return shape(batch, nodes)

    model = StateOf(noted_shape)
    x = torch.randn(6, 2, 3)
    with noted_loops() as loops:
        torch.export.export(model, (x,), dynamic_shapes=(dict.fromkeys(range(3), Dim.AUTO),))
    assert {str(loop.batch) for loop in loops} == {str(batches[-1])}
    assert isinstance(loops[0].batch, torch.SymInt)
