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

STOCK_STEPS = 200
"""Steps, over all layers and directions, above which torch.onnx.export takes more than a minute."""


BUNDLE, PACKAGE = "bundle", "package"
Found = dict[str, Path | str]
"""name -> a file, or why there is none."""


@dataclass(frozen=True)
class Job:
    """One file, or several that one trace gives, to be written into `folder`."""

    write: Callable[..., Found]
    net: Net
    steps: int
    folder: Path

    def __call__(self) -> Found:
        torch.set_num_threads(1)  # another process has the other core
        return self.write(self.net, self.steps, self.folder)


def forms(net: Net, steps: int, folder: Path) -> Found:
    """Every form of ours, from one trace; unchecked, since each contestant is before it is timed."""
    x = torch.randn(steps, 2, net.hidden)
    captured = CapturedModel.of(
        net.layer(), (x,), None, dynamic_shapes=None, input_names=None, output_names=None, opset_version=18,
        dynamic_time=False, streaming=False,
    )  # fmt: skip
    found: Found = {}
    for form in FORMS:
        path = folder / f"{net.key}-t{steps}-{form}.onnx"
        try:
            ir.save(captured.written(form, max_nodes=MAX_NODES), path)
        except DeployError as error:
            found[form] = str(error)
        else:
            found[form] = path
    return found


def legacy(net: Net, steps: int, folder: Path) -> Found:
    """PyTorch's first exporter, which writes the native operators."""
    path = folder / f"{net.key}-t{steps}-legacy.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.layer(), (torch.randn(steps, 2, net.hidden),), path, dynamo=False, input_names=["input"],
            output_names=["output"], dynamic_axes={"input": {1: "B"}, "output": {1: "B"}},
        )  # fmt: skip
    return {LEGACY: path}


def stock(net: Net, steps: int, folder: Path) -> Found:
    """PyTorch's exporter. It takes long and knows nothing of ours: a file from an earlier run will do."""
    if steps * net.layers * net.directions > STOCK_STEPS:
        return {STOCK: "the export takes more than a minute"}
    versions = "-".join(f"{name}{metadata.version(name)}" for name in ("torch", "onnx", "onnxscript"))
    path = folder / "stock" / f"{net.key}-t{steps}-{versions}.onnx"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        stock_export(net.layer(), torch.randn(steps, 2, net.hidden), path)
    return {STOCK: path}


def stock_export(layer: nn.RNNBase, x: Tensor, path: Path) -> None:
    """What PyTorch itself makes of the layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            copy.deepcopy(layer).cpu(), (x.cpu(),), path, dynamic_shapes=({1: "B"},), input_names=["input"],
            output_names=["output", "h_n"], verbose=False,
        )  # fmt: skip


def package(net: Net, _: int, folder: Path) -> Found:
    path = folder / f"{net.key}.pt2"
    deploy_rnn.package(net.layer(), (torch.randn(5, 4, net.hidden),), path)
    return {PACKAGE: path}


def bundle(net: Net, _: int, folder: Path) -> Found:
    """Checked, unlike the forms by themselves, for every T and B."""
    path = folder / f"{net.key}-bundle"
    shutil.rmtree(path, ignore_errors=True)
    export_bundle(net.layer(), (torch.randn(8, 2, net.hidden),), path, forms=["scan", "native"], sizes=(2,))
    return {BUNDLE: path}


Files = dict[tuple[Net, int], Found]
"""(net, T) -> its files; T=0: those that serve every T."""


def write(
    points: Sequence[Point], folder: Path, processes: int, *, packaged: set[Net], exported: set[Net], bundled: bool
) -> Files:
    """Everything that the points need, by so many processes.

    Args:
        packaged: nets that `deploy_rnn.package` compiles.
        exported: nets that torch.onnx.export exports.
        bundled: whether each net becomes a bundle, too.
    """
    traces = dict.fromkeys((point.net, point.steps) for point in points)
    jobs = [Job(stock, *trace, folder) for trace in traces if trace[0] in exported]
    nets = dict.fromkeys(point.net for point in points)
    jobs += [Job(package, net, 0, folder) for net in nets if net in packaged]
    jobs += [Job(bundle, net, 0, folder) for net in nets if bundled]
    jobs += [Job(each, *trace, folder) for trace in traces for each in (forms, legacy)]
    found: Files = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for job, files in zip(jobs, pool.map(_run, jobs), strict=True):
            found.setdefault((job.net, job.steps), {}).update(files)
    return found


def _run(job: Job) -> Found:
    try:
        return job()
    except Exception as error:  # a compiler that is not there, an exporter that fails: that contestant is missing
        return dict.fromkeys(NAMES[job.write], str(error) or type(error).__name__)


NAMES: dict[Callable[..., Found], Sequence[str]] = {
    forms: list(FORMS),
    legacy: [LEGACY],
    stock: [STOCK],
    package: [PACKAGE],
    bundle: [BUNDLE],
}


def path(files: Found, name: str) -> Path:
    """Raises: Missing: there is no such file, and why."""
    where = files.get(name, "left out of a quick run")
    if isinstance(where, str):
        raise Missing(where)
    return where
