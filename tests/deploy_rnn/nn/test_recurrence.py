"""`Recurrence`: another one replaces that of a layer, and the layer still does everything around it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import deploy_rnn
from deploy_rnn import GRU, LSTM, RNN, Cell, Recurrent
from deploy_rnn.nn.cells import lstm, tanh
from deploy_rnn.nn.recurrence import Recurrence

CLASSES = {"RNN": (RNN, nn.RNN), "GRU": (GRU, nn.GRU), "LSTM": (LSTM, nn.LSTM)}


class Kernel(Recurrence):
    """PyTorch's own function for all layers at once: what a second way of computing a layer looks like."""

    def run(
        self, layer: Recurrent, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        assert lengths is None
        rows = layer.num_layers * layer.num_directions()
        if states is None:
            states = [input.new_zeros(rows, input.size(1), size) for size in layer.state_sizes()]
        function: Any = {"RNN": torch.rnn_tanh, "GRU": torch.gru, "LSTM": torch.lstm}[
            layer.cell.name
        ]
        output, *finals = function(
            input, states if len(states) > 1 else states[0], layer.ordered_weights(), layer.bias, layer.num_layers,
            layer.dropout, layer.training, layer.bidirectional, False,
        )  # fmt: skip
        return output, finals


class Recorder(Recurrence):
    """The layer's own recurrence, and what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, list[Tensor] | None, Tensor | None]] = []

    def run(
        self, layer: Recurrent, input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        self.calls.append((input, states, lengths))
        return super().run(layer, input, states, lengths)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_a_kernel_replaces_the_loop(
    name: str, bias: bool, batch_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batched and unbatched, with and without states; nothing of the layer's own recurrence runs."""
    cls, torch_cls = CLASSES[name]
    original = torch_cls(3, 5, 2, bias=bias, batch_first=batch_first, bidirectional=True)
    layer = cls.from_torch(original)
    layer.recurrence = Kernel()
    monkeypatch.setattr(Recurrent, "run_layers", None)
    x = torch.randn(4, 4, 3)
    finals = original(x)[1]
    torch.testing.assert_close(layer(x), original(x))
    torch.testing.assert_close(layer(x, finals), original(x, finals))
    torch.testing.assert_close(layer(x[:, 0]), original(x[:, 0]))
    with pytest.raises(RuntimeError, match="must be equal to input_size"):
        layer(torch.randn(4, 4, 2))


def test_it_belongs_to_one_layer_and_its_copies() -> None:
    layer, other_layer = RNN(3, 5), RNN(3, 5)
    layer.recurrence = Recorder()
    copied = copy.deepcopy(layer)
    for module in (copied, other_layer, deploy_rnn.convert(nn.Sequential(layer))[0]):
        module(torch.randn(4, 2, 3))
    assert layer.recurrence.calls == []
    assert len(copied.recurrence.calls) == 1
    assert type(other_layer.recurrence) is Recurrence


def test_it_sees_checked_time_major_tensors() -> None:
    layer = LSTM(3, 5, batch_first=True)
    layer.recurrence = recorder = Recorder()
    lengths = torch.tensor([4, 2])
    states = (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5))
    layer(torch.randn(2, 4, 3), states, lengths)
    layer(torch.randn(4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 4, 3), states)
    shapes = [tuple(input.shape) for input, _, _ in recorder.calls]
    assert shapes == [(4, 2, 3), (4, 1, 3), (4, 2, 3)]
    assert recorder.calls[0][2] is lengths
    input, half_states, _ = recorder.calls[2]
    assert half_states is not None
    assert {tensor.dtype for tensor in (input, *half_states)} == {torch.bfloat16}


def test_it_pads_and_packs() -> None:
    class Doubled(Recurrence):
        def unpack(self, packed: PackedSequence) -> tuple[Tensor, Tensor]:
            padded, lengths = super().unpack(packed)
            return 2 * padded, lengths

        def repack(self, output: Tensor, lengths: Tensor, packed: PackedSequence) -> PackedSequence:
            return super().repack(-output, lengths, packed)

    layer = GRU(3, 5)
    x = torch.randn(4, 2, 3)
    lengths = torch.tensor([2, 4])
    expected = layer(pack_padded_sequence(2 * x, lengths, enforce_sorted=False))[0]
    layer.recurrence = Doubled()
    output = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))[0]
    torch.testing.assert_close(output.data, -expected.data)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch compiles through its own deprecated modules
def test_torch_compile_takes_another_loop() -> None:
    """A Python loop, which torch.compile unrolls: a graph without a scan."""

    class PythonLoop(Recurrence):
        def compiled_loop(
            self, step: Any, projected: Any, mask: Any, states: Any, weights: Any
        ) -> Any:
            outputs = []
            for projected_step in projected.unbind(0):
                states = step(projected_step, states, weights)
                outputs.append(states[0])
            return torch.stack(outputs), states

    products: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        products.append(sum(node.target is torch.baddbmm for node in graph.graph.nodes))
        return graph

    layer = RNN(3, 5, bidirectional=True)
    x = torch.randn(4, 2, 3)
    expected = layer(x)
    for recurrence in (Recurrence(), PythonLoop()):
        torch.compiler.reset()
        layer.recurrence = recurrence
        with torch.no_grad():
            torch.testing.assert_close(
                torch.compile(layer, fullgraph=True, backend=backend)(x), expected
            )
    assert products == [0, 4]


def test_sizes_and_weights() -> None:
    layer = LSTM(3, 5, 2, bidirectional=True, proj_size=2)
    assert layer.num_directions() == 2
    assert layer.state_sizes() == [2, 5]
    assert [tuple(weight.shape) for weight in layer.ordered_weights()] == list(
        layer.weight_shapes().values()
    )
    for name, weight in zip(layer.weight_shapes(), layer.ordered_weights(), strict=True):
        assert weight is getattr(layer, name)
    assert GRU(3, 5).state_sizes() == [5]


def test_the_cell_says_what_the_layer_is_called() -> None:
    """And not the `mode`, which is there for code that reads it in torch.nn."""

    class Mine(LSTM):
        cell = Cell(lstm, gates=4, states=2, name="My LSTM")

    with pytest.raises(
        ValueError, match=r"^My LSTM: Expected input to be 2D or 3D, got 1D instead"
    ):
        Mine(3, 5)(torch.zeros(3))
    assert Mine(3, 5).mode == "LSTM"


@pytest.mark.parametrize(("on_cpu", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_cell_says_whether_autocast_reaches_it(on_cpu: bool, dtype: torch.dtype) -> None:
    class Mine(Recurrent):
        cell = Cell(tanh, autocast_on_cpu=on_cpu)

    with torch.autocast("cpu", torch.bfloat16):
        assert Mine(3, 5)(torch.zeros(4, 2, 3))[0].dtype == dtype
