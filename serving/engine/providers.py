"""`open_runner`: the way to run a graph that suits its provider."""

from pathlib import Path

from deploy_rnn.errors import LoadError
from deploy_rnn.runtime import CPU, CUDA, open_session, usable_cores

from .cores import Cores
from .session import Runner, Session


def open_runner(path: Path, provider: str, threads: int | None, *, fixed: bool = False) -> Runner:
    """
    Args:
        threads: cores that one run may use; None for all.
        fixed: the graph is for one number of steps, with every step written out: on CUDA it is captured if it can be.
    """

    def opened(threads: int | None) -> Session:
        return Session(open_session(path, provider, threads=threads, serving=True), provider)

    if provider == CUDA and fixed:
        from .cuda_graph import CudaGraph

        try:
            return CudaGraph(open_session(path, provider, threads=threads, serving=True, cuda_graph=True))
        except LoadError:
            pass  # onnxruntime captures no graph of which the CPU runs a node
    cores = usable_cores() if threads is None else threads
    if provider == CPU and cores > 1:
        return Cores(opened, cores)
    return opened(threads)
