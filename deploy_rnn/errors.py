"""Every exception of deploy-rnn, as one tree:

DeployError
├── ConversionError      a module that `convert` cannot replace (also a TypeError)
├── CompilationError     a compiled model that fails, or that torch.compile cannot take (also a RuntimeError)
├── ProviderError        an onnxruntime execution provider that is missing or did not start
├── RuntimeMissingError  a runtime to check a file in that is not installed (also an ImportError)
├── LoadError            a file that is not a model, or that onnxruntime cannot open (also a ValueError)
├── TargetError          a model that the command line cannot load (also a ValueError)
├── BundleError          a folder that is not a bundle, is damaged, or is of a later release (also a ValueError)
├── InputError           a tensor that a graph does not accept: name, dtype or shape (also a ValueError)
├── RunError             a run that failed inside onnxruntime or another runtime (also a RuntimeError)
├── StreamError          a stream that is unknown, expired, evicted, or used out of order (also a ValueError)
├── BusyError            a queue or a table of streams that is full; try again later
├── DeadlineError        a request whose deadline passed before it was run
├── ClosedError          a model that is being unloaded and takes no more requests
├── UnknownModelError    a model, or a version of one, that a server does not have (also a LookupError)
├── UnauthorizedError    a request without the token that a server requires (also a PermissionError)
├── UnsupportedError     a part of a protocol that deploy-rnn does not implement
├── TooLargeError        a request that is larger than a server accepts (also a ValueError)
└── ExportError          a model that cannot be written as the requested file (also a ValueError)
    ├── DynamicAxisError     an axis that was requested as dynamic, and cannot be or did not stay so
    └── VerificationError    a file whose numbers differ from the model's; has the `report`

A constructor or forward argument that `torch.nn` refuses is refused with torch's own exception and words.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy_rnn.export import Report


class DeployError(Exception):
    """Anything that deploy-rnn itself refuses."""


class ConversionError(DeployError, TypeError):
    """A module that `convert` cannot replace."""


class CompilationError(DeployError, RuntimeError):
    """A compiled model that torch.compile cannot take, or that fails on its arguments by itself."""


class ProviderError(DeployError, RuntimeError):
    """An onnxruntime execution provider that is missing or did not start."""


class RuntimeMissingError(DeployError, ImportError):
    """A runtime to check a file in that is not installed."""


class LoadError(DeployError, ValueError):
    """A file that is not a model, or that onnxruntime cannot open."""


class TargetError(DeployError, ValueError):
    """A model that the command line cannot load, or that lacks an example."""


class BundleError(DeployError, ValueError):
    """A folder that is not a bundle, is damaged, or is of a later release."""


class InputError(DeployError, ValueError):
    """A tensor that a graph does not accept."""


class RunError(DeployError, RuntimeError):
    """A run that failed inside onnxruntime or another runtime."""


class StreamError(DeployError, ValueError):
    """A stream that is unknown, expired, evicted, or used out of order."""


class BusyError(DeployError, RuntimeError):
    """A queue or a table of streams that is full."""


class DeadlineError(DeployError, TimeoutError):
    """A request whose deadline passed before it was run."""


class ClosedError(DeployError, RuntimeError):
    """A model that is being unloaded."""


class UnknownModelError(DeployError, LookupError):
    """A model, or a version of one, that a server does not have."""


class UnauthorizedError(DeployError, PermissionError):
    """A request without the token that a server requires."""


class UnsupportedError(DeployError, RuntimeError):
    """A part of a protocol that deploy-rnn does not implement."""


class TooLargeError(DeployError, ValueError):
    """A request that is larger than a server accepts."""


class ExportError(DeployError, ValueError):
    """A model that cannot be written as the requested file: ONNX, .pt2 or .pt."""


class DynamicAxisError(ExportError):
    """An axis that was requested as dynamic, and cannot be or did not stay so.

    Args:
        message: the whole message.
        reason: its first part, without what to do; for whoever knows better what to do. None if that is all of it.
        axis: the name of the axis, if the model itself takes it in no other size than the example's.
    """

    def __init__(self, message: str, reason: str | None = None, axis: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason
        self.axis = axis


class VerificationError(ExportError):
    """A file whose numbers differ from the model's.

    Attributes:
        report: every comparison that was made with an ONNX file; None for another file, and for one that could not be
            run at all.
        reports: of a bundle, the reports of all its graphs that could be run.
    """

    def __init__(
        self, message: str, report: "Report | None" = None, reports: "Sequence[Report]" = ()
    ) -> None:
        super().__init__(message)
        self.report = report
        self.reports = tuple(reports)
