"""A model becomes a verified ONNX file."""

from typing import TYPE_CHECKING

from deploy_rnn.errors import DynamicAxisError, ExportError, VerificationError
from deploy_rnn.lazy import lazy_names

if TYPE_CHECKING:
    from .exporter import export_onnx
    from .report import Report
    from .verification import verify

__all__ = ["DynamicAxisError", "ExportError", "Report", "VerificationError", "export_onnx", "verify"]

__getattr__ = lazy_names(
    __name__, {"export_onnx": "exporter", "verify": "verification", "Report": "report"}, "export,onnxruntime"
)


def __dir__() -> list[str]:
    return sorted(__all__)
