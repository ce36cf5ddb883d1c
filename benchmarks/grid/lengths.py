"""Sequences of mixed length, T uniform in 1..200, in batches: what padding costs, and what is won by grouping.

padded     in the order they come, every batch padded to its longest, no mask: what a server does that knows nothing of
           lengths. The reverse direction then starts in the padding, and its outputs are wrong.
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
from deploy_rnn.runtime import open_session
from deploy_rnn.serving import Engine
from deploy_rnn.timing import compare

LONGEST, BATCH = 200, 32
BUCKETS = (50, 100, 150, 200)
FORMS = ("scan", "native")
"""Those whose number of steps is open."""


@dataclass(frozen=True)
class Rows:
    """Some of the sequences in one batch: their places among all, lengths (B,) and x (T, B, I), zeros after each."""

    places: list[int]
    lengths: np.ndarray
    x: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray], places: list[int], steps: int | None = None) -> "Rows":
        lengths = np.array([len(sequences[place]) for place in places])
        x = np.zeros((steps or lengths.max(), len(places), sequences[0].shape[1]), np.float32)
        for column, place in enumerate(places):
            x[: lengths[column], column] = sequences[place]
        return cls(places, lengths, x)


def batches(sequences: Sequence[np.ndarray], size: int, *, grouped: bool, buckets: Sequence[int] = ()) -> list[Rows]:
    """In the order they come, or grouped by length; with `buckets`, padded to the least of these that is enough."""
    order = list(range(len(sequences)))
    if grouped:
        order.sort(key=lambda place: len(sequences[place]))
    parts = [order[at : at + size] for at in range(0, len(order), size)]
    return [Rows.of(sequences, part, _bucket(sequences, part, buckets)) for part in parts]


def _bucket(sequences: Sequence[np.ndarray], places: list[int], buckets: Sequence[int]) -> int | None:
    longest = max(len(sequences[place]) for place in places)
    return min((bucket for bucket in buckets if bucket >= longest), default=None)


Runner = Callable[[Rows], np.ndarray]
"""One batch -> output (T, B, D*H)."""
Plan = tuple[Runner, list[Rows]]
"""What runs each batch, and the batches."""


def padded(layer: nn.RNNBase, rows: Rows) -> np.ndarray:
    found: Tensor = layer(torch.from_numpy(rows.x))[0]
    return found.numpy()


def packed(layer: nn.RNNBase, rows: Rows) -> np.ndarray:
    lengths = torch.from_numpy(rows.lengths)
    output, _ = layer(pack_padded_sequence(torch.from_numpy(rows.x), lengths, enforce_sorted=False))
    return pad_packed_sequence(output)[0].numpy()


def graph_runner(layer: nn.RNNBase, path: Path, threads: int, *, form: str, steps: int | None, masked: bool) -> Runner:
    """A graph of `layer`: of T = `steps`, or of any T if that is None; with lengths if `masked`."""
    x, kwargs = torch.randn(steps or 5, 2, layer.input_size), {"lengths": torch.tensor([steps or 5, 3])}
    captured = CapturedModel.of(
        layer, (x,), kwargs if masked else None, dynamic_shapes=None, input_names=None, output_names=None,
        opset_version=18, dynamic_time=steps is None, streaming=False,
    )  # fmt: skip
    ir.save(captured.written(form, max_nodes=MAX_NODES), path)
    session = open_session(path, threads=threads)
    names = [each.name for each in session.get_inputs()]

    def run(rows: Rows) -> np.ndarray:
        output: np.ndarray = session.run(["output"], dict(zip(names, (rows.x, rows.lengths), strict=False)))[0]
        return output

    return run


def engine_runner(layer: nn.RNNBase, folder: Path, threads: int) -> Runner:
    kwargs = {"lengths": torch.tensor([8, 3])}
    export_bundle(layer, (torch.randn(8, 2, layer.input_size),), folder, kwargs=kwargs, forms=FORMS, sizes=(2,))
    engine = Engine(folder, threads=threads)
    engine.warm_up()

    def run(rows: Rows) -> np.ndarray:
        inputs = {"input": rows.x.swapaxes(0, 1), "lengths": rows.lengths}
        output: np.ndarray = engine.run(inputs, ["output"])["output"].swapaxes(0, 1)
        return output

    return run


def bucketed(runners: dict[int, Runner], rows: Rows) -> np.ndarray:
    return runners[len(rows.x)](rows)


def plans(net: Net, sequences: Sequence[np.ndarray], folder: Path, threads: int) -> dict[str, Plan]:
    layer = net.layer()
    as_they_come, grouped = (batches(sequences, BATCH, grouped=each) for each in (False, True))
    found: dict[str, Plan] = {
        "torch.nn, padded": (partial(padded, layer), as_they_come),
        "torch.nn, packed": (partial(packed, layer), as_they_come),
    }
    for form in FORMS:
        bare, masked = (
            graph_runner(layer, folder / f"{form}{mask}.onnx", threads, form=form, steps=None, masked=mask)
            for mask in (False, True)
        )
        found[f"{form}, padded"] = (bare, as_they_come)
        found[f"{form}, lengths"] = (masked, as_they_come)
        found[f"{form}, grouped"] = (masked, grouped)
    graphs = {
        steps: graph_runner(layer, folder / f"{steps}.onnx", threads, form="unrolled", steps=steps, masked=True)
        for steps in BUCKETS
    }
    in_buckets = batches(sequences, BATCH, grouped=True, buckets=BUCKETS)
    found["unrolled, buckets"] = (partial(bucketed, graphs), in_buckets)
    found["Engine, grouped"] = (engine_runner(layer, folder / "bundle", threads), grouped)
    return found


def by_sequence(run: Runner, rows: Sequence[Rows]) -> dict[int, np.ndarray]:
    """Each sequence's output, without the padding, by its place."""
    return {
        place: output[: rows_of.lengths[column], column]
        for rows_of in rows
        for output in [run(rows_of)]
        for column, place in enumerate(rows_of.places)
    }


def check(found: dict[str, Plan]) -> None:
    """All that promise to be right are.

    Raises:
        AssertionError: one is not.
    """
    expected = by_sequence(*found["torch.nn, packed"])
    for name, plan in found.items():
        if not name.endswith("padded"):
            outputs = by_sequence(*plan)
            worst = max(float(np.abs(outputs[place] - expected[place]).max()) for place in expected)
            assert worst < 1e-4, f"{name} is wrong by {worst}"


def measure(net: Net, count: int, threads: int) -> dict[str, Any]:
    """Milliseconds a sequence of each way to run `count` of them."""
    random = np.random.default_rng(0)
    sequences = [
        random.standard_normal((length, net.hidden), dtype=np.float32)
        for length in random.integers(1, LONGEST, count, endpoint=True)
    ]
    with TemporaryDirectory() as folder, torch.no_grad():
        found = plans(net, sequences, Path(folder), threads)
        check(found)
        times = compare({name: partial(_all, *plan) for name, plan in found.items()}, rounds=2, calls=3, warm_up=1)
    costs = {name: {at: value / count for at, value in milliseconds(time).items()} for name, time in times.items()}
    return {"cell": net.cell, "H": net.hidden, "sequences": count, "batch": BATCH, "contestants": costs}


def _all(run: Runner, rows: Sequence[Rows]) -> None:
    for each in rows:
        run(each)


def rows(threads: int, *, full: bool) -> list[dict[str, Any]]:
    """Every cell: a quick run with one size and few sequences."""
    hidden, count = ((64, 256), 512) if full else ((128,), 96)
    return [measure(Net(cell, each), count, threads) for cell in CELLS for each in hidden]
