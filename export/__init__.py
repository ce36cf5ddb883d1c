"""Export PyTorch models with recurrent layers to verified ONNX files."""

from typing import TYPE_CHECKING

from deploy_rnn.bundle import Manifest
from deploy_rnn.errors import DynamicAxisError, ExportError, VerificationError
from deploy_rnn.lazy import lazy_names

if TYPE_CHECKING:
    from .bundle import export_bundle
    from .exporter import export_onnx
    from .precision.metric import ErrorMetric
    from .triton.repository import write_triton_model
    from .verification.html import reports_html
    from .verification.report import Report
    from .verification.verify import verify
    from .verification.verify_bundle import verify_bundle

__all__ = [
    "DynamicAxisError", "ErrorMetric", "ExportError", "Manifest", "Report", "VerificationError", "export_bundle",
    "export_onnx", "reports_html", "verify", "verify_bundle", "write_triton_model",
]  # fmt: skip

HOMES = {
    "export_bundle": "bundle",
    "export_onnx": "exporter",
    "verify": "verification.verify",
    "verify_bundle": "verification.verify_bundle",
    "write_triton_model": "triton.repository",
    "ErrorMetric": "precision.metric",
    "Report": "verification.report",
    "reports_html": "verification.html",
}

__getattr__ = lazy_names(__name__, HOMES, "export,onnxruntime")


def __dir__() -> list[str]:
    return sorted(__all__)
