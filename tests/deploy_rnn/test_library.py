"""`deploy_rnn.compile(recurrence="library")`: a library's kernel in the graph.

Dynamo traces each graph, and PyTorch runs it as it is: the kernel is the same, and no C++ is compiled.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

import deploy_rnn
import deploy_rnn.compilation
from deploy_rnn import inductor
from deploy_rnn.compiled_function import CompiledFunction
from deploy_rnn.errors import ExportError
from deploy_rnn.nn import cudnn
from deploy_rnn.nn.library import assign_kernels
from deploy_rnn.nn.lstm_directions import lstm_direction, lstm_directions
from deploy_rnn.nn.recurrence import Recurrence
from deploy_rnn.packaging import aot

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning"
    ),  # torch compiles through its own deprecated modules
]

KERNELS = {
    torch.ops.aten.mkldnn_rnn_layer.default: 1,
    torch.ops.deploy_rnn.lstm_direction.default: 1,
    torch.ops.deploy_rnn.lstm_directions.default: 2,
}
"""Operators, and how many directions each computes."""

SHAPES = [
    (5, 5), (9, 9), (4, 7), (7, 2), (33, 6), (2, 8), (64, 2), (3, 3), (2, 2), (17, 5), (8, 64), (65, 3), (18, 18),
    (100, 2), (6, 9), (10, 10), (7, 31), (24, 4), (16, 16), (5, 9),
]  # fmt: skip
"""Steps and batch of twenty calls; some equal each other, the input size or the states' size."""


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that torch.compile has made, which run as they are."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(deploy_rnn.compilation, "compile_graph", keep)
    return graphs


def kernels(graph: torch.fx.GraphModule) -> int:
    """How many directions of layers the kernel computes in a graph."""
    return sum(KERNELS.get(node.target, 0) for node in graph.graph.nodes)


def states_for(layer: nn.LSTM, rows: int) -> tuple[Tensor, Tensor]:
    shape = (layer.num_layers * (1 + layer.bidirectional), rows, layer.hidden_size)
    return torch.randn(shape), torch.randn(shape)


@torch.no_grad()
def test_one_graph_for_every_length_and_batch(traced: list[torch.fx.GraphModule]) -> None:
    original = nn.LSTM(5, 9, 2, bidirectional=True)
    compiled = deploy_rnn.compile(original, recurrence="library")
    for steps, batch in SHAPES:
        x = torch.randn(steps, batch, 5)
        torch.testing.assert_close(compiled(x), original(x), rtol=0, atol=1e-6)
    assert [kernels(graph) for graph in traced] == [4]


@pytest.mark.parametrize("with_states", [False, True])
@torch.no_grad()
def test_one_graph_for_all_lengths(traced: list[torch.fx.GraphModule], with_states: bool) -> None:
    """Both directions, from states too: what no row may see are the steps beyond its end."""
    original = nn.LSTM(5, 9, 2, bidirectional=True, batch_first=True)
    converted = deploy_rnn.convert(original)
    compiled = deploy_rnn.compile(original, recurrence="library")
    for steps, batch in SHAPES:
        x = torch.randn(batch, steps, 5)
        lengths = torch.randint(1, steps + 1, (batch,))
        lengths[0] = 1
        states = states_for(original, batch) if with_states else None
        expected = converted(x, states, lengths)
        x[torch.arange(steps) >= lengths.unsqueeze(1)] = torch.inf
        actual = compiled(x, states, lengths)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert [kernels(graph) for graph in traced] == [4]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "bidirectional": True},
        {"num_layers": 3, "dropout": 0.5, "batch_first": True},
    ],
)
@pytest.mark.parametrize("shape", [(6, 4, 5), (1, 1, 5), (6, 5)])
@torch.no_grad()
def test_it_is_equal_to_torch(
    traced: list[torch.fx.GraphModule], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    original = nn.LSTM(5, 9, **options).eval()
    compiled = deploy_rnn.compile(original, recurrence="library")
    x = torch.randn(shape)
    rows = x.size(0 if original.batch_first else 1)
    states = states_for(original, rows)
    if x.dim() == 2:
        h, c = states_for(original, 1)
        states = (h.squeeze(1), c.squeeze(1))
    torch.testing.assert_close(compiled(x, states), original(x, states), rtol=0, atol=1e-6)
    torch.testing.assert_close(compiled(x), original(x), rtol=0, atol=1e-6)
    assert all(kernels(graph) > 0 for graph in traced)


@pytest.mark.parametrize("has_biases", [False, True])
def test_what_is_said_of_the_operators_is_so(has_biases: bool) -> None:
    """What torch.compile is told of them, and what they return."""
    inputs = [torch.randn(3, 2, 5) for _ in range(2)]
    shapes = 2 * [(36, 5), (36, 9), (36,), (36,)]
    weights = [torch.randn(shape) for shape in shapes]
    states = [torch.randn(1, 2, 9) for _ in range(4)]
    checks = ("test_schema", "test_faketensor")
    both = (inputs, weights, states, has_biases, True, 9)
    torch.library.opcheck(lstm_directions, both, test_utils=checks)
    one = (inputs[0], weights[:4], states[:2], has_biases, True, 9)
    torch.library.opcheck(lstm_direction, one, test_utils=checks)


class TwoLayers(nn.Module):
    """One of two directions, and one of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(5, 9, bidirectional=True)
        self.second = nn.LSTM(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)[0])[0]


@pytest.mark.slow
@torch.no_grad()
def test_the_operators_in_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two threads and on one: the very numbers of the kernel, also of weights that have gradients."""
    drivers = []
    compile_with = inductor._compile

    def spy(graph: Any, inputs: Any, options: Any) -> Any:
        drivers.append(options.get("cpp_wrapper"))
        return compile_with(graph, inputs, options)

    monkeypatch.setattr(inductor, "_compile", spy)
    monkeypatch.setattr(deploy_rnn.compilation, "compile_graph", inductor.compile_graph)
    model = TwoLayers()
    compiled = deploy_rnn.compile(model, recurrence="library")
    x = torch.randn(6, 3, 5)
    expected = model(x)
    threads = torch.get_num_threads()
    try:
        for number in (2, 1):
            torch.set_num_threads(number)
            output = compiled(x)
            torch.testing.assert_close(output, expected, rtol=0, atol=0)
            assert torch.get_num_threads() == number
            assert not torch.is_grad_enabled()
            assert not output.requires_grad
    finally:
        torch.set_num_threads(threads)
    assert all(drivers), "C++ that does not compile would be replaced by slow Python"


@torch.no_grad()
def test_a_call_that_is_compiled_does_not_prepare_for_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    compile_call = CompiledFunction._compile

    def spy(self: Any, args: Any, kwargs: Any) -> Any:
        asked.append(args[0].size(0))
        return compile_call(self, args, kwargs)

    monkeypatch.setattr(CompiledFunction, "_compile", spy)
    compiled = deploy_rnn.compile(nn.LSTM(5, 4))
    for steps in (5, 6, 7, 1, 1):
        compiled(torch.randn(steps, 2, 5))
    with torch.compiler.set_stance("force_eager"):
        compiled(torch.randn(3, 2, 5))
    compiled(torch.randn(3, 2, 5))
    assert asked == [5, 1, 3]


@torch.no_grad()
def test_where_torch_compile_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    original = nn.LSTM(5, 4)
    x = torch.randn(3, 2, 5)
    torch.testing.assert_close(deploy_rnn.compile(original)(x), original(x))


@torch.no_grad()
def test_a_batch_of_no_rows() -> None:
    original = nn.LSTM(5, 9)
    output, (h, c) = deploy_rnn.compile(original, recurrence="library")(torch.zeros(4, 0, 5))
    assert (output.shape, h.shape, c.shape) == ((4, 0, 9), (1, 0, 9), (1, 0, 9))


def halved(layer: nn.Module) -> None:
    for weight in layer.parameters():
        weight.mul_(0.5)


def loaded(layer: nn.Module) -> None:
    layer.load_state_dict({name: -value for name, value in layer.state_dict().items()})


def assigned(layer: nn.Module) -> None:
    values = {name: value + 0.5 for name, value in layer.state_dict().items()}
    layer.load_state_dict(values, assign=True)


def renewed(layer: nn.Module) -> None:
    """Twice, so that the second may lie where the first of all lay."""
    for _ in range(2):
        for weight in layer.parameters():
            weight.data = torch.rand_like(weight)


def averaged(layer: nn.Module) -> None:
    """Through `.data`, which PyTorch does not count; what is left out changes every second column."""
    for weight in layer.parameters():
        if weight.dim() == 2:
            weight.data[:, 1::2] *= 0.5


def written(layer: nn.Module) -> None:
    for weight in layer.parameters():
        weight.detach().numpy()[: weight.size(0) // 4] += 0.5


def stepped(layer: nn.Module) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with torch.enable_grad():
        layer(torch.randn(3, 2, 5))[0].sum().backward()
    optimizer.step()


@torch.no_grad()
def test_a_change_of_the_weights_is_seen(traced: list[torch.fx.GraphModule]) -> None:
    compiled: Any = deploy_rnn.compile(nn.LSTM(5, 9, bidirectional=True), recurrence="library")
    layer = compiled._orig_mod
    x = torch.randn(4, 3, 5)
    for change in (halved, loaded, assigned, renewed, averaged, written, stepped):
        before = compiled(x)[0]
        change(layer)
        expected = nn.LSTM(5, 9, bidirectional=True)
        expected.load_state_dict(layer.state_dict())
        actual = compiled(x)
        torch.testing.assert_close(actual, expected(x), rtol=0, atol=1e-6)
        assert not torch.allclose(actual[0], before), change.__name__
    assert sum(kernels(graph) for graph in traced) == 2  # one graph


def test_a_computed_weight_is_computed_at_each_call(traced: list[torch.fx.GraphModule]) -> None:
    """A parametrisation makes another tensor each time: there is nothing to reorder."""
    layer = nn.LSTM(5, 9)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    compiled: Any = deploy_rnn.compile(layer, recurrence="library")
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        compiled(x)
        for part in (layer, compiled):
            part.parametrizations.weight_hh_l0.original0.mul_(0.1)
        torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-6)
    assert kernels(traced[0]) == 1


def test_with_gradients_and_in_other_dtypes_it_is_the_loop(
    traced: list[torch.fx.GraphModule],
) -> None:
    original = nn.LSTM(5, 9)
    compiled = deploy_rnn.compile(original, recurrence="library")
    x = torch.randn(3, 2, 5)
    compiled(x)[0].sum().backward()
    original(x)[0].sum().backward()
    torch.testing.assert_close(compiled.weight_hh_l0.grad, original.weight_hh_l0.grad)
    with torch.no_grad():
        compiled(x)
        torch.testing.assert_close(compiled.double()(x.double()), original.double()(x.double()))
    assert [kernels(graph) for graph in traced] == [0, 1, 0]


class Labeller(nn.Module):
    """It packs its rows; the steps of its second layer are those of the longest."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(5, 4, batch_first=True, bidirectional=True)
        self.second = nn.LSTM(8, 3, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        packed, (h, _) = self.first(packed)
        return self.second(pad_packed_sequence(packed, batch_first=True)[0])[0], h


@torch.no_grad()
def test_a_model_that_packs_its_rows(traced: list[torch.fx.GraphModule]) -> None:
    model = Labeller()
    compiled = deploy_rnn.compile(model)
    for lengths in ([3, 5, 1], [4, 4]):
        x = torch.randn(len(lengths), 6, 5)
        actual = compiled(x, torch.tensor(lengths))
        torch.testing.assert_close(actual, model(x, torch.tensor(lengths)), rtol=0, atol=1e-6)
    assert [kernels(graph) for graph in traced] == [3]


@torch.no_grad()
def test_a_copy_has_weights_of_its_own() -> None:
    model = nn.Sequential(nn.LSTM(5, 9))
    compiled: Any = deploy_rnn.compile(model, recurrence="library")
    x = torch.randn(4, 3, 5)
    expected = compiled(x)
    copied = copy.deepcopy(compiled._orig_mod)
    halved(copied)
    torch.testing.assert_close(compiled(x), expected)
    assert not torch.allclose(copied(x)[0], expected[0])


@pytest.mark.parametrize("recurrence", ["scan", "library"])
@torch.no_grad()
def test_the_dropout_is_no_input_in_evaluation_mode(
    traced: list[torch.fx.GraphModule], recurrence: str
) -> None:
    """Inductor would not use it, and torch.compile begin again without it, which takes seconds."""
    model = nn.LSTM(5, 9, num_layers=2, dropout=0.5).eval()
    deploy_rnn.compile(model, recurrence=recurrence)(torch.randn(4, 3, 5))
    (graph,) = traced
    assert not [node for node in graph.graph.nodes if node.target == "item"]


class Doubled(deploy_rnn.LSTM):
    """A loop of its own."""

    def run_layers(self, input: Tensor, states: Any, lengths: Any) -> Any:
        output, finals = super().run_layers(input, states, lengths)
        return 2 * output, finals


class Scaled(Recurrence):
    def run(self, layer: Any, input: Tensor, states: Any, lengths: Any) -> Any:
        return super().run(layer, 2 * input, states, lengths)


def test_what_has_no_kernel() -> None:
    scaled = deploy_rnn.LSTM(3, 4)
    scaled.recurrence = Scaled()
    others = [
        deploy_rnn.GRU(3, 4), deploy_rnn.RNN(3, 4), deploy_rnn.LSTM(3, 4, proj_size=2), Doubled(3, 4), scaled,
    ]  # fmt: skip
    for layer in others:
        assert assign_kernels(layer, "library") == []
    for layer in (deploy_rnn.LSTM(3, 4), deploy_rnn.convert(nn.LSTM(3, 4))):
        assert len(assign_kernels(layer, "library")) == 1


@torch.no_grad()
def test_a_package_has_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled to the file; tests/deploy_rnn/packaging runs one without our source."""
    found = []

    def look(model: nn.Module, call: Any, *_: Any) -> Any:
        free = {0: Dim.AUTO, 1: Dim.AUTO}
        shapes = {name: free for name in call.bound.arguments}
        graph = torch.export.export(model, call.bound.args, dynamic_shapes=shapes).graph_module
        found.append(kernels(graph))
        raise ExportError("looked")

    monkeypatch.setattr(aot, "compile_file", look)
    layer = nn.LSTM(5, 9, 2, bidirectional=True)
    for recurrence in ("auto", "library", "scan"):
        with pytest.raises(ExportError, match="looked"):
            deploy_rnn.package(
                layer, torch.randn(4, 3, 5), tmp_path / "m.pt2", recurrence=recurrence
            )
    assert found == [4, 4, 0]
    with pytest.raises(ValueError, match=r"`recurrence` \(='loop'\) must be one of 'auto'"):
        deploy_rnn.package(layer, torch.randn(4, 3, 5), tmp_path / "m.pt2", recurrence="loop")


@torch.no_grad()
def test_the_choice(traced: list[torch.fx.GraphModule]) -> None:
    original = nn.LSTM(3, 4)
    x = torch.randn(3, 2, 3)
    for recurrence in ("scan", "auto"):
        output = deploy_rnn.compile(original, recurrence=recurrence)(x)
        torch.testing.assert_close(pytree.tree_leaves(output), pytree.tree_leaves(original(x)))
    assert [kernels(graph) for graph in traced] == [0, 1]
    with pytest.raises(ValueError, match=r"`recurrence` \(='cudnn'\) must be one of 'auto'"):
        deploy_rnn.compile(original, recurrence="cudnn")


# cuDNN. Its operator has a stand-in: torch.nn's own functions, under its name, on the CPU.

CUDNN = torch.ops.aten._cudnn_rnn.default
FUNCTIONS: Any = (torch.rnn_relu, torch.rnn_tanh, torch.lstm, torch.gru)


def stand_in(
    input: Tensor, weight: list[Tensor], count: int, buffer: Tensor | None, hx: Tensor, cx: Tensor | None, mode: int,
    hidden: int, proj: int, layers: int, batch_first: bool, dropout: float, train: bool, bidirectional: bool,
    batch_sizes: list[int], dropout_state: Tensor | None,
) -> Any:  # fmt: skip
    states = hx if cx is None else (hx, cx)
    has_biases = count >= 4
    results = FUNCTIONS[mode](
        input, states, weight, has_biases, layers, dropout, train, bidirectional, batch_first
    )
    results = [result.clone() for result in results]
    nothing = input.new_empty(0)
    output, h, c = results if cx is not None else (*results, nothing)
    assert buffer is None or buffer.numel() == sum(part.numel() for part in weight)
    return output, h, c, input.new_empty(0, dtype=torch.uint8), nothing


def joined(weights: list[Tensor], *_: Any) -> Tensor:
    """As cuDNN's own does: the weights become parts of one piece of memory."""
    buffer = torch.cat([weight.flatten() for weight in weights])
    parts = buffer.split([weight.numel() for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.set_(part.view(weight.shape))
    return buffer


@pytest.fixture
def cudnn_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cudnn, "DEVICE", "cpu")
    monkeypatch.setattr(cudnn, "has_kernel", lambda: True)
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", joined)
    library = torch.library.Library("aten", "IMPL")
    library.impl("_cudnn_rnn", stand_in, "CPU")
    yield
    library._destroy()


@pytest.mark.usefixtures("cudnn_on_the_cpu")
@pytest.mark.parametrize(
    ("family", "options"),
    [
        (nn.RNN, {"nonlinearity": "relu", "batch_first": True}),
        (nn.RNN, {"bias": False}),
        (nn.GRU, {"dropout": 0.5, "batch_first": True}),
        (nn.LSTM, {}),
        (nn.LSTM, {"proj_size": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@torch.no_grad()
def test_cudnn_in_one_graph(
    traced: list[torch.fx.GraphModule], family: Any, options: dict[str, Any]
) -> None:
    original = family(5, 9, 2, bidirectional=True, **options).eval()
    compiled: Any = deploy_rnn.compile(original, recurrence="library")
    for steps, batch in SHAPES[:6]:
        x = torch.randn(steps, batch, 5)
        torch.testing.assert_close(compiled(x), original(x), rtol=0, atol=1e-6)
    halved(compiled._orig_mod)
    halved(original)
    torch.testing.assert_close(compiled(x), original(x), rtol=0, atol=1e-6)
    renewed(compiled._orig_mod)
    original.load_state_dict(compiled._orig_mod.state_dict())
    torch.testing.assert_close(compiled(x), original(x), rtol=0, atol=1e-6)
    graph = traced[0].graph
    assert len(traced) == 1
    assert sum(node.target is CUDNN for node in graph.nodes) == 1


@pytest.mark.usefixtures("cudnn_on_the_cpu")
@torch.no_grad()
def test_what_cudnn_leaves_to_the_loop(traced: list[torch.fx.GraphModule]) -> None:
    original = nn.GRU(5, 4)
    compiled = deploy_rnn.compile(original, recurrence="library")
    x, lengths = torch.randn(4, 2, 5), torch.tensor([4, 1])
    expected = deploy_rnn.convert(original)(x, None, lengths)
    torch.testing.assert_close(compiled(x, None, lengths), expected)
    assert not any(node.target is CUDNN for node in traced[0].graph.nodes)
    assert assign_kernels(deploy_rnn.GRU(5, 4), "auto") == []


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("family", [nn.RNN, nn.GRU, nn.LSTM])
def test_cudnn_on_a_gpu(monkeypatch: pytest.MonkeyPatch, family: Any) -> None:
    """Compiled to the end, in float32 and in float16."""
    monkeypatch.undo()
    for dtype, atol in ((torch.float32, 1e-5), (torch.float16, 1e-2)):
        original = family(5, 64, 2, bidirectional=True, device="cuda", dtype=dtype)
        compiled = deploy_rnn.compile(original, recurrence="library")
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for steps, batch in SHAPES[:4]:
                x = torch.randn(steps, batch, 5, device="cuda", dtype=dtype)
                torch.testing.assert_close(compiled(x), original(x), rtol=0, atol=atol)
