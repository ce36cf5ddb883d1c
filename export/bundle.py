"""`export_bundle`: one model as several graphs over one file of weights, each run and compared."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import nn

import deploy_rnn
from deploy_rnn import bundle
from deploy_rnn.bundle import Graph, Manifest, Tensor
from deploy_rnn.checking.tolerance import Tolerance
from deploy_rnn.checking.trials import resized
from deploy_rnn.errors import ExportError
from deploy_rnn.files import folder_target, replace_folder
from deploy_rnn.runtime import CPU
from deploy_rnn.tensor_spec import TensorSpec

from .capture.captured import CapturedModel
from .forms import FIXED_TIME, FORMS
from .forms.node_count import MAX_NODES
from .shared_weights import SharedWeights
from .verification.html import reports_html
from .verification.report import Report
from .verification.verify import SIZES, check


def export_bundle(
    model: nn.Module,
    args: Any,
    folder: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    forms: Sequence[str] | None = None,
    buckets: Sequence[int] | None = None,
    name: str | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int = 18,
    streaming: bool = False,
    max_nodes: int = MAX_NODES,
    atol: float | None = None,
    rtol: float | None = None,
    sizes: Sequence[int] = SIZES,
) -> Manifest:
    """Export a model as a folder: several graphs that share one file of weights, a manifest, and a report.

    Every graph is checked as `export_onnx` does. The folder appears whole or not at all; a bundle that is there is
    replaced, anything else is left alone.

    Args:
        folder: where the bundle is to be; the folder around it must exist.
        forms: of any number of steps, "scan" and "native"; None for those of them that the model allows. With
            "unrolled" among them, or none of the others, the example's number of steps is a bucket.
        buckets: numbers of steps for each of which there is a graph with every step written out.
        name: of the model; None for the folder's.
        model, args, kwargs, dynamic_shapes, input_names, output_names, opset_version, streaming, max_nodes, atol, rtol,
            sizes: as for `export_onnx`.

    Returns:
        The manifest.

    Raises:
        ExportError: `folder` is there and is no bundle, the model has no time axis of its own for `buckets`, or as for
            `export_onnx`.
    """
    folder = folder_target(folder, bundle.MANIFEST)
    if unknown := [form for form in forms or () if form not in FORMS]:
        raise ExportError(f"`forms` has {unknown[0]!r}; use {' or '.join(map(repr, FORMS))}.")
    prepare = partial(
        CapturedModel.of,
        input_names=input_names,
        output_names=output_names,
        opset_version=opset_version,
        streaming=streaming,
    )
    whole = prepare(model, args, kwargs, dynamic_shapes=dynamic_shapes, dynamic_time=True)
    todo = _graphs(whole, forms, buckets, max_nodes)

    def write(temporary: Path) -> Manifest:
        weights = SharedWeights(temporary / bundle.WEIGHTS)
        graphs, reports = [], []
        for form, steps in todo:
            captured = whole if steps is None else _of_steps(prepare, whole, steps)
            file = temporary / (f"{form}.onnx" if steps is None else f"{form}-{steps}.onnx")
            written = captured.written(form, max_nodes=max_nodes)
            weights.take(written)
            ir.save(written, file)
            shown = folder / file.name
            reports.append(check(file, captured.model, captured.call, Tolerance(atol, rtol), sizes, shown_as=shown))
            graphs.append(Graph(file.name, form, steps, reports[-1].nodes, reports[-1].latency[CPU]["example"]))
        title = name or folder.resolve().name
        _write_reports(temporary, reports, title)
        manifest = _manifest(whole, title, opset_version, graphs, temporary)
        (temporary / bundle.MANIFEST).write_text(manifest.to_json() + "\n", encoding="utf-8")
        return manifest

    return replace_folder(folder, write)


def _graphs(
    whole: CapturedModel, forms: Sequence[str] | None, buckets: Sequence[int] | None, max_nodes: int
) -> list[tuple[str, int | None]]:
    """Form, and number of steps or None for any, of each graph."""
    asked = [form for form in forms or FORMS if form not in FIXED_TIME]
    if forms is None:
        asked = [form for form in asked if _fits(whole, form, max_nodes)]
    graphs: list[tuple[str, int | None]] = [(form, None) for form in asked]
    if not buckets and ("unrolled" in (forms or ()) or not graphs):
        buckets = [whole.example_steps]
    return [*graphs, *(("unrolled", steps) for steps in sorted(set(buckets or ())))]


def _fits(whole: CapturedModel, form: str, max_nodes: int) -> bool:
    try:
        whole.written(form, max_nodes=max_nodes)
    except ExportError:
        return False
    return True


def _of_steps(prepare: Callable[..., CapturedModel], whole: CapturedModel, steps: int) -> CapturedModel:
    """The same model with this fixed number of steps: its example cut, or repeated from its beginning."""
    if not whole.time_names:
        raise ExportError(f"the model fixes its steps at {whole.example_steps}; leave out `buckets`.")
    tensors, axes = [], []
    for value, tensor in zip(whole.graph.graph.inputs, whole.call.tensors, strict=False):
        names = {axis: str(size) for axis, size in enumerate(value.shape or ()) if not isinstance(size, int)}
        for axis, name in names.items():
            if name in whole.time_names:
                tensor = resized(tensor, [*tensor.shape[:axis], steps, *tensor.shape[axis + 1 :]])
        tensors.append(tensor.clamp(max=steps) if value.name in whole.metadata.lengths else tensor)
        axes.append({axis: name for axis, name in names.items() if name not in whole.time_names})
    call = whole.call.with_tensors(tensors)
    return prepare(
        whole.model, call.bound.args, call.bound.kwargs, dynamic_shapes=call.shapes(axes), dynamic_time=False
    )


def _write_reports(folder: Path, reports: Sequence[Report], title: str) -> None:
    (folder / "report.html").write_text(reports_html(reports, title), encoding="utf-8")
    (folder / "report.json").write_text(f"[{', '.join(report.to_json() for report in reports)}]\n", encoding="utf-8")


def _manifest(whole: CapturedModel, name: str, opset: int, graphs: Sequence[Graph], folder: Path) -> Manifest:
    ends = whole.graph.graph
    return Manifest(
        version=bundle.VERSION,
        name=name,
        producer=f"deploy-rnn {deploy_rnn.__version__}",
        opset=opset,
        inputs=tuple(_tensor(whole, value) for value in ends.inputs),
        outputs=tuple(_tensor(whole, value) for value in ends.outputs),
        lengths=whole.metadata.lengths,
        states=whole.metadata.states,
        graphs=tuple(graphs),
        sha256={path.name: bundle.sha256(path) for path in sorted(folder.iterdir())},
    )


def _tensor(whole: CapturedModel, value: ir.Value) -> Tensor:
    assert value.shape is not None
    assert value.dtype is not None
    spec = TensorSpec.of(
        str(value.name),
        value.dtype.numpy().name,
        (size if isinstance(size, int) else size.value for size in value.shape),
    )

    def axis(names: frozenset[str]) -> int | None:
        return next((axis for axis, size in enumerate(spec.shape) if size in names), None)

    return Tensor(spec.name, spec.dtype, spec.shape, batch=axis(whole.batch_names), time=axis(whole.time_names))
