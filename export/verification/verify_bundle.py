"""`verify_bundle`: every graph of a bundle against the PyTorch model that it came from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from deploy_rnn.bundle import Graph, Manifest, checked_manifest
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.program import runnable
from deploy_rnn.checking.tolerance import Tolerance, model_precision
from deploy_rnn.checking.trials import SIZES, resized
from deploy_rnn.errors import BundleError, ExportError, LoadError, VerificationError
from deploy_rnn.tensor_spec import TensorSpec

from ..onnx_file import OnnxFile
from ..precision.names import ROUNDED
from ..precision.scope import Int8Scope
from ..runtimes.table import ONNXRUNTIME
from .check import LONG_STEPS, CheckOptions, check
from .report import Report
from .verify import int8_scope_of, prepared


def verify_bundle(
    folder: str | Path,
    model: nn.Module | ExportedProgram,
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    sizes: Sequence[int] = SIZES,
    long_steps: int | None = LONG_STEPS,
    require_provider: str | None = None,
    runtime: str = ONNXRUNTIME,
) -> tuple[Report, ...]:
    """Check a bundle: its files are those that were exported, and every graph is `model`.

    A graph for one number of steps gets the example cut, or repeated from its beginning, to that number.

    Args:
        folder: the bundle.
        model, args, kwargs, atol, rtol, sizes, long_steps, require_provider, runtime: as for `verify`.

    Returns:
        The report of each graph, in the order of the manifest; if it has several precisions, one after the other.

    Raises:
        VerificationError: a graph differs from the model, cannot be run, or is not what the manifest says of it; every
            graph is looked at first, and `reports` has all that could be run.
        BundleError: not a bundle, or a file that is missing or is not the one that was exported.
        ExportError: the model fails on the example, or gives other numbers when it is called again.
        ProviderError, RuntimeMissingError, RunError: as for `verify`.
        ValueError: an `atol`, `rtol`, `sizes` or `long_steps` that is out of range.
    """
    folder = Path(folder)
    model = runnable(model)
    manifest = checked_manifest(folder)
    found = _Found()
    for precision in manifest.precisions:
        graphs = [graph for graph in manifest.graphs if graph.precision == precision]
        own_precision = precision if precision in ROUNDED else model_precision(model)
        options = CheckOptions(
            Tolerance(atol, rtol, own_precision), sizes, long_steps, require_provider, (runtime,)
        )
        int8 = _int8_scope(folder / graphs[0].file)
        reference, call = prepared(model, args, kwargs, own_precision, int8)
        for graph in graphs:
            path = folder / graph.file
            with found.collecting():
                _check_manifest(manifest, graph, path)
                graph_call = _with_steps(manifest, call, graph.steps)
                found.reports.append(check(path, reference, graph_call, options, shown_as=path))
    if found.faults:
        raise VerificationError(
            f"{len(found.faults)} of the {len(manifest.graphs)} graphs of {str(folder)!r} are not the model: "
            + " ".join(f"{fault.rstrip('.')}." for fault in found.faults),
            found.first_failure,
            found.reports,
        )
    return tuple(found.reports)


def _int8_scope(path: Path) -> Int8Scope:
    """What is of eight bits; the same in all graphs of a precision."""
    try:
        return int8_scope_of(OnnxFile.read(path))
    except LoadError:  # the check of this graph says so
        return Int8Scope()


@dataclass
class _Found:
    """What the checks of the graphs have found so far.

    Attributes:
        reports: of all that could be run.
        faults: a sentence for each graph that is not the model.
        first_failure: the report of the first of them that could be run.
    """

    reports: list[Report] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    first_failure: Report | None = None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the error of one graph, so that the others are looked at, too."""
        try:
            yield
        except VerificationError as error:
            self.faults.append(str(error))
            if error.report is not None:
                self.reports.append(error.report)
                self.first_failure = self.first_failure or error.report
        except (ExportError, LoadError, BundleError) as error:
            self.faults.append(str(error))


def _check_manifest(manifest: Manifest, graph: Graph, path: Path) -> None:
    """Raises: BundleError: a graph that has other inputs or outputs than the manifest says."""
    file = OnnxFile.read(path)
    promised = (*manifest.inputs, *manifest.outputs)
    actual = (*file.inputs, *file.outputs)
    # The shapes of a graph for one number of steps follow from the others.
    for tensor, spec in zip(promised, actual, strict=False):
        expected = TensorSpec(tensor.name, tensor.dtype, tensor.shape)
        if graph.steps is not None:
            expected = replace(expected, shape=spec.shape)
        if expected != spec:
            raise BundleError(f"{path.name} has `{spec}`, where the manifest says `{expected}`")
    counts = len(file.inputs), len(file.outputs)
    if counts != (len(manifest.inputs), len(manifest.outputs)):
        raise BundleError(
            f"{path.name} has {counts[0]} inputs and {counts[1]} outputs, where the manifest says "
            f"{len(manifest.inputs)} and {len(manifest.outputs)}"
        )


def _with_steps(manifest: Manifest, call: ExampleCall, steps: int | None) -> ExampleCall:
    """The example with that number of steps, and no longer rows; as it is for a graph for any number."""
    if steps is None:
        return call
    tensors = list(call.tensors)
    # A streaming graph has more inputs than the example has tensors: its states come last.
    for number, spec in enumerate(manifest.inputs[: len(tensors)]):
        tensor = tensors[number]
        if spec.time is not None and spec.time < tensor.dim():
            shape = list(tensor.shape)
            shape[spec.time] = steps
            tensors[number] = resized(tensor, shape)
        if spec.name in manifest.lengths:
            tensors[number] = tensor.clamp(max=steps)
    return call.with_tensors(tensors)
