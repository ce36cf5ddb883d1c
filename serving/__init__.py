"""An exported graph answers requests, without torch and without onnx."""

from typing import TYPE_CHECKING

from deploy_rnn.errors import InputError, LoadError, ProviderError
from deploy_rnn.lazy import lazy_names

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Engine", "InputError", "LoadError", "ProviderError"]

__getattr__ = lazy_names(__name__, {"Engine": "engine"}, "onnxruntime")


def __dir__() -> list[str]:
    return sorted(__all__)
