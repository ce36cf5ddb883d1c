"""Cells of one's own and loops in int8: `python -m benchmarks.studies.int8_cells`, two minutes.

Steps as users write them, whose products the export finds, with I = H and the usual random weights: an LSTM with
peepholes and a minimal gated unit, each a `deploy_rnn.Cell`, and a loop (`deploy_rnn.scan`) over an `nn.GRUCell`. 50
steps in form "scan", one thread. Times are processor time, and an error is the largest difference of an output from the
model in float64, on normal inputs, as in `int8_contestants`.
"""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

import deploy_rnn
from benchmarks.reporting.machine import publish
from benchmarks.reporting.precision_tables import cells_section
from benchmarks.studies.int8_contestants import in_onnxruntime, milliseconds
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.saving import save

HIDDEN = [256, 512]
BATCHES = [1, 32]
STEPS = 50

FILES = {
    "float32": ("float32", "all"),
    "int8": ("int8", "all"),
    "int8, state only": ("int8", "state"),
}
"""What is measured -> `precision`, `int8_products`."""


def peephole(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """The gates see the cell state."""
    h, c = states
    w_hh, p_i, p_f, p_o = weights
    i, f, g, o = torch.baddbmm(projected, h, w_hh).chunk(4, -1)
    new_c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
    return [torch.sigmoid(o + p_o * new_c) * torch.tanh(new_c), new_c]


class PeepholeLSTM(deploy_rnn.LSTM):
    cell = deploy_rnn.Cell(
        peephole,
        gates=4,
        states=2,
        parameters={name: lambda size: (size,) for name in ("peep_i", "peep_f", "peep_o")},
    )


def minimal_gated(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """One gate, and two products that come one after the other."""
    [h] = states
    w_f, w_n = weights[0].chunk(2, -1)
    x_f, x_n = projected.chunk(2, -1)
    f = torch.sigmoid(x_f + torch.bmm(h, w_f))
    n = torch.tanh(x_n + torch.bmm(f * h, w_n))
    return [h + f * (n - h)]


class MinimalGated(deploy_rnn.Recurrent):
    cell = deploy_rnn.Cell(minimal_gated, gates=2)


class CellLoop(nn.Module):
    """Everything is computed in the step, the input's product too."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(input_size, hidden_size)

    def forward(self, input: Tensor) -> Tensor:
        def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.cell(x, h)
            return h, h

        zeros = input.new_zeros(input.size(1), self.cell.hidden_size)
        outputs: Tensor = deploy_rnn.scan(step, zeros, input)[1]
        return outputs


MODELS: dict[str, Any] = {
    "LSTM with peepholes": PeepholeLSTM,
    "minimal gated unit": MinimalGated,
    "GRUCell in a loop": CellLoop,
}


def write_files(model: nn.Module, hidden: int, folder: Path) -> dict[str, Path]:
    options = ExportOptions(
        dynamic_shapes={"input": {0: "T", 1: "B"}},
        output_names=OUTPUT if isinstance(model, CellLoop) else None,
    )
    x = torch.randn(STEPS, 2, hidden)
    captured = CapturedModel.of(model, (x,), None, options, dynamic_time=True)
    files = {}
    for name, (precision, products) in FILES.items():
        metadata = replace(captured.metadata, int8_products=products)
        source = replace(captured, precision=precision, metadata=metadata)
        files[name] = folder / f"{name}.onnx"
        save(source.written("scan", max_nodes=options.max_nodes), files[name])
    return files


OUTPUT = ["output"]
"""That of a loop; layers have names for theirs."""


def measure_model(name: str, hidden: int) -> Iterator[dict[str, Any]]:
    """A row for each batch."""
    torch.manual_seed(0)
    model = MODELS[name](hidden, hidden).eval()
    exact_model = copy.deepcopy(model).double()
    with TemporaryDirectory() as folder, torch.no_grad():
        files = write_files(model, hidden, Path(folder))
        runs = {contestant: in_onnxruntime(path) for contestant, path in files.items()}
        for batch in BATCHES:
            x = torch.randn(STEPS, batch, hidden)
            result = exact_model(x.double())
            exact = (result if isinstance(result, Tensor) else result[0]).numpy()
            times = milliseconds(runs, x.numpy())
            contestants = {}
            for contestant, run in runs.items():
                error = float(np.abs(run(x.numpy()) - exact).max())
                contestants[contestant] = {"milliseconds": times[contestant], "error": error}
            yield {"model": name, "H": hidden, "B": batch, "T": STEPS, "contestants": contestants}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, help=f"default {HIDDEN}")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    models = [(name, hidden) for name in MODELS for hidden in options.hidden]
    for name, hidden in track(models, "measuring"):
        rows += measure_model(name, hidden)
    result = publish({"benchmark": "int8_cells", "rows": rows}, options.output)
    print(cells_section(result))


if __name__ == "__main__":
    main()
