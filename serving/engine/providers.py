"""`open_runner`: open a graph in the way that suits its provider; `side_by_side`: how many runs it makes at a time."""

from functools import partial

from deploy_rnn.errors import LoadError
from deploy_rnn.onnx_bytes import OnnxBytes
from deploy_rnn.runtime import open_session, provider_named, usable_cores

from .cores import Cores
from .session import Runner, Session


def open_runner(
    model: OnnxBytes, provider: str, threads: int | None, *, fixed: bool = False
) -> Runner:
    """Open a graph, in one session or several.

    Args:
        model: the graph, and its weights.
        provider: the onnxruntime execution provider.
        threads: cores that one run may use; None for all.
        fixed: whether the graph is for one number of steps, each of which is written out; its runs are then captured
            if the provider can do so.
    """
    entry = provider_named(provider)

    def open_for(threads: int | None) -> Session:
        return Session(open_session(model, provider, threads=threads, serving=True), entry.arenas)

    if fixed and entry.capture_options:
        from .cuda_graph import CudaGraph

        try:
            capturing = open_session(
                model, provider, threads=threads, serving=True, capture_runs=True
            )
        except LoadError:
            pass  # onnxruntime does not capture a graph of which the CPU runs a node
        else:
            return CudaGraph(capturing, partial(open_for, threads))
    cores = side_by_side(provider, threads)
    if cores > 1:
        return Cores(open_for, cores)
    return open_for(threads)


def side_by_side(provider: str, threads: int | None) -> int:
    """Return how many runs a model makes at a time: one for each core; one if they are not on the cores."""
    if not provider_named(provider).uses_cores:
        return 1
    return usable_cores() if threads is None else threads
