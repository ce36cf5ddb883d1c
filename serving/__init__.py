"""Serve a bundle, in the process or over the network, without torch and without onnx."""

from typing import TYPE_CHECKING

from deploy_rnn.errors import (
    BundleError,
    BusyError,
    ClosedError,
    DeadlineError,
    InputError,
    LoadError,
    ProviderError,
    RunError,
    StreamError,
)
from deploy_rnn.lazy import lazy_names

if TYPE_CHECKING:
    from .engine.engine import Engine
    from .repository import Repository
    from .rest.app import make_app
    from .scheduling.limits import Limits
    from .scheduling.model import Model
    from .scheduling.request import Request, Response
    from .scheduling.statistics import Statistics
    from .scoring.job import ScoreReport
    from .scoring.score import score
    from .server import Server
    from .settings import Settings

__all__ = [
    "BundleError",
    "BusyError",
    "ClosedError",
    "DeadlineError",
    "Engine",
    "InputError",
    "Limits",
    "LoadError",
    "Model",
    "ProviderError",
    "Repository",
    "Request",
    "Response",
    "RunError",
    "ScoreReport",
    "Server",
    "Settings",
    "Statistics",
    "StreamError",
    "make_app",
    "score",
]

# Public name -> the submodule that defines it. Those over the network need the packages of another extra.
_IN_PROCESS = {
    "Engine": "engine.engine",
    "Limits": "scheduling.limits",
    "Model": "scheduling.model",
    "Request": "scheduling.request",
    "Response": "scheduling.request",
    "ScoreReport": "scoring.job",
    "score": "scoring.score",
    "Statistics": "scheduling.statistics",
}

_OVER_THE_NETWORK = {
    "Repository": "repository",
    "Server": "server",
    "Settings": "settings",
    "make_app": "rest.app",
}

_load_in_process = lazy_names(__name__, _IN_PROCESS, "onnxruntime")
_load_over_the_network = lazy_names(__name__, _OVER_THE_NETWORK, "serving")


def __getattr__(name: str) -> object:
    return _load_over_the_network(name) if name in _OVER_THE_NETWORK else _load_in_process(name)


def __dir__() -> list[str]:
    return sorted(__all__)
