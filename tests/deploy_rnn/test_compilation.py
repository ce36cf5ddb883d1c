"""`deploy_rnn.compile`, and `torch.compile(fullgraph=True)` on the layer itself: a loop that stays a loop."""

from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn import RNN

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch compiles through its own deprecated modules
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


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_one_compilation_serves_every_length_and_batch(num_layers: int, bidirectional: bool) -> None:
    original = nn.RNN(5, 9, num_layers, bidirectional=bidirectional)
    compiled = deploy_rnn.compile(original)
    directions = 2 if bidirectional else 1
    with torch.no_grad():
        # The first batch equals no other size: torch.compile takes two equal sizes for one, and compiles again later.
        for steps, batch in [(4, 7), (7, 2), (33, 6), (2, 8), (64, 2)]:
            x, h0 = torch.randn(steps, batch, 5), torch.randn(num_layers * directions, batch, 9)
            kept = h0.clone()
            torch.testing.assert_close(compiled(x, h0), original(x, h0))
            assert torch.equal(h0, kept)  # the loop may not write into its first state
        assert graphs() == 1
        for steps, batch in [(1, 3), (5, 1), (1, 1)]:  # these compile once more each
            torch.testing.assert_close(compiled(torch.ones(steps, batch, 5)), original(torch.ones(steps, batch, 5)))


@pytest.mark.cuda
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
            torch.testing.assert_close(compiled(x), original(x))  # and again, with what the first call left behind


@pytest.mark.slow
def test_gradients_through_the_compiled_loop() -> None:
    """Two bidirectional layers: where scan's own gradient is wrong (see deploy_rnn/scan.py)."""
    original = nn.RNN(5, 9, 2, bidirectional=True)
    layer = RNN.like(nn.RNN(5, 9, 2, bidirectional=True))
    layer.load_state_dict(original.state_dict())
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for steps, batch in [(4, 3), (9, 2)]:
        gradients = []
        for network, own in [(compiled, layer), (original, original)]:
            x = torch.linspace(-1, 1, steps * batch * 5).view(steps, batch, 5).requires_grad_()
            h0 = torch.linspace(-1, 1, 4 * batch * 9).view(4, batch, 9).requires_grad_()
            own.zero_grad()
            output, h_n = network(x, h0)
            (output.square().sum() + h_n.sin().sum()).backward()
            gradients.append([output, h_n, x.grad, h0.grad, *(weight.grad for weight in own.parameters())])
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_whole_model_compiles_without_a_graph_break() -> None:
    model = Tagger(bidirectional=True).eval()
    compiled = deploy_rnn.compile(model)
    with torch.inference_mode():
        for batch, steps in [(4, 9), (2, 30)]:
            tokens = torch.randint(20, (batch, steps))
            torch.testing.assert_close(compiled(tokens), model(tokens))
    assert graphs() == 1


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
