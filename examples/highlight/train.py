"""Train the highlighter on the standard library's own source: `python -m deploy_rnn.examples.highlight.train`.

Writes the checkpoint and `metrics.json`. Files are split by a hash of their name, so that the held-out ones are the
same on every machine with the same Python.
"""

import argparse
import hashlib
import json
import platform
import sysconfig
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_model
from torch import Tensor, nn

from deploy_rnn.files import replace_file

from .annotate import annotate
from .labels import LABELS, label
from .model import CHECKPOINT, CONTEXT, OUTSIDE, WINDOW, Highlighter, encode, join, windows

MAX_GAIN = 1.5
"""Largest singular value of a recurrent weight. Without a limit, training goes far beyond it, and the network then
amplifies rounding more: docs/verification.md has figures."""

SMOOTHING = 0.1
"""Share of the target that is spread over all labels. It keeps the scores small, and so the rounding of a float32."""

SKIPPED = {"site-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}


def corpus() -> Iterator[tuple[bool, str]]:
    """Every module of the standard library: whether it is held out (one in ten), and its source."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if SKIPPED.isdisjoint(name.split("/")):
            held_out = hashlib.sha256(name.encode()).digest()[0] < 26  # of 256
            with tokenize.open(path) as file:
                yield held_out, file.read()


Labelled = list[tuple[np.ndarray, np.ndarray]]
"""Character numbers and labels of each file."""


def read(held_out: bool) -> Labelled:
    """The files of one side of the split."""
    sources = [source for is_held_out, source in corpus() if is_held_out == held_out and source]
    return [(encode(source), label(source)) for source in sources]


def read_for_training() -> Labelled:
    """The files that are not held out, each once as it is and once with annotations."""
    sources = [source for is_held_out, source in corpus() if not is_held_out and source]
    annotated = [annotate(source, seed) for seed, source in enumerate(sources)]
    return [(encode(source), label(source)) for source in track(sources + annotated, "reading")]


def batches(
    files: Labelled, size: int, generator: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random windows for ever: characters and labels, both int64 (size, WINDOW)."""
    # All files end to end, with a gap before and after each.
    codes = np.concatenate(
        [np.pad(file_codes, CONTEXT, constant_values=OUTSIDE) for file_codes, _ in files]
    )
    labels = np.concatenate([np.pad(file_labels, CONTEXT) for _, file_labels in files]).astype(
        np.int64
    )
    while True:
        starts = generator.integers(len(codes) - WINDOW, size=(size, 1))
        positions = starts + np.arange(WINDOW)  # (size, WINDOW)
        yield torch.from_numpy(codes[positions]), torch.from_numpy(labels[positions])


def train(
    steps: int, batch: int, rate: float, seed: int, max_gain: float = MAX_GAIN
) -> tuple[Highlighter, float]:
    """Train: -> the model, and how many seconds that took."""
    torch.manual_seed(seed)
    model = Highlighter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1
    )
    training_batches = batches(read_for_training(), batch, np.random.default_rng(seed))
    started = time.perf_counter()
    for step in track(range(1, steps + 1), "training"):
        characters, labels = next(training_batches)
        scores = model(characters).flatten(0, 1)  # (B*T, labels)
        loss = F.cross_entropy(scores, labels.flatten(), label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 5 == 0 or step == steps:
            limit_gain(model.rnn, max_gain)
    return model.eval(), time.perf_counter() - started


@torch.no_grad()
def limit_gain(layer: nn.RNN, limit: float) -> None:
    """Reduce the singular values of every recurrent weight of `layer` to at most `limit`."""
    for name, weight in layer.named_parameters():
        if name.startswith("weight_hh"):
            left, values, right = torch.linalg.svd(weight)
            weight.copy_(left * values.clamp(max=limit) @ right)


def accuracy(model: nn.Module, files: Labelled) -> dict[str, float]:
    """Share of characters with the right label, and of the most frequent label; white space does not count."""
    right = 0
    counts = np.zeros(len(LABELS), np.int64)
    for codes, labels in track(files, "measuring"):
        with torch.no_grad():
            scores = model(torch.from_numpy(windows(codes))).numpy()
        predicted = join(scores, len(codes))
        visible = labels != LABELS.index("space")
        right += int((predicted == labels)[visible].sum())
        counts += np.bincount(labels[visible], minlength=len(LABELS))
    total = int(counts.sum())
    return {"accuracy": right / total, "majority_class": int(counts.max()) / total}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=2500,
        help="batches to train on (default 2500, about 5 minutes)",
    )
    parser.add_argument("--batch", type=int, default=64, help="windows in a batch (default 64)")
    parser.add_argument(
        "--rate", type=float, default=4e-3, help="highest learning rate (default 0.004)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--max-gain",
        type=float,
        default=MAX_GAIN,
        help=f"of recurrent weights (default {MAX_GAIN})",
    )
    parser.add_argument(
        "--folder", type=Path, default=CHECKPOINT.parent, help="where to write (default: this one)"
    )
    options = parser.parse_args()
    model, seconds = train(
        options.steps, options.batch, options.rate, options.seed, options.max_gain
    )
    files = read(held_out=True)
    metrics = {
        **accuracy(model, files),
        "held_out_files": len(files),
        "held_out_characters": sum(len(codes) for codes, _ in files),
        "training_seconds": round(seconds),
        "training": {
            name: getattr(options, name) for name in ("steps", "batch", "rate", "seed", "max_gain")
        },
        "cores": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
    }
    replace_file(
        options.folder / "checkpoint.safetensors", lambda path: save_model(model, str(path))
    )
    text = json.dumps(metrics, indent=2) + "\n"
    replace_file(
        options.folder / "metrics.json", lambda path: path.write_text(text, encoding="utf-8")
    )
    print(text)


if __name__ == "__main__":
    main()
