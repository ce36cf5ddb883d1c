"""Sequences of mixed length, T uniform in 1..200, in batches: what padding costs, and what grouping saves.

padded     in the order in which they come, every batch padded to its longest row, without a mask: what a server does
           that does not know of lengths. The reverse direction then starts in the padding, and its outputs are wrong.
lengths    the same batches, and each row ends where it ends
grouped    rows of similar length together, and each ends where it ends: what an engine does that batches by length
buckets    grouped, by unrolled graphs of a few fixed T

The engine is ours, with a bundle of both forms: it shares out the rows of a batch among the cores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.grid.contestants import milliseconds
from benchmarks.grid.points import CELLS, Net
from deploy_rnn.export import export_bundle
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.forms.node_count import MAX_NODES
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.runtime import open_session
from deploy_rnn.serving import Engine
from deploy_rnn.timing import compare

LONGEST, BATCH = 200, 32
BUCKETS = (50, 100, 150, 200)
FORMS = ("scan", "native")
"""The forms whose number of steps is dynamic."""


@dataclass(frozen=True)
class Batch:
    """Some of the sequences, padded with zeros.

    Attributes:
        indices: of the sequences among all of them, one for a row.
        lengths: (B,) int64
        x: (T, B, I) float32
    """

    indices: list[int]
    lengths: np.ndarray
    x: np.ndarray

    @classmethod
    def of(
        cls, sequences: Sequence[np.ndarray], indices: list[int], steps: int | None = None
    ) -> "Batch":
        """Pad to `steps`, or to the longest of the sequences."""
        lengths = np.array([len(sequences[index]) for index in indices])
        x = np.zeros((steps or lengths.max(), len(indices), sequences[0].shape[1]), np.float32)
        for row, index in enumerate(indices):
            x[: lengths[row], row] = sequences[index]
        return cls(indices, lengths, x)


def make_batches(
    sequences: Sequence[np.ndarray], size: int, *, grouped: bool, buckets: Sequence[int] = ()
) -> list[Batch]:
    """Batches in the order of the sequences, or grouped by length.

    With `buckets`, each batch is padded to the smallest of them that is long enough.
    """
    order = list(range(len(sequences)))
    if grouped:
        order.sort(key=lambda index: len(sequences[index]))
    batches = []
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        longest = max(len(sequences[index]) for index in indices)
        bucket = min((bucket for bucket in buckets if bucket >= longest), default=None)
        batches.append(Batch.of(sequences, indices, bucket))
    return batches


Runner = Callable[[Batch], np.ndarray]
"""One batch -> output (T, B, D*H)."""
Plan = tuple[Runner, list[Batch]]
"""What runs each batch, and the batches."""


def run_padded(layer: nn.RNNBase, batch: Batch) -> np.ndarray:
    output: Tensor = layer(torch.from_numpy(batch.x))[0]
    return output.numpy()


def run_packed(layer: nn.RNNBase, batch: Batch) -> np.ndarray:
    lengths = torch.from_numpy(batch.lengths)
    packed = pack_padded_sequence(torch.from_numpy(batch.x), lengths, enforce_sorted=False)
    output, _ = layer(packed)
    return pad_packed_sequence(output)[0].numpy()


def graph_runner(
    layer: nn.RNNBase, path: Path, threads: int, *, form: str, steps: int | None, masked: bool
) -> Runner:
    """A graph of `layer`: for T = `steps`, or for any T if that is None; with lengths if `masked`."""
    example_steps = steps or 5
    x = torch.randn(example_steps, 2, layer.input_size)
    kwargs = {"lengths": torch.tensor([example_steps, 3])}
    captured = CapturedModel.of(
        layer, (x,), kwargs if masked else None, ExportOptions(), dynamic_time=steps is None
    )
    ir.save(captured.written(form, max_nodes=MAX_NODES), path)
    session = open_session(path, threads=threads)
    names = [spec.name for spec in session.get_inputs()]

    def run(batch: Batch) -> np.ndarray:
        feeds = dict(
            zip(names, (batch.x, batch.lengths), strict=False)
        )  # without a mask there is only one name
        output: np.ndarray = session.run(["output"], feeds)[0]
        return output

    return run


def engine_runner(layer: nn.RNNBase, folder: Path, threads: int) -> Runner:
    kwargs = {"lengths": torch.tensor([8, 3])}
    export_bundle(
        layer,
        (torch.randn(8, 2, layer.input_size),),
        folder,
        kwargs=kwargs,
        forms=FORMS,
        sizes=(2,),
    )
    engine = Engine(folder, threads=threads)
    engine.warm_up()

    def run(batch: Batch) -> np.ndarray:
        inputs = {"input": batch.x.swapaxes(0, 1), "lengths": batch.lengths}
        output: np.ndarray = engine.run(inputs, ["output"])["output"].swapaxes(0, 1)
        return output

    return run


def run_in_bucket(runners: dict[int, Runner], batch: Batch) -> np.ndarray:
    """Run a batch on the graph for its number of steps."""
    steps = len(batch.x)
    return runners[steps](batch)


def make_plans(
    net: Net, sequences: Sequence[np.ndarray], folder: Path, threads: int
) -> dict[str, Plan]:
    """Every way to run the sequences, by its name in the JSON."""
    layer = net.layer()
    ungrouped = make_batches(sequences, BATCH, grouped=False)
    grouped = make_batches(sequences, BATCH, grouped=True)
    in_buckets = make_batches(sequences, BATCH, grouped=True, buckets=BUCKETS)
    plans: dict[str, Plan] = {
        "torch.nn, padded": (partial(run_padded, layer), ungrouped),
        "torch.nn, packed": (partial(run_packed, layer), ungrouped),
    }
    for form in FORMS:
        bare = graph_runner(
            layer, folder / f"{form}.onnx", threads, form=form, steps=None, masked=False
        )
        masked = graph_runner(
            layer, folder / f"{form}-lengths.onnx", threads, form=form, steps=None, masked=True
        )
        plans[f"{form}, padded"] = (bare, ungrouped)
        plans[f"{form}, lengths"] = (masked, ungrouped)
        plans[f"{form}, grouped"] = (masked, grouped)
    bucket_runners = {
        steps: graph_runner(
            layer, folder / f"{steps}.onnx", threads, form="unrolled", steps=steps, masked=True
        )
        for steps in BUCKETS
    }
    plans["unrolled, buckets"] = (partial(run_in_bucket, bucket_runners), in_buckets)
    plans["Engine, grouped"] = (engine_runner(layer, folder / "bundle", threads), grouped)
    return plans


def outputs_by_sequence(run: Runner, batches: Sequence[Batch]) -> dict[int, np.ndarray]:
    """Index of each sequence -> its output, without the padding."""
    outputs = {}
    for batch in batches:
        output = run(batch)
        for row, index in enumerate(batch.indices):
            outputs[index] = output[: batch.lengths[row], row]
    return outputs


def check(plans: dict[str, Plan]) -> None:
    """Compare every plan but the padded ones, which are wrong by design, with packed sequences in PyTorch.

    Raises:
        AssertionError: a plan is wrong.
    """
    expected = outputs_by_sequence(*plans["torch.nn, packed"])
    for name, plan in plans.items():
        if name.endswith("padded"):
            continue
        outputs = outputs_by_sequence(*plan)
        worst = max(float(np.abs(outputs[index] - expected[index]).max()) for index in expected)
        assert worst < 1e-4, f"{name} is wrong by {worst}"


def random_sequences(count: int, columns: int) -> list[np.ndarray]:
    """`count` sequences (T, columns), T uniform in 1..LONGEST, the same each time."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, LONGEST, count, endpoint=True)
    return [random.standard_normal((length, columns), dtype=np.float32) for length in lengths]


def measure(net: Net, count: int, threads: int) -> dict[str, Any]:
    """Milliseconds a sequence, for each way to run `count` of them."""
    sequences = random_sequences(count, net.hidden)
    with TemporaryDirectory() as folder, torch.no_grad():
        plans = make_plans(net, sequences, Path(folder), threads)
        check(plans)
        runs = {name: partial(_run_all, *plan) for name, plan in plans.items()}
        timings = compare(runs, rounds=2, calls=3, warm_up=1)
    contestants = {}
    for name, timing in timings.items():
        contestants[name] = {quantile: ms / count for quantile, ms in milliseconds(timing).items()}
    return {
        "cell": net.cell,
        "H": net.hidden,
        "sequences": count,
        "batch": BATCH,
        "contestants": contestants,
    }


def _run_all(run: Runner, batches: Sequence[Batch]) -> None:
    for batch in batches:
        run(batch)


def measure_all(threads: int, *, full: bool) -> list[dict[str, Any]]:
    """Every cell; unless `full`, at one size and with few sequences."""
    sizes = [64, 256] if full else [128]
    count = 512 if full else 96
    return [measure(Net(cell, hidden), count, threads) for cell in CELLS for hidden in sizes]
