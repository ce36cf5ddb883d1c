"""How far rounding moves a trained network: `python -m benchmarks.studies.rounding FREE_CHECKPOINT`.

Compares the highlighter's scores on held-out files, in float32 by torch.nn.RNN and by deploy_rnn, with float64: for the
checkpoint in the repository, and for one that was trained without a limit on its recurrent weights:

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
from torch import nn

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
    exact_model = copy.deepcopy(model).double()
    our_model = deploy_rnn.convert(model)
    from_float64 = []
    from_ours = []
    largest_score = 0.0
    files = read(held_out=True)[:FILES]
    for codes, _ in track(files, checkpoint.parent.name):
        batch = torch.from_numpy(windows(codes))
        with torch.no_grad():
            scores = model(batch)  # (windows, T, labels)
            from_float64.append((scores - exact_model(batch)).abs().amax((1, 2)).numpy())
            from_ours.append((scores - our_model(batch)).abs().amax((1, 2)).numpy())
        largest_score = max(largest_score, float(scores.abs().max()))
    return {
        "gain": recurrent_gain(model.rnn),
        "largest_score": largest_score,
        "windows": sum(map(len, from_float64)),
        "float32_to_float64": median_and_worst(from_float64),
        "torch_to_deploy_rnn": median_and_worst(from_ours),
    }


def recurrent_gain(layer: nn.RNN) -> float:
    """Largest singular value of the recurrent weights."""
    weights = [
        weight.detach() for name, weight in layer.named_parameters() if name.startswith("weight_hh")
    ]
    return max(float(torch.linalg.matrix_norm(weight, 2)) for weight in weights)


def median_and_worst(differences: list[np.ndarray]) -> dict[str, float]:
    values = np.concatenate(differences)
    return {"median": float(np.median(values)), "worst": float(values.max())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("free", type=Path, help="checkpoint that was trained with --max-gain inf")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rows = {"without a limit": measure(options.free), "limited": measure(CHECKPOINT)}
    result = publish({"benchmark": "rounding", "rows": rows}, options.output)
    print(rounding_table(result))


if __name__ == "__main__":
    main()
