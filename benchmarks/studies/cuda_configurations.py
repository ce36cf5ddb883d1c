"""Every layer, in every form, on onnxruntime's CUDA provider: `python -m benchmarks.studies.cuda_configurations`.

Each layer is exported in each form, and the file is compared with the layer of torch.nn, as every export is: the
example, other batches, other lengths where T is dynamic, with onnxruntime's graph optimisations on and off. A row has
the largest differences, and which provider really ran the nodes, by onnxruntime's own profile.
"""

import argparse
import itertools
import json
import multiprocessing
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.progress import track
from torch import nn

from benchmarks.grid.points import CELLS
from benchmarks.reporting.cuda_tables import configurations_table
from benchmarks.reporting.machine import publish
from deploy_rnn.errors import DeployError
from deploy_rnn.export import export_onnx
from deploy_rnn.export.forms import FORMS
from deploy_rnn.export.verification.report import Report
from deploy_rnn.runtime import CPU, CUDA

HIDDEN = 24
FEATURES = 5
STEPS, BATCH = 7, 3


@dataclass(frozen=True)
class Configuration:
    """A layer of torch.nn, and how its file is written."""

    cell: str
    layers: int
    directions: int
    dtype: str
    form: str

    def layer(self) -> nn.RNNBase:
        torch.manual_seed(0)
        layer: nn.RNNBase = CELLS[self.cell](
            FEATURES,
            HIDDEN,
            self.layers,
            bidirectional=self.directions == 2,
            dtype=getattr(torch, self.dtype),
        )
        return layer.eval()


def configurations() -> Iterator[Configuration]:
    sizes = itertools.product(CELLS, (1, 2, 3), (1, 2), ("float32", "float64"), FORMS)
    for cell, layers, directions, dtype, form in sizes:
        # onnxruntime has ONNX's recurrent operators in float32 only.
        if (form, dtype) == ("native", "float64"):
            continue
        yield Configuration(cell, layers, directions, dtype, form)


def measure(configuration: Configuration) -> dict[str, Any]:
    """Export one layer, and return its row; "refused" says why there is no file."""
    row: dict[str, Any] = asdict(configuration)
    layer = configuration.layer()
    x = torch.randn(STEPS, BATCH, FEATURES, dtype=getattr(torch, configuration.dtype))
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the row says what a warning would
        try:
            path = Path(folder) / "layer.onnx"
            report = export_onnx(layer, x, path, form=configuration.form)
        except DeployError as error:
            return row | {"refused": str(error)}
    return row | checked(report)


def checked(report: Report) -> dict[str, Any]:
    """What a report says of the CUDA provider, and of the CPU for comparison."""
    on_cuda = [item for item in report.comparisons if item.provider == CUDA]
    on_cpu = [item for item in report.comparisons if item.provider == CPU]
    if not on_cuda:
        return {"refused": report.providers[CUDA]}
    nodes = report.placement[CUDA].nodes
    return {
        "runs": len(on_cuda),
        "cuda": max(item.max_abs_error for item in on_cuda),
        "cpu": max(item.max_abs_error for item in on_cpu),
        "allowed": min(item.allowed for item in on_cuda),
        "nodes": {provider: sum(by_type.values()) for provider, by_type in nodes.items()},
        "on the cpu": dict(nodes.get(CPU, {})),
        "copies": report.placement[CUDA].copies,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda"], default="cuda")
    parser.add_argument("--jobs", type=int, default=8, help="layers that are checked at a time")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    cases = list(configurations())
    # A process that forks after CUDA has started cannot use CUDA.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=use_one_core) as pool:
        rows = list(track(pool.map(measure, cases), "checking", total=len(cases)))
    result = publish({"benchmark": "cuda_configurations", "rows": rows}, options.output)
    print(configurations_table(result))
    refused = [row for row in rows if "refused" in row]
    if refused:
        raise SystemExit(json.dumps(refused, indent=2))


def use_one_core() -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
