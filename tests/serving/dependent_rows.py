"""Models whose outputs for a row depend on the other rows of a call."""

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Centred(nn.Module):
    """Subtracts the mean of all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output - output.mean(0, keepdim=True)


class Trimmed(nn.Module):
    """As many steps as the longest row has: `pad_packed_sequence` without `total_length`.

    `layers`: how often it packs and pads. `counts`: lengths that it counts itself, in place of an input. `padding`:
    what stands beyond the end of a shorter row.
    """

    def __init__(self, layers: int = 1, *, counts: bool = False, padding: float = 0.0) -> None:
        super().__init__()
        self.rnns = nn.ModuleList(nn.GRU(3, 3, batch_first=True) for _ in range(layers))
        self.counts = counts
        self.padding = padding

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.counts:
            lengths = (x[:, :, 0] > 0).sum(1).clamp(min=1)
        assert lengths is not None
        for rnn in self.rnns:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            x = pad_packed_sequence(rnn(packed)[0], True, self.padding)[0]
        return x
