"""The files that contestants run, written in several processes before anything is timed."""

import copy
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

import deploy_rnn
from benchmarks.grid.contestants import LEGACY, STOCK, Missing
from benchmarks.grid.points import Net, Point
from deploy_rnn.errors import DeployError
from deploy_rnn.export import export_bundle
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.forms import FORMS
from deploy_rnn.export.forms.node_count import MAX_NODES
from deploy_rnn.export.options import ExportOptions

STOCK_STEPS = 200
"""Steps, over all layers and directions, above which torch.onnx.export takes more than a minute."""

BUNDLE = "bundle"
PACKAGE = "package"

Files = dict[str, Path | str]
"""Name of a graph -> its file, or the reason why there is none."""

FilesByTrace = dict[tuple[Net, int], Files]
"""(net, T) -> its files; those that serve every T are under T=0."""


@dataclass(frozen=True)
class Job:
    """One file, or several that one trace gives, to be written into `folder`."""

    write: Callable[[Net, int, Path], Files]
    net: Net
    steps: int
    folder: Path


def write_forms(net: Net, steps: int, folder: Path) -> Files:
    """Every form of ours, from one trace. Not verified: every contestant is compared before it is timed."""
    x = torch.randn(steps, 2, net.hidden)
    captured = CapturedModel.of(net.layer(), (x,), None, ExportOptions(), dynamic_time=False)
    files: Files = {}
    for form in FORMS:
        path = folder / f"{net.key}-t{steps}-{form}.onnx"
        try:
            ir.save(captured.written(form, max_nodes=MAX_NODES), path)
        except DeployError as error:
            files[form] = str(error)
        else:
            files[form] = path
    return files


def write_legacy(net: Net, steps: int, folder: Path) -> Files:
    """The file of PyTorch's first exporter, which writes the native operators."""
    path = folder / f"{net.key}-t{steps}-legacy.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.layer(), (torch.randn(steps, 2, net.hidden),), path, dynamo=False, input_names=["input"],
            output_names=["output"], dynamic_axes={"input": {1: "B"}, "output": {1: "B"}},
        )  # fmt: skip
    return {LEGACY: path}


def write_stock(net: Net, steps: int, folder: Path) -> Files:
    """The file of PyTorch's exporter.

    It takes long to write, and our code does not change it: a file from an earlier run is reused.
    """
    if steps * net.layers * net.directions > STOCK_STEPS:
        return {STOCK: "the export takes more than a minute"}
    versions = "-".join(
        f"{name}{metadata.version(name)}" for name in ("torch", "onnx", "onnxscript")
    )
    path = folder / "stock" / f"{net.key}-t{steps}-{versions}.onnx"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        stock_export(net.layer(), torch.randn(steps, 2, net.hidden), path)
    return {STOCK: path}


def stock_export(layer: nn.RNNBase, x: Tensor, path: Path) -> None:
    """Export the layer with PyTorch's own exporter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            copy.deepcopy(layer).cpu(), (x.cpu(),), path, dynamic_shapes=({1: "B"},), input_names=["input"],
            output_names=["output", "h_n"], verbose=False,
        )  # fmt: skip


def write_package(net: Net, _: int, folder: Path) -> Files:
    path = folder / f"{net.key}.pt2"
    deploy_rnn.package(net.layer(), (torch.randn(5, 4, net.hidden),), path)
    return {PACKAGE: path}


def write_bundle(net: Net, _: int, folder: Path) -> Files:
    """A bundle for every T and B; unlike the single forms it is verified."""
    path = folder / f"{net.key}-bundle"
    shutil.rmtree(path, ignore_errors=True)
    export_bundle(
        net.layer(), (torch.randn(8, 2, net.hidden),), path, forms=["scan", "native"], sizes=(2,)
    )
    return {BUNDLE: path}


NAMES: dict[Callable[[Net, int, Path], Files], Sequence[str]] = {
    write_forms: list(FORMS),
    write_legacy: [LEGACY],
    write_stock: [STOCK],
    write_package: [PACKAGE],
    write_bundle: [BUNDLE],
}
"""What each job writes -> the names of its graphs."""


def write_files(
    points: Sequence[Point],
    folder: Path,
    processes: int,
    *,
    packaged: set[Net],
    exported: set[Net],
    bundled: bool,
) -> FilesByTrace:
    """Write everything that the points need.

    Args:
        processes: how many jobs run at a time.
        packaged: nets that `deploy_rnn.package` compiles.
        exported: nets that torch.onnx.export exports.
        bundled: whether each net also becomes a bundle.
    """
    nets = list(dict.fromkeys(point.net for point in points))
    traces = list(dict.fromkeys((point.net, point.steps) for point in points))
    # The longest jobs come first, so that none of them is left for one process at the end.
    jobs = [Job(write_stock, net, steps, folder) for net, steps in traces if net in exported]
    jobs += [Job(write_package, net, 0, folder) for net in nets if net in packaged]
    if bundled:
        jobs += [Job(write_bundle, net, 0, folder) for net in nets]
    for net, steps in traces:
        jobs += [Job(write_forms, net, steps, folder), Job(write_legacy, net, steps, folder)]

    files_by_trace: FilesByTrace = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for job, files in zip(jobs, pool.map(run_job, jobs), strict=True):
            files_by_trace.setdefault((job.net, job.steps), {}).update(files)
    return files_by_trace


def run_job(job: Job) -> Files:
    """Write the files of a job, or say why each is missing."""
    torch.set_num_threads(1)  # the other jobs have the other cores
    try:
        return job.write(job.net, job.steps, job.folder)
    except (
        Exception
    ) as error:  # a missing compiler, a failing exporter: only this contestant is left out
        reason = str(error) or type(error).__name__
        return dict.fromkeys(NAMES[job.write], reason)


def find_file(files: Files, name: str) -> Path:
    """The file of a graph.

    Raises:
        Missing: there is none, and why.
    """
    file = files.get(name, "left out of a quick run")
    if isinstance(file, str):
        raise Missing(file)
    return file
