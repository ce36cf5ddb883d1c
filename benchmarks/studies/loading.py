"""What loading a bundle from memory costs: `python -m benchmarks.studies.loading`.

The bundle has an embedding, a two-layer GRU and three graphs. Each is opened twice, for one core and for all, as a
server does. There are three contestants. One opens the graphs by their path: onnxruntime maps the weights, and depends
on their file. One reads every file once and gives each session the bytes, of which it makes a copy. `Engine` reads them
once, too, and lets all sessions share them. Each runs in fresh processes, which take turns.

Memory is what the process holds more than before, and the most that it held meanwhile. Seconds are those of the
processor; reading includes comparing the digests.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks import ROOT
from benchmarks.reporting.machine import publish
from benchmarks.reporting.tables import loading_table
from benchmarks.studies.exporters import peak_memory, resident_memory
from deploy_rnn.runtime import open_session
from deploy_rnn.serving.engine.reading import read_bundle

MAPPED = "opened by path, weights mapped"
COPIED = "read once, a copy for each session"
SHARED = "read once, shared (`Engine`)"
CONTESTANTS = [MAPPED, COPIED, SHARED]
SESSIONS_OF_A_GRAPH = 2


class Tagger(nn.Module):
    """tokens (B, T) -> scores (B, T, 9)"""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.gru = nn.GRU(width, 2 * width, 2, batch_first=True)
        self.scores = nn.Linear(2 * width, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.gru(self.embedding(tokens))[0])
        return scores


def export(folder: Path, words: int, width: int) -> None:
    from deploy_rnn.export import export_bundle

    tokens = torch.randint(words, (2, 16))
    export_bundle(Tagger(words, width).eval(), tokens, folder, buckets=[16], sizes=(2,))


def measure_loading(contestant: str, folder: Path) -> dict[str, float]:
    """Open all sessions in this process; seconds, and bytes of memory."""
    forget_peak()
    memory_before = resident_memory()
    started = time.process_time()
    sessions = open_sessions(contestant, folder)
    seconds = time.process_time() - started
    tokens = torch.zeros(2, 16, dtype=torch.int64).numpy()
    for session in sessions:
        session.run(None, {"tokens": tokens})
    return {
        "seconds": seconds,
        "memory": resident_memory() - memory_before,
        "peak": peak() - memory_before,
    }


def forget_peak() -> None:
    """Let the most memory that this process has had be what it has now: torch was imported."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes of memory that this process has had since `forget_peak`, where Linux tells it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return peak_memory()


def open_sessions(contestant: str, folder: Path) -> list[onnxruntime.InferenceSession]:
    models: list[Any] = sorted(folder.glob("*.onnx"))
    if contestant != MAPPED:
        models = list(read_bundle(folder).graphs.values())
    open_model = open_copying if contestant == COPIED else open_session
    return [open_model(model) for model in models for _ in range(SESSIONS_OF_A_GRAPH)]


def open_copying(model: Any) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    buffers = list(model.files.values())
    options.add_external_initializers_from_files_in_memory(
        list(model.files), buffers, [buffer.nbytes for buffer in buffers]
    )
    return onnxruntime.InferenceSession(model.graph, options, providers=["CPUExecutionProvider"])


def measure_in_process(contestant: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.studies.loading", "--one", contestant, str(folder)]
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--words", type=int, default=50_000, help="of the embedding (default 50000)"
    )
    parser.add_argument("--width", type=int, default=256, help="of the embedding (default 256)")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each contestant")
    options = parser.parse_args()
    if options.one:
        contestant, folder = options.one
        print(json.dumps(measure_loading(contestant, Path(folder))))
        return

    console = Console(stderr=True)
    runs: dict[str, list[dict[str, float]]] = {contestant: [] for contestant in CONTESTANTS}
    with TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        with console.status("export ..."):
            export(bundle, options.words, options.width)
        weights = (bundle / "weights.bin").stat().st_size
        for _ in range(options.repeats):
            for contestant, measured in runs.items():
                with console.status(f"{contestant} ..."):
                    measured.append(measure_in_process(contestant, bundle))
    rows = []
    for contestant, measured in runs.items():
        medians = {key: median(run[key] for run in measured) for key in measured[0]}
        rows.append({"contestant": contestant, **medians})
    sessions = 3 * SESSIONS_OF_A_GRAPH
    result = {"benchmark": "loading", "weights": weights, "sessions": sessions, "rows": rows}
    print(loading_table(publish(result, options.output)))


if __name__ == "__main__":
    main()
