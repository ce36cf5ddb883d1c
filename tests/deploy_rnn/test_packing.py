"""Models that pack, compiled and traced by torch.export: the numbers of PyTorch, and one graph for all lengths."""

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import deploy_rnn
from deploy_rnn import compilation
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.conversion import convert_for_inference
from deploy_rnn.errors import CompilationError, ExportError
from deploy_rnn.packaging.axes import DynamicCall
from deploy_rnn.packaging.tracing import trace

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own
]


torch.manual_seed(0)


class Model(nn.Module):
    """Layers, and a way to use them."""

    def __init__(self, use: Callable[..., Any], batch_first: bool = True) -> None:
        super().__init__()
        self.use = use
        self.embed = nn.Embedding(9, 4, padding_idx=0)
        self.rnn = nn.LSTM(4, 5, batch_first=batch_first, bidirectional=True)
        self.after = nn.GRU(10, 3, batch_first=batch_first)
        self.score = nn.Linear(10, 10)

    def forward(self, *args: Any) -> Any:
        return self.use(self, *args)


def trimmed(model: Any, tokens: Tensor, lengths: Tensor) -> Any:
    """To the longest row; attention over its steps, and the last step of each row."""
    packed = pack_padded_sequence(
        model.embed(tokens), lengths, batch_first=True, enforce_sorted=False
    )
    output, counts = pad_packed_sequence(model.rnn(packed)[0], True, padding_value=-1.0)
    mask = torch.arange(output.size(1))[None] < counts[:, None]
    weights = output.sum(-1).masked_fill(~mask, -1e9).softmax(1)
    last = output[torch.arange(output.size(0)), counts - 1]
    return output, counts, (weights.unsqueeze(-1) * output).sum(1), last


def is_sorted(model: Any, tokens: Tensor, lengths: Tensor) -> Any:
    """Only the state, time first, the longest row first."""
    return model.rnn(rnn.pack_padded_sequence(model.embed(tokens).transpose(0, 1), lengths))[1]


def computed(model: Any, tokens: Tensor, _: Tensor) -> Any:
    """Lengths that the model counts; data that it changes; a second layer on the first; all the steps."""
    lengths = (tokens != 0).sum(1).cpu()
    packed = pack_padded_sequence(
        model.embed(tokens), lengths, batch_first=True, enforce_sorted=False
    )
    output = model.rnn(packed)[0]
    changed = PackedSequence(
        model.score(output.data), output.batch_sizes, output.sorted_indices, output.unsorted_indices
    )
    output, state = model.after(changed)
    return output, state, pad_packed_sequence(output, True, total_length=tokens.size(1))[0]


def sorted_by_hand(model: Any, tokens: Tensor, lengths: Tensor) -> Any:
    descending, order = lengths.sort(descending=True)
    output, _ = model.rnn(
        nn.utils.rnn.pack_padded_sequence(model.embed(tokens)[order], descending, True)
    )
    return pad_packed_sequence(output, True, total_length=9)[0][order.argsort()]


OF_TOKENS = (trimmed, is_sorted, computed, sorted_by_hand)
LENGTHS = ([5, 3, 2], [7, 6, 3, 1], [6, 2], [3, 3])


def of_tokens(lengths: Sequence[int], use: Any) -> tuple[Tensor, Tensor]:
    """Tokens with one step more than the longest row; rows in descending order where the model wants that."""
    rows = list(lengths) if use is is_sorted else [*lengths[1:], lengths[0]]
    tokens = torch.randint(1, 9, (len(rows), max(rows) + 1))
    for tensor, steps in zip(tokens, rows, strict=True):
        tensor[steps:] = 0
    return tokens, torch.tensor(rows)


def packed_argument(model: Any, packed: PackedSequence, h_0: Tensor) -> Any:
    output, state = model.rnn(packed, (h_0, h_0))
    return output, state, pad_packed_sequence(output, batch_first=True)


def as_list(model: Any, *rows: Tensor) -> Any:
    packed = rnn.pack_sequence([model.embed(row) for row in rows], enforce_sorted=False)
    return rnn.unpack_sequence(model.rnn(packed)[0]), rnn.pad_sequence(rows, padding_value=-1)


def numbers(model: Any, tokens: Tensor, lengths: Tensor) -> Any:
    return model.rnn(pack_padded_sequence(model.embed(tokens), lengths.tolist(), True, False))[1]


def normalised(model: Any, tokens: Tensor, lengths: Tensor) -> Any:
    """Over the steps that count, in training mode."""
    packed = pack_padded_sequence(model.embed(tokens), lengths, True, enforce_sorted=False)
    output = model.rnn(packed)[0]
    return model.after(
        output._replace(data=nn.functional.batch_norm(output.data, None, None, training=True))
    )[1]


def _packed_arguments(lengths: Sequence[int]) -> tuple[PackedSequence, Tensor]:
    x = torch.randn(len(lengths), max(lengths), 4)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True)
    return packed, torch.randn(2, len(lengths), 5)


CALLS: dict[Callable[..., Any], list[Any]] = {
    packed_argument: [_packed_arguments(lengths) for lengths in LENGTHS],
    as_list: [[torch.randint(9, (n,)) for n in rows] for rows in ([5, 3], [2, 4], [3, 3])],
}
CALLS[normalised] = [of_tokens(lengths, normalised) for lengths in LENGTHS]
CALLS[numbers] = [of_tokens(lengths, numbers) for lengths in ([5, 3, 2], [2, 6, 4])]
for _use in OF_TOKENS:
    CALLS[_use] = [of_tokens(lengths, _use) for lengths in LENGTHS]


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif value is not None:
        for part in value:
            yield from tensors(part)


def gradients(model: nn.Module, outputs: Any) -> list[Tensor]:
    model.zero_grad()
    squares = [output.square().sum() for output in tensors(outputs) if output.is_floating_point()]
    sum(squares).backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


@pytest.fixture
def no_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces, and PyTorch runs the graph."""
    monkeypatch.setattr(compilation, "compile_graph", torch._dynamo.lookup_backend("eager"))


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.usefixtures("no_inductor")
@pytest.mark.parametrize("use", CALLS)
def test_one_graph_serves_all_lengths(use: Callable[..., Any]) -> None:
    model = Model(use, batch_first=use is not is_sorted)
    compiled = deploy_rnn.compile(model)
    torch._dynamo.utils.counters.clear()
    for args in CALLS[use]:
        expected, actual = model(*args), compiled(*args)
        torch.testing.assert_close([*tensors(actual)], [*tensors(expected)])
        torch.testing.assert_close(gradients(compiled, actual), gradients(model, expected))
    assert graphs() == 1


def test_a_model_that_packs_is_compiled() -> None:
    """By inductor; lengths that PyTorch refuses are refused with its words."""
    model = Model(is_sorted, batch_first=False).eval()
    compiled = deploy_rnn.compile(model)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for args in CALLS[is_sorted]:
            torch.testing.assert_close(compiled(*args), model(*args))
        assert graphs() == 1
        tokens = torch.randint(9, (2, 5))
        for lengths, message in {
            (2, 4): "`lengths` array must be sorted in decreasing order",
            (6, 4): "the model itself fails on its arguments",
            (4, 0): "Length of all samples has to be greater than 0",
        }.items():
            with pytest.raises(CompilationError, match=message):
                compiled(tokens, torch.tensor(lengths))


def test_other_models_of_the_process_are_compiled_as_before() -> None:
    deploy_rnn.compile(nn.GRU(3, 4))
    torch._dynamo.utils.counters.clear()

    def packed(x: Tensor, lengths: Tensor) -> Tensor:
        return 2 * pack_padded_sequence(x + 1, lengths).data

    args = torch.randn(4, 2, 3), torch.tensor([4, 2])
    torch.testing.assert_close(torch.compile(packed, backend="eager")(*args), packed(*args))
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) == 1
    torch._dynamo.reset()
    refused = torch.compile(packed, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        refused(*args)


# torch.export, and what AOTInductor makes of it.


@pytest.mark.parametrize("use", OF_TOKENS)
def test_one_exported_graph_serves_all_lengths(use: Callable[..., Any]) -> None:
    first = use is not is_sorted
    model = Model(use, batch_first=first).eval()
    call = ExampleCall.of(model, of_tokens([5, 4, 2], use), None)
    shapes = [{0: "B", 1: "T"}, {0: "B"}]
    example = DynamicCall.of(model, call, call.shapes(shapes))
    before = rnn.pack_padded_sequence.__code__
    with torch.no_grad():
        program = trace(convert_for_inference(model), call, example.axes).program
        assert rnn.pack_padded_sequence.__code__ is before
        for args in CALLS[use]:
            actual, expected = program.module()(*args), model(*args)
            torch.testing.assert_close([*tensors(actual)], [*tensors(expected)])


def test_a_model_that_packs_is_packaged(tmp_path: Path) -> None:
    """With B and T found, although its lengths must be sorted; with the answer trimmed to the longest row."""
    path = tmp_path / "m.pt2"
    model = Model(sorted_and_trimmed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        report = deploy_rnn.package(model, of_tokens([5, 4, 2], is_sorted), path)
    assert [*report.inputs.values()] == [("B", "T"), ("B",)]
    packaged = torch._inductor.aoti_load_package(str(path))
    with torch.no_grad():
        for args in CALLS[is_sorted]:
            torch.testing.assert_close(packaged(*args), model.eval()(*args))
    with pytest.raises(RuntimeError):
        packaged(*of_tokens([5, 4, 2], trimmed))


def sorted_and_trimmed(model: Any, tokens: Tensor, lengths: Tensor) -> Any:
    packed = pack_padded_sequence(model.embed(tokens), lengths, batch_first=True)
    return pad_packed_sequence(model.rnn(packed)[0], batch_first=True)[0]


def packed_out(model: Any, tokens: Tensor, lengths: Tensor) -> Any:
    return {"rows": model.rnn(pack_padded_sequence(model.embed(tokens), lengths, True))[0]}


def test_a_packed_sequence_is_no_output_of_a_file(tmp_path: Path) -> None:
    args = of_tokens([5, 4, 2], is_sorted)
    message = (
        "the model returns a PackedSequence, which no file does; return what pad_packed_sequence"
    )
    with pytest.raises(ExportError, match=message):
        deploy_rnn.package(Model(packed_out), args, tmp_path / "m.pt2")


def test_lengths_that_are_numbers_are_refused_in_a_file(tmp_path: Path) -> None:
    args = of_tokens([5, 4, 2], numbers)
    message = r"test_packing.py:\d+: .*lengths of pack_padded_sequence are numbers taken out of"
    with pytest.raises(ExportError, match=message):
        deploy_rnn.package(Model(numbers), args, tmp_path / "m.pt2")


def test_a_compiled_model_can_be_saved() -> None:
    model = Model(is_sorted, batch_first=False)
    loaded = pickle.loads(pickle.dumps(deploy_rnn.compile(model)))
    torch.testing.assert_close(loaded.state_dict(), deploy_rnn.compile(model).state_dict())
