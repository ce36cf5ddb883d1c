"""A bundle answers requests, without torch and without onnx."""

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
    from .scheduling.limits import Limits
    from .scheduling.model import Model
    from .scheduling.request import Request, Response
    from .scheduling.statistics import Statistics

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
    "Request",
    "Response",
    "RunError",
    "Statistics",
    "StreamError",
]

_HOMES = {
    "Engine": "engine.engine",
    "Limits": "scheduling.limits",
    "Model": "scheduling.model",
    "Request": "scheduling.request",
    "Response": "scheduling.request",
    "Statistics": "scheduling.statistics",
}

__getattr__ = lazy_names(__name__, _HOMES, "onnxruntime")


def __dir__() -> list[str]:
    return sorted(__all__)
