"""The model in plain PyTorch, and its input: characters as numbers, a file as overlapping windows."""

from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .labels import LABELS

CHECKPOINT = Path(__file__).with_name("checkpoint.safetensors")

ALPHABET = "\t\n" + "".join(map(chr, range(32, 127)))
OUTSIDE = 0
"""The character number of every position beyond the file."""
OTHER = 1
"""The number of every character that is not in the alphabet."""

WINDOW = 128
CONTEXT = 32
"""A file is read in windows of 128 characters; each labels its middle 64 and sees 32 more on either side."""

_CODES = np.full(256, OTHER, np.int64)
_CODES[[ord(character) for character in ALPHABET]] = np.arange(2, 2 + len(ALPHABET))


class Highlighter(nn.Module):
    """Character numbers (B, T) int64 -> a score for each label (B, T, labels).

    With `lengths` (B,) int64, characters beyond a row's end are not read.
    """

    def __init__(
        self, embedding: int = 32, hidden: int = 128, layers: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(2 + len(ALPHABET), embedding)
        self.rnn = nn.RNN(
            embedding, hidden, layers, batch_first=True, dropout=dropout, bidirectional=True
        )
        self.score = nn.Linear(2 * hidden, len(LABELS))

    def forward(self, characters: Tensor, lengths: Tensor | None = None) -> Tensor:
        embedded = self.embed(characters)  # (B, T, embedding)
        if lengths is None:
            output, _ = self.rnn(embedded)
        else:
            packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
            packed_output, _ = self.rnn(packed)
            output, _ = pad_packed_sequence(
                packed_output, batch_first=True, total_length=characters.shape[1]
            )
        scores: Tensor = self.score(output)  # (B, T, labels)
        return scores


def load() -> Highlighter:
    """The trained model, in evaluation mode."""
    from safetensors.torch import load_model

    model = Highlighter()
    load_model(model, CHECKPOINT)
    return model.eval()


def encode(source: str) -> np.ndarray:
    """The number of every character: int64 (length,)."""
    code_points = np.frombuffer(source.encode("utf-32-le"), np.uint32)
    return _CODES[np.minimum(code_points, 255)]


def windows(codes: np.ndarray) -> np.ndarray:
    """The windows of a file, int64 (B, WINDOW), one every WINDOW - 2*CONTEXT characters."""
    stride = WINDOW - 2 * CONTEXT
    count = -(-len(codes) // stride)  # rounded up
    # Context before the first window's middle and after the last one's lies beyond the file.
    padded = np.full(count * stride + 2 * CONTEXT, OUTSIDE, np.int64)
    padded[CONTEXT : CONTEXT + len(codes)] = codes
    return np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::stride].copy()


def join(scores: np.ndarray, length: int) -> np.ndarray:
    """Scores (B, WINDOW, labels) of a file's windows -> the best label of every character, int64 (length,)."""
    middles: np.ndarray = scores[:, CONTEXT:-CONTEXT].argmax(axis=-1)  # (B, stride)
    return middles.reshape(-1)[:length]  # the last window may reach beyond the file
