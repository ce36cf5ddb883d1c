"""`open_model`: open the graphs of a bundle, or a lone .onnx file."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy_rnn.bundle import Graph, Manifest, Tensor
from deploy_rnn.bundle_files import PAUSE_SECONDS
from deploy_rnn.errors import BundleError, LoadError
from deploy_rnn.metadata import FileMetadata, reads_sequence_lens
from deploy_rnn.runtime import Specs, check_threads, provider_named
from deploy_rnn.tensor_spec import IndexRange, TensorSpec

from .graphs import Graphs
from .precision import file_precision
from .providers import open_runner, side_by_side
from .reading import read_bundle, read_model
from .session import Runner
from .signature import Signature


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to run.

    Attributes:
        name: the bundle's, or that of the file.
        inputs, outputs: in the layout of clients.
        signature: what their axes mean.
        graphs: opened on one provider.
        precision: of the graphs, such as "int8".
        cores: how many runs it makes at a time.
    """

    name: str
    inputs: Specs
    outputs: Specs
    signature: Signature
    graphs: Graphs
    precision: str
    cores: int


def open_model(
    path: Path, provider: str, threads: int | None, precision: str | None = None
) -> OpenedModel:
    """Open a model, without running it; arguments and errors are those of `Engine`."""
    check_threads(threads)
    open_graph = partial(open_runner, provider=provider, threads=threads)
    cores = side_by_side(provider, threads)
    if path.is_file():
        return _open_file(path, open_graph, cores, provider, precision)
    if not path.is_dir():
        # Whoever replaces a folder moves the old one away first.
        time.sleep(PAUSE_SECONDS)
    if path.is_dir():
        return _open_bundle(path, open_graph, cores, provider, precision)
    raise FileNotFoundError(f"`path` (={str(path)!r}) is not a file, nor the folder of a bundle.")


def _open_bundle(
    folder: Path,
    open_graph: Callable[..., Runner],
    cores: int,
    provider: str,
    precision: str | None,
) -> OpenedModel:
    content = read_bundle(folder, precision)
    manifest = content.manifest
    right_graphs = [graph for graph in manifest.graphs if _is_right(graph, manifest, provider)]
    if not right_graphs:
        raise LoadError(_wrong_lengths(folder, provider))
    index_ranges: dict[str, IndexRange] = {}

    def open_row(graph: Graph) -> Runner:
        try:
            runner = open_graph(content.graphs[graph.file], fixed=graph.steps is not None)
            metadata = _read_metadata(runner, folder / graph.file)
        except LoadError as error:
            raise BundleError(str(error)) from error
        _compare(manifest, graph, runner, folder)
        for name, limits in metadata.index_ranges.items():
            index_ranges[name] = limits.within(index_ranges.get(name, limits))
        return runner

    graphs = Graphs.of_bundle(right_graphs, open_row)
    signature = Signature.of_manifest(manifest, index_ranges)
    return OpenedModel(
        manifest.name,
        signature.client_inputs,
        signature.client_outputs,
        signature,
        graphs,
        manifest.precisions[0],
        cores,
    )


def _is_right(graph: Graph, manifest: Manifest, provider: str) -> bool:
    """Whether the provider reads the lengths of a graph."""
    if provider_named(provider).reads_lengths:
        return True
    return not reads_sequence_lens(graph.form, graph.row_ends, manifest.lengths)


def _wrong_lengths(path: Path, provider: str) -> str:
    return (
        f"{provider} ignores the lengths of form 'native', and {str(path)!r} has no other graph; export it with "
        "row_ends='held', or in another form."
    )


def _compare(manifest: Manifest, graph: Graph, runner: Runner, folder: Path) -> None:
    """Raises: BundleError: a graph has other inputs or outputs than the manifest says."""
    file = str(folder / graph.file)
    inputs, outputs = runner.specs()
    for tensor, spec in _pairs("inputs", file, manifest.inputs, inputs):
        # The sizes that may vary are those of the manifest; the steps of a bucket are its own.
        sizes_agree = _steps_agree(tensor, spec, graph.steps)
        if graph.steps is None:
            sizes_agree = not any(map(_is_fixed_only_in_graph, tensor.shape, spec.shape))
        if not sizes_agree or not _agree(tensor, spec):
            steps = "" if graph.steps is None else f", with {graph.steps} steps"
            raise BundleError(f"{file!r} has `{spec}`, where the manifest says `{tensor}`{steps}.")
    for tensor, spec in _pairs("outputs", file, manifest.outputs, outputs):
        if not _agree(tensor, spec):
            raise BundleError(f"{file!r} has `{spec}`, where the manifest says `{tensor}`.")


def _pairs(
    what: str, file: str, tensors: Iterable[Tensor], specs: Specs
) -> list[tuple[Tensor, TensorSpec]]:
    """Each tensor of the manifest, and that of the graph with its name. Raises: BundleError: the names differ."""
    promised = {tensor.name: tensor for tensor in tensors}
    actual = {spec.name: spec for spec in specs}
    if promised.keys() != actual.keys():
        names = ", ".join(actual)[:200]
        raise BundleError(f"{file!r} has other {what} than the manifest says: {names}.")
    return [(tensor, actual[name]) for name, tensor in promised.items()]


def _agree(tensor: Tensor, spec: TensorSpec) -> bool:
    """Whether dtypes, axes and what is a number in both are the same: onnxruntime computes some sizes of outputs."""
    if tensor.dtype != spec.dtype or len(tensor.shape) != len(spec.shape):
        return False
    sizes = zip(tensor.shape, spec.shape, strict=True)
    return all(
        promised == actual
        for promised, actual in sizes
        if isinstance(promised, int) and isinstance(actual, int)
    )


def _is_fixed_only_in_graph(promised: int | str, actual: int | str) -> bool:
    return isinstance(promised, str) and isinstance(actual, int)


def _steps_agree(tensor: Tensor, spec: TensorSpec, steps: int | None) -> bool:
    """Whether an input of a bucket has its steps."""
    if steps is None or tensor.time is None or tensor.time >= len(spec.shape):
        return True
    return spec.shape[tensor.time] == steps


def _open_file(
    path: Path,
    open_graph: Callable[..., Runner],
    cores: int,
    provider: str,
    precision: str | None,
) -> OpenedModel:
    runner = open_graph(read_model(path))
    inputs, outputs = runner.specs()
    metadata = _read_metadata(runner, path)
    if metadata.reads_sequence_lens and not provider_named(provider).reads_lengths:
        raise LoadError(_wrong_lengths(path, provider))
    opened_precision = file_precision(path, metadata.precision, outputs, precision)
    signature = Signature.of_file(inputs, outputs, metadata)
    graphs = Graphs.single(runner, metadata.ranges)
    return OpenedModel(path.stem, inputs, outputs, signature, graphs, opened_precision, cores)


def _read_metadata(runner: Runner, path: Path) -> FileMetadata:
    try:
        return FileMetadata.of(runner.metadata())
    except (ValueError, TypeError):
        raise LoadError(
            f"{str(path)!r} has metadata of deploy-rnn that is not a JSON object; export it again."
        ) from None
