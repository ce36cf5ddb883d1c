"""`Options`: what the answers depend on besides the input. It is sent to other processes, and stands in the journal."""

from dataclasses import asdict, dataclass
from typing import Any

from deploy_rnn.runtime import CPU

MOST_ROW_STEPS = 131_072
"""Rows times steps of a run, as in a server: memory and time grow with them."""

WINDOW = 512
LARGEST_WINDOW = 2048
WINDOWS = 32
"""Rows of a window: the more, the nearer are those of a run in length; so few that a small file, too, has windows for
all cores, and a large one `WINDOWS` of them. The benchmark has runs of 22 rows and 7.7 % padding in windows of 512, and
31 with 2.8 % in windows of 2048."""

WINDOW_OF_EQUAL_STEPS = 4096
"""Where only rows of equal steps share a run, more are needed to find some."""

CACHED_ROW_STEPS = 2048
FEW_ROWS = 8
"""On a core, a run has at most so many rows times steps, or so few rows: what it computes stays in the core's cache.
Measured with GRU and RNN, H = 64 and 256, 20 to 200 steps: more takes up to 15 % longer, fewer rows much longer."""


@dataclass(frozen=True)
class Options:
    """Arguments of `score` that can change a digit of an answer.

    Attributes:
        model: the path of the bundle, or of an .onnx file.
        outputs: the names of the outputs to compute; None for all.
        kept: the names of what is copied from the row to its answer.
        rows: of one run, at most.
        window: rows that are sorted by length together; None for `Scorer.window` rows.
        waste: share of a run's steps that may be padding.
        finite: whether a row with NaN or infinity in an input is refused.
        provider: the onnxruntime execution provider.
        precision: of the graphs, such as "int8"; None for the only one of the model.
        graph: which of the graphs for any number of steps is used, in the order of the fastest; None until measured.
    """

    model: str
    outputs: tuple[str, ...] | None = None
    kept: tuple[str, ...] = ()
    rows: int = 64
    window: int | None = None
    waste: float = 0.1
    finite: bool = False
    provider: str = CPU
    graph: int | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "window"):
            value = getattr(self, name)
            if value is None and name == "window":
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` (={value!r}) must be a whole number from 1.")
        if not 0 <= self.waste < 1:
            raise ValueError(f"`waste` (={self.waste!r}) must be from 0 to below 1: it is a share.")

    def to_journal(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one before; the model is told by its digest."""
        fields = asdict(self)
        del fields["model"], fields["graph"]
        for name in ("outputs", "kept"):
            if fields[name] is not None:
                fields[name] = list(fields[name])
        return fields
