"""`open_model`: open the graphs of a bundle, or a lone .onnx file."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy_rnn.bundle import Graph, Manifest
from deploy_rnn.errors import BundleError, LoadError
from deploy_rnn.metadata import FileMetadata
from deploy_rnn.runtime import Specs, check_threads

from .graphs import Graphs
from .providers import open_runner
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
    """

    name: str
    inputs: Specs
    outputs: Specs
    signature: Signature
    graphs: Graphs


def open_model(path: Path, provider: str, threads: int | None) -> OpenedModel:
    """Open a model, without running it; arguments and errors are those of `Engine`."""
    check_threads(threads)
    open_graph = partial(open_runner, provider=provider, threads=threads)
    if path.is_dir():
        return _open_bundle(path, open_graph)
    if path.is_file():
        return _open_file(path, open_graph)
    raise FileNotFoundError(f"`path` (={str(path)!r}) is not a file, nor the folder of a bundle.")


def _open_bundle(folder: Path, open_graph: Callable[..., Runner]) -> OpenedModel:
    manifest = Manifest.read(folder)
    manifest.check(folder)
    precisions = {graph.precision for graph in manifest.graphs}
    if len(precisions) > 1:
        # The fastest graph would win, and its numbers are not those of the others.
        names = " and ".join(sorted(precisions))
        raise BundleError(
            f"{str(folder)!r} has graphs in {names}; all graphs of a bundle must be in one precision."
        )
    signature = Signature.of_manifest(manifest)

    def open_row(graph: Graph) -> Runner:
        return open_graph(folder / graph.file, fixed=graph.steps is not None)

    graphs = Graphs.of_bundle(manifest.graphs, open_row)
    return OpenedModel(
        manifest.name, signature.client_inputs, signature.client_outputs, signature, graphs
    )


def _open_file(path: Path, open_graph: Callable[..., Runner]) -> OpenedModel:
    runner = open_graph(path)
    inputs, outputs = runner.specs()
    metadata = _read_metadata(runner, path)
    signature = Signature.of_file(inputs, outputs, metadata)
    graphs = Graphs.single(runner, metadata.ranges)
    return OpenedModel(path.stem, inputs, outputs, signature, graphs)


def _read_metadata(runner: Runner, path: Path) -> FileMetadata:
    try:
        return FileMetadata.of(runner.metadata())
    except (ValueError, TypeError):
        raise LoadError(
            f"{str(path)!r} has metadata of deploy-rnn that is not a JSON object; export it again."
        ) from None
