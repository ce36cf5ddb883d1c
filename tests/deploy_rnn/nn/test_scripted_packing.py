"""Packed sequences in TorchScript: a converted layer takes and returns one, as those of torch.nn do there."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import deploy_rnn

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


class Tagger(nn.Module):
    """Two layers that hand on the PackedSequence, a product over its data, and a trimmed answer."""

    def __init__(self, family: str, batch_first: bool, enforce_sorted: bool) -> None:
        super().__init__()
        layer = getattr(nn, family)
        self.first = layer(4, 6, batch_first=batch_first, bidirectional=True)
        self.second = layer(12, 5, batch_first=batch_first)
        self.score = nn.Linear(5, 3)
        self.batch_first = batch_first
        self.enforce_sorted = enforce_sorted

    def forward(self, x: Tensor, lengths: Tensor):  # type: ignore[no-untyped-def]
        packed = pack_padded_sequence(x, lengths, self.batch_first, self.enforce_sorted)
        output, first_state = self.first(packed)
        output, last_state = self.second(output)
        scores = PackedSequence(
            self.score(output.data),
            output.batch_sizes,
            output.sorted_indices,
            output.unsorted_indices,
        )
        padded, counts = pad_packed_sequence(scores, self.batch_first, padding_value=-1.0)
        return padded, counts, first_state, last_state


@pytest.mark.parametrize(
    ("family", "batch_first", "enforce_sorted"),
    [("LSTM", True, False), ("GRU", False, False), ("RNN", True, True)],
)
def test_a_converted_layer_takes_a_packed_sequence(
    family: str, batch_first: bool, enforce_sorted: bool, tmp_path: Any
) -> None:
    model = Tagger(family, batch_first, enforce_sorted).eval()
    scripted = torch.jit.script(deploy_rnn.convert(model))
    scripted.save(tmp_path / "tagger.pt")
    loaded = torch.jit.load(tmp_path / "tagger.pt")
    for lengths in ([5, 3, 3], [2, 4], [7, 1, 3, 6]):
        ordered = sorted(lengths, reverse=True) if enforce_sorted else lengths
        x = torch.randn(len(ordered), max(ordered) + 1, 4)
        args = (x if batch_first else x.transpose(0, 1), torch.tensor(ordered))
        torch.testing.assert_close(scripted(*args), model(*args))
        torch.testing.assert_close(loaded(*args), model(*args))


class WithState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4)

    def forward(self, packed: PackedSequence, h_0: Tensor) -> Tensor:
        return self.rnn(packed, h_0)[1]


def test_states_are_in_the_order_of_the_caller_and_gradients_flow() -> None:
    model = WithState()
    scripted = torch.jit.script(deploy_rnn.convert(model))
    rows = pack_padded_sequence(torch.randn(5, 3, 3), torch.tensor([2, 5, 3]), enforce_sorted=False)
    h_0 = torch.randn(1, 3, 4)
    torch.testing.assert_close(scripted(rows, h_0), model(rows, h_0))
    scripted(rows, h_0).sum().backward()
    model(rows, h_0).sum().backward()
    torch.testing.assert_close(scripted.rnn.weight_hh_l0.grad, model.rnn.weight_hh_l0.grad)


class Doubled(deploy_rnn.GRU):
    """A layer with a `forward` of its own, which knows nothing of packing."""

    def forward(
        self, input: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        output, state = self._run(input, [hx] if hx is not None else None, lengths)
        return 2 * output, state[0]


def test_a_forward_of_a_subclass_is_kept() -> None:
    model = nn.Sequential(Doubled(3, 4))
    scripted = torch.jit.script(model)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(scripted(x), model(x))
