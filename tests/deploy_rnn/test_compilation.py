"""`deploy_rnn.compile`, and `torch.compile(fullgraph=True)` on the layer itself: a loop that stays a loop."""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._inductor.exc import CppCompileError, InductorError
from torch.fx.experimental import _config as shape_config
from torch.nn import functional
from torch.utils import _pytree as pytree

import deploy_rnn
import deploy_rnn.compilation
from deploy_rnn import RNN, inductor
from deploy_rnn.compiled_function import NO_DUCK_SHAPES
from deploy_rnn.errors import CompilationError, ConversionError
from deploy_rnn.inductor import compile_graph
from deploy_rnn.loop_blocks import STEPS_A_TURN, write_loops_in_blocks
from deploy_rnn.nn.torch_version import CPP_WRAPPER

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings(
        "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
    ),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning"
    ),  # torch compiles through its own deprecated modules
]


class Tagger(nn.Module):
    """Embedding -> RNN -> Linear."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.rnn = nn.RNN(6, 9, 2, batch_first=True, **options)
        self.score = nn.Linear(9 * (2 if self.rnn.bidirectional else 1), 4)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.score(self.rnn(self.embed(tokens))[0])
        return scores


def graphs() -> int:
    """How many graphs torch.compile has made since the reset."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture(autouse=True)
def no_graphs_yet() -> None:
    torch._dynamo.utils.counters.clear()


FAMILIES = [(nn.RNN, {"num_layers": 2}), (nn.GRU, {}), (nn.LSTM, {}), (nn.LSTM, {"proj_size": 4})]
"""One family has two layers; to compile a second one takes as long as the first."""

SHAPES = [
    (5, 5), (9, 9), (4, 7), (7, 2), (33, 6), (2, 8), (64, 2), (3, 3), (2, 2), (17, 5), (8, 64), (65, 3), (18, 18),
    (100, 2), (6, 9), (10, 10), (7, 31), (24, 4), (16, 16), (5, 9),
]  # fmt: skip
"""Steps and batch of twenty calls; some equal each other, the input size or the states' size."""


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "options"), FAMILIES)
def test_one_compilation_serves_every_length_and_batch(
    cls: type[nn.RNNBase], options: dict[str, int]
) -> None:
    original = cls(5, 9, bidirectional=True, **options)
    compiled = deploy_rnn.compile(original)
    with torch.no_grad():
        for steps, batch in SHAPES:
            x = torch.randn(steps, batch, 5)
            torch.testing.assert_close(compiled(x), original(x))
        assert graphs() == 1


@pytest.mark.skipif(not CPP_WRAPPER, reason="steps are taken one by one")
def test_a_loop_takes_several_steps_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """And then those that are left, one by one. With one row, no step calls a library for its product."""
    bodies: list[torch.fx.Graph] = []

    def write_and_note(graph: torch.fx.Graph) -> None:
        write_loops_in_blocks(graph)
        for loop in graph.find_nodes(op="call_function", target=torch.ops.higher_order.while_loop):
            bodies.append(getattr(graph.owning_module, loop.args[1].target).graph)

    monkeypatch.setattr(deploy_rnn.inductor, "write_loops_in_blocks", write_and_note)
    original = nn.RNN(3, 4).eval()
    compiled = deploy_rnn.compile(original)
    with torch.no_grad():
        for steps in (7, 2, 3, 4, 5, 8, 9):
            x = torch.randn(steps, 1, 3)
            torch.testing.assert_close(compiled(x), original(x))
    assert graphs() == 1
    operators = [[str(node.target) for node in body.nodes] for body in bodies]
    assert [names.count("aten.tanh.default") for names in operators] == [STEPS_A_TURN, 1]
    assert not any("bmm" in name for names in operators for name in names)


def test_a_loop_of_one_state_without_outputs() -> None:
    """Its only result is one of a list, and not the list."""

    def total(x: Tensor) -> Tensor:
        last: Tensor = deploy_rnn.scan(
            lambda state, x: (torch.tanh(state + x), None), x.new_zeros(x.shape[1:]), x
        )[0]
        return last

    compiled = torch.compile(total, fullgraph=True, dynamic=True, backend=compile_graph)
    with torch.no_grad():
        for steps in (6, 3, 8):
            x = torch.randn(steps, 5)
            torch.testing.assert_close(compiled(x), total(x))
    assert graphs() == 1


class Attention(nn.Module):
    """Tensors of the size of the last state, made while the state is still needed."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 8, batch_first=True)
        self.cell = nn.GRUCell(8 + 8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        output, last = self.rnn(x)
        state = last[-1]
        for _ in range(2):
            weights = torch.softmax((output @ state.unsqueeze(-1)).squeeze(-1), -1)
            context = (weights.unsqueeze(1) @ output).squeeze(1)
            state = self.cell(torch.cat([y, context], -1), state)
        return context, state


@pytest.mark.filterwarnings(
    "ignore:(?s).*is a torch.nn.GRUCell, which the model calls 2 times:UserWarning"
)
def test_memory_of_states_is_not_given_away_twice() -> None:
    """With fewer steps than a turn has, and with a multiple, one of the two loops has no turn."""
    original = Attention()
    compiled = deploy_rnn.compile(original)
    with torch.no_grad():
        for steps, batch in [(STEPS_A_TURN, 3), (7, 2), (3, 3), (2, 5), (2 * STEPS_A_TURN, 3)]:
            x, y = torch.randn(batch, steps, 6), torch.randn(batch, 8)
            torch.testing.assert_close(compiled(x, y), original(x, y))


@pytest.mark.slow
def test_one_step_and_one_row_compile_once_more_each() -> None:
    original = nn.RNN(5, 9)
    compiled = deploy_rnn.compile(original)
    with torch.no_grad():
        for steps, batch in [(4, 7), (1, 3), (5, 1), (1, 1), (9, 2), (1, 8), (70, 1), (1, 1)]:
            x = torch.randn(steps, batch, 5)
            torch.testing.assert_close(compiled(x), original(x))
        assert graphs() == 4
        for actual, expected in zip(
            compiled(torch.zeros(4, 0, 5)), original(torch.zeros(4, 0, 5)), strict=True
        ):
            assert actual.shape == expected.shape  # no row at all


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "options"), FAMILIES)
def test_states_and_lengths(cls: type[nn.RNNBase], options: dict[str, int]) -> None:
    original = cls(5, 9, bidirectional=True, batch_first=True, **options)
    ours = deploy_rnn.convert(original)
    compiled = deploy_rnn.compile(original)
    state_count = 2 * original.num_layers
    with torch.no_grad():
        for batch, steps in [(3, 6), (7, 11)]:
            x, lengths = torch.randn(batch, steps, 5), torch.randint(1, steps + 1, (batch,))
            h = torch.randn(state_count, batch, options.get("proj_size", 9))
            states = (h, torch.randn(state_count, batch, 9)) if cls is nn.LSTM else h
            kept = pytree.tree_map(torch.clone, states)
            torch.testing.assert_close(compiled(x, states, lengths), ours(x, states, lengths))
            torch.testing.assert_close(states, kept)  # the loop may not write into its first state
        assert graphs() == 1


def test_the_setting_that_keeps_sizes_apart_is_put_back() -> None:
    """Also by the last of several threads; other models in the process compile as they did."""
    assert shape_config.use_duck_shape
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: _enter_and_leave(), range(200)))
    assert shape_config.use_duck_shape


def _enter_and_leave() -> None:
    with NO_DUCK_SHAPES:
        assert not shape_config.use_duck_shape


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("bidirectional", [False, True])
def test_one_compilation_serves_every_length_and_batch_on_the_gpu(bidirectional: bool) -> None:
    original = nn.RNN(5, 64, 2, bidirectional=bidirectional, device="cuda")
    compiled = deploy_rnn.compile(original)
    with torch.no_grad():
        for steps, batch in [(4, 7), (9, 2), (33, 6)]:
            x = torch.randn(steps, batch, 5, device="cuda")
            torch.testing.assert_close(compiled(x), original(x), rtol=1e-4, atol=1e-5)
        assert graphs() == 1


@pytest.mark.slow
def test_without_h0_layers_do_not_share_their_zeros() -> None:
    """Each layer's loop starts from zeros; were they one buffer, the second layer would start from the first's end."""
    original = nn.RNN(5, 9, 3, "relu", bidirectional=True, batch_first=True, bias=False)
    compiled = deploy_rnn.compile(original)
    with torch.no_grad():
        for batch, steps in [(4, 3), (2, 17)]:
            x = torch.randn(batch, steps, 5)
            torch.testing.assert_close(compiled(x), original(x))
            torch.testing.assert_close(
                compiled(x), original(x)
            )  # and again, with what the first call left behind


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "options"), FAMILIES)
def test_gradients_through_the_compiled_loop(
    cls: type[nn.RNNBase], options: dict[str, int]
) -> None:
    """Bidirectional layers, zeros or states to start from: where scan's own gradient, or a constant that two layers
    share, is wrong (see deploy_rnn/nn/scan.py).
    """
    layer = deploy_rnn.convert(cls(5, 9, bidirectional=True, **options))
    state_count = 2 * layer.num_layers
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    with_states = cls is nn.GRU  # zeros are where a shared constant would show
    for steps, batch in [(4, 3), (9, 2)]:
        gradients = []
        for network in (compiled, layer):
            x = torch.linspace(-1, 1, steps * batch * 5).view(steps, batch, 5).requires_grad_()
            h = (
                torch.linspace(-1, 1, state_count * batch * options.get("proj_size", 9))
                .view(state_count, batch, -1)
                .requires_grad_()
            )
            c = torch.linspace(1, -1, state_count * batch * 9).view(state_count, batch, 9)
            c = c.requires_grad_()
            states = (h, c) if cls is nn.LSTM else h
            layer.zero_grad()
            outputs = pytree.tree_leaves(network(x, states if with_states else None))
            sum(
                (output.sin() * (number + 1)).sum() for number, output in enumerate(outputs)
            ).backward()
            grads = [tensor.grad for tensor in (x, h, c) if tensor.grad is not None]
            gradients.append([*outputs, *grads, *(weight.grad for weight in layer.parameters())])
        for actual, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradients_with_lengths() -> None:
    layer = deploy_rnn.convert(nn.RNN(5, 9, bidirectional=True))
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    gradients = []
    for network in (compiled, layer):
        x = torch.linspace(-1, 1, 6 * 3 * 5).view(6, 3, 5).requires_grad_()
        layer.zero_grad()
        output, h_n = network(x, None, torch.tensor([2, 6, 3]))
        (output.square().sum() + h_n.sin().sum()).backward()
        gradients.append([x.grad, *(weight.grad for weight in layer.parameters())])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_whole_model_compiles_without_a_graph_break() -> None:
    model = Tagger(bidirectional=True).eval()
    compiled = deploy_rnn.compile(model)
    with torch.inference_mode():
        for batch, steps in [(4, 9), (2, 30)]:
            tokens = torch.randint(20, (batch, steps))
            torch.testing.assert_close(compiled(tokens), model(tokens))
    assert graphs() == 1


def test_torch_compile_without_options() -> None:
    """Without `fullgraph`, it lets nothing be read out of a tensor: not even inductor the number of a loop's step."""
    layer = nn.GRU(3, 4).eval()
    compiled = torch.compile(deploy_rnn.convert(layer))
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))


def test_the_loop_is_not_unrolled_into_the_graph() -> None:
    """Compile time cannot grow with T if the graph does not."""
    sizes = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    layer = RNN(3, 4, 2, bidirectional=True)
    for steps in (5, 200):
        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(layer, fullgraph=True, backend=count)(torch.randn(steps, 2, 3))
    assert sizes[0] == sizes[1]


class Branching(nn.Module):
    """A question that no reading of the code finds."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        scale = 2.0 if "torch.nn" in type(self.rnn).__module__ else 1.0
        return self.dropout(self.rnn(x)[0]) * scale * self.scale


@pytest.fixture
def no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled runs as it is."""
    monkeypatch.setattr(deploy_rnn.compilation, "compile_graph", lambda graph, _: graph.forward)


@pytest.mark.usefixtures("no_compilation")
def test_the_first_call_compares_with_the_model() -> None:
    compiled = deploy_rnn.compile(Branching())
    with pytest.raises(ConversionError) as raised:
        compiled(torch.randn(5, 2, 3))
    message = str(raised.value)
    assert message.startswith("the converted model is not the model: output 0 differs by ")
    assert "(`rnn`)" in message
    assert "check=False" in message


@pytest.mark.usefixtures("no_compilation")
def test_the_comparison_can_be_left_out() -> None:
    assert deploy_rnn.compile(Branching(), check=False)(torch.randn(5, 2, 3)).shape == (5, 2, 4)


class Sampling(nn.Module):
    """Random, with a state, and a buffer that counts: none of it may look like a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        x = x + torch.randn_like(x)
        output: Tensor = self.rnn(x)[0]
        return output * self.calls


@pytest.mark.usefixtures("no_compilation")
def test_the_comparison_leaves_no_trace() -> None:
    model = Sampling()
    compiled = deploy_rnn.compile(model)
    with torch.no_grad():
        for weight in compiled.parameters():
            weight.mul_(0.5)
    torch.manual_seed(0)
    compiled(torch.ones(5, 2, 3))
    after = torch.rand(())
    assert int(compiled.calls) == 1
    assert int(model.calls) == 0
    assert compiled.training
    torch.manual_seed(0)
    torch.randn(5, 2, 3)
    assert torch.equal(torch.rand(()), after)


@pytest.mark.usefixtures("no_compilation")
def test_a_call_that_the_model_refuses_is_its_own_error() -> None:
    compiled = deploy_rnn.compile(Branching())
    with pytest.raises(RuntimeError, match=r"input\.size"):
        compiled(torch.randn(5, 2, 7))
    with pytest.raises(ConversionError, match="output 0 differs"):
        compiled(torch.randn(5, 2, 3))


class Refused(nn.Module):
    """A model that runs, and that torch.compile cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        if output.mean() > 0:
            output = 2 * output
        return output


class TakenApart(Refused):
    """torch.compile takes it apart as far as an error of Python's own type."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        steps = x[0, :, 0].long().tolist()
        return torch.stack([output[step - 1, row] for row, step in enumerate(steps)])


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0].reshape(-1, 999)
        return output


X = torch.zeros(5, 2, 3)
FAILS = "the model itself fails on its arguments"


@pytest.mark.parametrize(
    ("model", "args", "line", "text"),
    [
        (Failing(), (X,), "reshape(-1, 999)", f"{FAILS}: RuntimeError: shape '[-1, 999]'"),
        (Failing(), (), "", f"{FAILS}: TypeError: Failing.forward() missing 1 required"),
        (nn.GRU(3, 4), (X[..., 1:],), "", f"{FAILS}: RuntimeError: input.size(-1) must"),
        (TakenApart(), (X,), "torch.stack([output[step - 1", "torch.compile cannot take this: IndexError: only"),
        (Refused(), (X,), "if output.mean() > 0:", "the model goes another way for other values"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_call_that_cannot_be_compiled(
    model: nn.Module,
    args: tuple[Tensor, ...],
    line: str,
    text: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One sentence, and not the twenty lines of torch.compile; nor what it prints to stderr on the way."""
    with pytest.raises(CompilationError) as raised:
        deploy_rnn.compile(model)(*args)
    start, _, rest = str(raised.value).rpartition("`: ")
    assert line in start
    assert start.startswith(f"{__file__}:" if line else "")
    assert rest.startswith(text)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


class Stepped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.size(1), 4)
        for step in x.unbind(0):
            h, c = self.cell(step, (h, c))
        return h


@pytest.mark.usefixtures("no_compilation")
def test_a_cell_in_a_loop_is_warned_of() -> None:
    compiled = deploy_rnn.compile(Stepped())
    message = (
        r"test_compilation.py:\d+: `h, c = self.cell\(step, \(h, c\)\)`: `cell` is a torch.nn.LSTMCell, which the "
        r"model calls 5 times in a loop.* Put the loop into deploy_rnn.scan"
    )
    with pytest.warns(UserWarning, match=message):
        compiled(torch.randn(5, 2, 3))


@pytest.mark.usefixtures("no_compilation")
def test_a_cell_that_takes_one_step_is_not_warned_of() -> None:
    assert deploy_rnn.compile(Stepped())(torch.randn(1, 2, 3)).shape == (2, 4)


def test_a_layer_in_a_list_that_no_module_registers() -> None:
    class Unregistered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Sequential(nn.GRU(3, 4))]

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.layers[0](x)[0]
            return output

    with pytest.raises(
        ConversionError, match=r"`layers` holds a torch\.nn\.GRU that is not registered"
    ):
        deploy_rnn.compile(Unregistered())


@pytest.mark.usefixtures("no_compilation")
def test_layers_that_are_used_through_a_list() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.GRU(3, 4)
            self.second = nn.GRU(4, 4)
            self.layers = [self.first, self.second]

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)[0]
            return x

    model = Listed()
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(deploy_rnn.compile(model)(x), model(x))


class Scaled(nn.Module):
    """Overwrites the output of the loop in place, once it is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = 2 * self.rnn(x)[0] + 1
        return output


def test_an_operation_on_every_output_of_the_loop() -> None:
    model = Scaled().eval()
    compiled = deploy_rnn.compile(model, check=False)
    with torch.no_grad():
        for steps, batch in ((6, 2), (9, 5)):
            x = torch.randn(steps, batch, 3)
            torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.skipif(not CPP_WRAPPER, reason="Python drives every graph")
def test_cplusplus_that_does_not_compile_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Except where the reason is known, and nobody can do anything about it."""
    output = "main.cpp:1:10: fatal error: Python.h: No such file or directory"

    def compile_with(graph: torch.fx.GraphModule, _: Any, options: dict[str, Any]) -> Any:
        if "cpp_wrapper" in options:
            raise InductorError(CppCompileError(["g++"], output), None)
        return graph.forward

    monkeypatch.setattr(inductor, "_compile", compile_with)
    graph = torch.fx.symbolic_trace(nn.Linear(2, 2))
    inductor._warn_of_python_driver.cache_clear()
    with torch.no_grad():
        message = r"does not compile here: main.cpp:1:10: fatal error: Python.h: No such file"
        with pytest.warns(UserWarning, match=message):
            assert compile_graph(graph, []) == graph.forward
        assert compile_graph(graph, []) == graph.forward  # without another warning
        output = "main.cpp:7: error: redeclaration of 'auto buf3_handle'"
        assert compile_graph(graph, []) == graph.forward


@pytest.mark.usefixtures("no_compilation")
def test_calls_beyond_the_limit_run_uncompiled() -> None:
    """Torch's limit is 8 kinds of calls, and raises an error at the ninth."""
    model = nn.GRU(3, 4).eval()
    compiled = deploy_rnn.compile(model)
    calls = [torch.randn(5, 2, 3), torch.randn(1, 2, 3), torch.randn(5, 1, 3), torch.randn(1, 1, 3)]
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():
        for x in calls[:2]:
            torch.testing.assert_close(compiled(x), model(x))
        with pytest.warns(UserWarning, match=r"for 2 kinds of calls, which is its limit"):
            torch.testing.assert_close(compiled(calls[2]), model(calls[2]))
        for x in calls:  # without another warning
            torch.testing.assert_close(compiled(x), model(x))
        assert graphs() == 2
        with torch._dynamo.config.patch(recompile_limit=3):
            torch.testing.assert_close(compiled(calls[3]), model(calls[3]))
        assert graphs() == 3


@pytest.mark.usefixtures("no_compilation")
def test_each_model_has_a_limit_of_its_own() -> None:
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():
        for size in range(2, 6):
            deploy_rnn.compile(nn.GRU(3, size))(torch.randn(5, 2, 3))
    assert graphs() == 4


class Pooled(nn.Module):
    """Every second step, the larger of two, as a network of convolutions has it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool1d(3, 2, padding=1, ceil_mode=True)
        self.rnn = nn.RNN(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(self.pool(x.transpose(1, 2)).transpose(1, 2))[0]
        return output


@pytest.mark.usefixtures("no_compilation")
def test_a_maximum_over_windows_of_any_number_of_steps() -> None:
    model = Pooled().eval()
    compiled = deploy_rnn.compile(model)
    with torch.no_grad():
        for steps in (10, 14, 22):
            x = torch.randn(2, steps, 4)
            torch.testing.assert_close(compiled(x), model(x))
    assert graphs() == 1


class Deciding(nn.Module):
    """Another output for even steps, for more than twenty, and for more than three to a row."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        if x.size(1) % 2 == 0:
            output = output + 1
        if x.size(1) > 20:
            output = output + 2
        return output + 4 if x.size(1) > 3 * x.size(0) else output


@pytest.mark.slow
def test_a_branch_on_a_size_is_compiled_on_both_sides() -> None:
    model = Deciding().eval()
    compiled = deploy_rnn.compile(model)
    for rows, steps in [(2, 5), (3, 7), (2, 6), (2, 9), (7, 21)]:
        x = torch.randn(rows, steps, 3)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))
    # The second call is on the side of the first in each branch.
    assert graphs() == 4


class NormedLoop(nn.Module):
    """Its step has numbers that are not sizes, the eps of a norm and a Python number; it walks over half the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 3, stride=2)
        self.cell = nn.GRUCell(3, 4)
        self.norm = nn.LayerNorm(4)
        self.scale = 0.7

    def forward(self, x: Tensor) -> Tensor:
        def step(h: Tensor, slice: Tensor) -> tuple[Tensor, Tensor]:
            h = self.scale * self.norm(self.cell(slice, h))
            return h, h

        x = self.conv(x.permute(1, 2, 0)).permute(2, 0, 1)
        outputs: Tensor = deploy_rnn.scan(step, x.new_zeros(x.size(1), 4), x)[1]
        return outputs


def test_a_loop_of_ones_own() -> None:
    """One compilation for every length, and no warning of a cell in a loop."""
    model = NormedLoop().eval()
    compiled = deploy_rnn.compile(model)
    with torch.no_grad():
        compiled(torch.randn(5, 2, 3))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for steps, batch in ((9, 5), (14, 3)):
                x = torch.randn(steps, batch, 3)
                torch.testing.assert_close(compiled(x), model(x))


class SharedMemory(nn.Module):
    """A loop over steps of x (B, T, 4) that starts from one of them, looks at all, and walks over neighbours."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def step(h: Tensor, neighbours: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            left, right = neighbours
            weights = (x @ h.unsqueeze(2)).softmax(1)  # (B, T, 1)
            h = torch.tanh(left * right + (weights * x).sum(1))
            return h, h

        steps = x.transpose(0, 1)
        return deploy_rnn.scan(step, x[:, 0], (steps[:-1], steps[1:]))


def test_a_loop_whose_inputs_share_memory() -> None:
    model = SharedMemory().eval()
    compiled = deploy_rnn.compile(model)
    with torch.no_grad():
        for steps, batch in ((5, 2), (9, 3)):
            x = torch.randn(batch, steps, 4)
            torch.testing.assert_close(compiled(x), model(x))


class Resized(nn.Module):
    """A layer over steps and rows that an operation has computed from those of x (B, T, 4)."""

    def __init__(self, resize: Callable[[Tensor], Tensor], inputs: int = 4) -> None:
        super().__init__()
        self.resize = resize
        self.rnn = nn.RNN(inputs, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(self.resize(x))[0]
        return output


def over_channels(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What takes (B, 4, T), as a function of (B, T, 4)."""
    return lambda x: function(x.transpose(1, 2)).transpose(1, 2)


def frames(x: Tensor) -> Tensor:
    """(B, T, 4) -> (B*N, 4, 4): every frame is a row"""
    return x.unfold(1, 4, 2).reshape(-1, 4, 4).transpose(1, 2)


def columns(x: Tensor) -> Tensor:
    """(B, T, 4) -> (4*B, T/4, 4): the steps across the chunks of 4"""
    batch, steps = x.shape[:2]
    chunks = functional.pad(x, (0, 0, 0, -steps % 4)).reshape(batch, -1, 4, 4)
    return chunks.transpose(1, 2).reshape(4 * batch, -1, 4)


class Fading(nn.Module):
    """A loop of one's own, whose states are of unknown size: (B, T, 4) -> (3, B, (T-1)//2)"""

    def forward(self, x: Tensor) -> Tensor:
        def step(states: tuple[Tensor, Tensor], _: None) -> Any:
            level, other = states
            return (level * 0.5, other), level + 1

        wide = functional.avg_pool1d(x.sum(-1), 3, 2)
        outputs: Tensor = deploy_rnn.scan(step, (wide, x[0, 0]), None, length=3)[1]
        return outputs


RESIZES: dict[str, nn.Module] = {
    "no padding": Resized(over_channels(lambda x: functional.conv1d(x, torch.ones(4, 4, 3)))),
    "stride": Resized(over_channels(lambda x: functional.avg_pool1d(x, 3, 2))),
    "twice the steps": Resized(over_channels(lambda x: functional.interpolate(x, scale_factor=2))),
    "a token before": Resized(lambda x: torch.cat([torch.ones(x.size(0), 1, 4), x], 1)),
    "first half": Resized(lambda x: x.chunk(2, 1)[0]),
    "two steps in one": Resized(lambda x: x[:, : x.size(1) // 2 * 2].reshape(x.size(0), -1, 8), 8),
    "a row for each step": Resized(lambda x: x.reshape(-1, 1, 4).expand(-1, 3, -1)),
    "frames": Resized(frames),
    "columns": Resized(columns),
    "a loop of one's own": Fading(),
}


class Branches(nn.Module):
    """The outputs of several parts over the same input."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [part(x) for part in self.parts]


@pytest.mark.parametrize(("names", "grad"), [(list(RESIZES), False), (["stride"], True)])
def test_a_loop_is_given_every_unknown_of_its_shapes(names: list[str], grad: bool) -> None:
    """Inductor computes the shapes of a loop's outputs from its inputs alone."""
    missing: list[set[Any]] = []

    def look(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        for part in graph.modules():
            nodes = part.graph.nodes if isinstance(part, torch.fx.GraphModule) else []
            missing.extend(_missing_unknowns(node) for node in nodes if _is_scan(node))
        return graph.forward

    model = deploy_rnn.convert(Branches(RESIZES[name] for name in names))
    with torch.set_grad_enabled(grad), NO_DUCK_SHAPES:
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=look)
        compiled(torch.randn(3, 22, 4, requires_grad=grad))
    if grad:
        assert missing == [set(), set()]  # there, and back
    else:
        assert dict(zip(names, missing, strict=True)) == {name: set() for name in names}


def _is_scan(node: torch.fx.Node) -> bool:
    return node.target is torch.ops.higher_order.scan


def _missing_unknowns(scan: torch.fx.Node) -> set[Any]:
    """The unknowns in the sizes of what a loop goes over that are not inputs of it."""
    values = [node.meta["example_value"] for node in scan.all_input_nodes if node.op != "get_attr"]
    sizes = [size for value in values if isinstance(value, Tensor) for size in value.shape]
    numbers = {value.node.expr for value in values if isinstance(value, torch.SymInt)}
    unknowns = {
        symbol
        for size in sizes
        if isinstance(size, torch.SymInt)
        for symbol in size.node.expr.free_symbols
    }
    return unknowns - numbers


class Listener(nn.Module):
    """Convolutions and layers in turn, over (B, T, 4), as in speech recognition.

    Before the second convolution, zeros fill its last stride: that number of steps is rounded up from a quotient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 4, 3)
        self.rnn = nn.GRU(4, 3, batch_first=True, bidirectional=True)
        self.second = nn.Conv1d(6, 4, 4, stride=2, padding=1)
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rnn(self.first(x.transpose(1, 2)).transpose(1, 2))[0].transpose(1, 2)
        missing = math.ceil(x.shape[2] / 2) * 2 - x.shape[2]
        x = self.second(functional.pad(x, (0, missing)))
        output: Tensor = self.lstm(x.transpose(1, 2))[0]
        return output


@pytest.mark.slow
def test_layers_after_convolutions() -> None:
    model = Listener()
    compiled = deploy_rnn.compile(model)
    with torch.no_grad():
        for batch, steps in [(3, 12), (2, 15), (5, 22)]:
            x = torch.randn(batch, steps, 4)
            torch.testing.assert_close(compiled(x), model(x))
    assert graphs() == 1


class Resampling(nn.Module):
    """Fewer steps, and then more, between two layers over (B, T, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.RNN(4, 3, batch_first=True)
        self.conv = nn.Conv1d(3, 4, 3, stride=2)
        self.second = nn.RNN(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.first(x)[0].transpose(1, 2))
        y = functional.avg_pool1d(y, 3, 2, ceil_mode=True)
        y = functional.interpolate(y, scale_factor=2)
        output: Tensor = self.second(y.transpose(1, 2))[0]
        return output


@pytest.mark.slow
def test_gradients_of_layers_around_what_changes_the_steps() -> None:
    """Inductor fixes the steps in some of the gradients, and then misses their name; one of them is wrong."""
    model = Resampling()
    compiled = deploy_rnn.compile(model)
    # The gradients of parameters are added up: no two of them may share memory.
    for batch, steps in [(3, 14), (2, 22)]:
        x = torch.randn(batch, steps, 4)
        gradients = []
        for network in (compiled, model):
            given = x.clone().requires_grad_()
            output = network(given)
            output.sin().sum().backward()
            weights = [weight.grad for weight in network.parameters()]
            gradients.append([output, given.grad, *weights])
        torch.testing.assert_close(*gradients)
    assert graphs() == 1
