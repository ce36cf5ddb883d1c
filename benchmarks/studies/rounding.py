"""How far rounding moves a trained network: `python -m benchmarks.studies.rounding FREE_CHECKPOINT`.

The highlighter's scores on held-out files, in float32 by torch.nn.RNN and by deploy_rnn, against float64, for the
checkpoint in the repository and for one that was trained without a limit on its recurrent weights:

    python -m deploy_rnn.examples.highlight.train --max-gain inf --folder free
    python -m benchmarks.studies.rounding free/checkpoint.safetensors
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_model

import deploy_rnn
from benchmarks.reporting.machine import publish
from benchmarks.reporting.tables import rounding_table
from deploy_rnn.examples.highlight.model import CHECKPOINT, Highlighter, windows
from deploy_rnn.examples.highlight.train import read

FILES = 20


def measure(checkpoint: Path) -> dict[str, Any]:
    """Largest difference in each window: the median window, and the worst."""
    model = Highlighter()
    load_model(model, checkpoint)
    model.eval()
    exact, ours = copy.deepcopy(model).double(), deploy_rnn.convert(model)
    rounding, between, largest = [], [], 0.0
    for codes, _ in track(read(held_out=True)[:FILES], checkpoint.parent.name):
        with torch.no_grad():
            batch = torch.from_numpy(windows(codes))
            scores = model(batch)
            rounding.append((scores - exact(batch)).abs().amax((1, 2)).numpy())
            between.append((scores - ours(batch)).abs().amax((1, 2)).numpy())
            largest = max(largest, float(scores.abs().max()))
    return {
        "gain": max(
            float(torch.linalg.matrix_norm(weight.detach(), 2))
            for name, weight in model.rnn.named_parameters()
            if name.startswith("weight_hh")
        ),
        "largest_score": largest,
        "windows": sum(map(len, rounding)),
        "float32_to_float64": spread(rounding),
        "torch_to_deploy_rnn": spread(between),
    }


def spread(parts: list[np.ndarray]) -> dict[str, float]:
    values = np.concatenate(parts)
    return {"median": float(np.median(values)), "worst": float(values.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("free", type=Path, help="checkpoint that was trained with --max-gain inf")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rows = {"without a limit": measure(options.free), "limited": measure(CHECKPOINT)}
    print(rounding_table(publish({"benchmark": "rounding", "rows": rows}, options.output)))


if __name__ == "__main__":
    main()
