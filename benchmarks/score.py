"""A file of many sequences, from JSON lines to JSON lines: `python -m benchmarks.score`.

The model is a tagger: an embedding, two bidirectional layers, a score for each step. Its rows have mixed lengths, most
of them short. There are four contestants, which read and write the same lines with the same parser:

- onnxruntime in a plain loop, a row at a time, all cores on each run, with the graph that is faster so;
- torch.nn with a DataLoader, batches of 64 rows in the order of the file, packed;
- the same, and the rows sorted by length first within windows of 2048, as `score` sorts them;
- `deploy_rnn.serving.score` with a bundle of that model, the start of its processes included.

They take turns; each counts with its fastest round. All answers are compared.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from benchmarks.reporting.machine import publish
from benchmarks.reporting.tables import score_table
from deploy_rnn.runtime import open_session, usable_cores
from deploy_rnn.serving import score
from deploy_rnn.timing import quickest

FAMILIES = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
WORDS = 2000
BATCH = 64
WINDOW = 2048
ROWS = {64: 40000, 256: 6000}
"""Units of a layer -> rows of the file: so many that the start of processes, a second, is a small part of `score`."""

LOOP = "onnxruntime, plain loop"
PACKED = "torch.nn, DataLoader, packed"
SORTED = "torch.nn, DataLoader, packed, sorted"
SCORE = "deploy_rnn score"

Rows = list[list[int]]


class Tagger(nn.Module):
    """tokens (B, T), lengths (B,) -> scores (B, T, 8)"""

    def __init__(self, family: Any, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 64)
        self.layers = family(64, hidden, 2, batch_first=True, bidirectional=True)
        self.score = nn.Linear(2 * hidden, 8)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        total = tokens.shape[1]
        packed = pack_padded_sequence(
            self.embed(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        outputs, _ = pad_packed_sequence(
            self.layers(packed)[0], batch_first=True, total_length=total
        )
        scores: Tensor = self.score(outputs)
        return scores


def make_rows(count: int, median: int) -> Rows:
    """Rows whose lengths are lognormal: half of them below the median, one in a hundred six times as long."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(median), 0.8, count), 3, 20 * median).astype(int)
    return [random.integers(1, WORDS, length).tolist() for length in lengths]


def read(path: Path) -> Iterator[list[int]]:
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)["tokens"]


def dump(scores: np.ndarray) -> bytes:
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps({"scores": np.ascontiguousarray(scores)}, option=options)


def run_loop(graph: Path, rows: Path, output: Path) -> None:
    session = open_session(graph)
    with output.open("wb") as file:
        for tokens in read(rows):
            feeds = {
                "tokens": np.array([tokens], np.int64),
                "lengths": np.array([len(tokens)], np.int64),
            }
            file.write(dump(session.run(None, feeds)[0][0]))


def run_torch(model: nn.Module, rows: Path, output: Path, window: int) -> None:
    """Run batches; with a window, of rows that were sorted by length within it.

    The rows of a window are in memory, as they are in `score`; without one, they are read in their order.
    """
    torch.set_num_threads(usable_cores())
    sequences = list(read(rows))
    order = list(range(len(sequences)))
    if window:
        starts = range(0, len(order), window)
        windows = [order[start : start + window] for start in starts]
        order = []
        for numbers in windows:
            order += sorted(numbers, key=lambda number: len(sequences[number]))
    loader: Any = DataLoader(
        [(number, sequences[number]) for number in order],  # type: ignore[arg-type]
        batch_size=BATCH,
        collate_fn=collate,
    )
    lines: list[bytes] = [b""] * len(sequences)
    with torch.inference_mode():
        for numbers, tokens, lengths in loader:
            scores = model(tokens, lengths).numpy()
            for number, row, length in zip(numbers, scores, lengths.tolist(), strict=True):
                lines[number] = dump(row[:length])
    output.write_bytes(b"".join(lines))


def collate(rows: Sequence[tuple[int, list[int]]]) -> tuple[list[int], Tensor, Tensor]:
    numbers = [number for number, _ in rows]
    sequences = [torch.tensor(tokens) for _, tokens in rows]
    lengths = torch.tensor([len(tokens) for tokens in sequences])
    return numbers, pad_sequence(sequences, batch_first=True), lengths


def faster_alone(bundle: Path, steps: int) -> Path:
    """The graph that runs one row faster."""
    seconds = {}
    feeds = {
        "tokens": np.ones((1, steps), np.int64),
        "lengths": np.array([steps], np.int64),
    }
    for path in sorted(bundle.glob("*.onnx")):
        session = open_session(path)
        session.run(None, feeds)
        seconds[path] = quickest(lambda session=session: session.run(None, feeds))  # type: ignore[misc]
    return min(seconds, key=seconds.__getitem__)


def largest_difference(output: Path, expected: Path) -> float:
    """Between the answers of two contestants."""
    largest = 0.0
    with output.open("rb") as file, expected.open("rb") as others:
        for line, other in zip(file, others, strict=True):
            scores = np.array(orjson.loads(line)["scores"])
            largest = max(
                largest, float(np.abs(scores - np.array(orjson.loads(other)["scores"])).max())
            )
    return largest


def measure(
    family: str,
    hidden: int,
    options: argparse.Namespace,
    folder: Path,
    console: Console,
) -> dict[str, Any]:
    """Rows a second of each contestant."""
    from deploy_rnn.export import export_bundle

    count = options.rows or ROWS.get(hidden, 6000)
    rows = folder / "rows.jsonl"
    lines = [json.dumps({"tokens": tokens}) for tokens in make_rows(count, options.median)]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    model = Tagger(FAMILIES[family], hidden).eval()
    bundle = folder / f"{family}-{hidden}"
    example = (torch.randint(1, WORDS, (2, options.median)), torch.tensor([options.median, 5]))
    with console.status(f"export {family} ..."):
        export_bundle(
            model, example, bundle, forms=["native", "scan"], sizes=(2,), output_names=["scores"]
        )
    graph = faster_alone(bundle, options.median)
    outputs = {name: folder / f"{index}.jsonl" for index, name in enumerate((LOOP, PACKED, SORTED))}
    outputs[SCORE] = folder / "score.jsonl"
    contestants: dict[str, Callable[[], Any]] = {
        LOOP: lambda: run_loop(graph, rows, outputs[LOOP]),
        PACKED: lambda: run_torch(model, rows, outputs[PACKED], 0),
        SORTED: lambda: run_torch(model, rows, outputs[SORTED], WINDOW),
        SCORE: lambda: score(bundle, rows, outputs[SCORE]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            with console.status(f"{family}: {name} ..."):
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    difference = max(largest_difference(outputs[name], outputs[PACKED]) for name in contestants)
    rates = {name: count / min(times) for name, times in seconds.items()}
    sizes = {"family": family, "H": hidden, "count": count}
    return {**sizes, "graph": graph.stem, "difference": difference, "rates": rates}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--rows", type=int, help="of the file (default 40000, 6000 if H = 256)")
    parser.add_argument("--median", type=int, default=40, help="length of a row (default 40)")
    parser.add_argument(
        "--hidden",
        type=int,
        nargs="+",
        default=list(ROWS),
        help="units of a layer (default 64 256)",
    )
    parser.add_argument("--rounds", type=int, default=1, help="of all contestants (default 1)")
    options = parser.parse_args()
    console = Console(stderr=True)
    measured = []
    with TemporaryDirectory() as temporary:
        for hidden in options.hidden:
            for family in options.families:
                measured.append(measure(family, hidden, options, Path(temporary), console))
    result = {"benchmark": "score", "median": options.median, "rows": measured}
    print(score_table(publish(result, options.output)))


if __name__ == "__main__":
    main()
