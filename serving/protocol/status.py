"""The status codes of errors in HTTP and gRPC, as Triton uses them."""

from dataclasses import dataclass

from deploy_rnn.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    DeployError,
    InputError,
    StreamError,
    TooLargeError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedError,
)  # fmt: skip

RETRY_SECONDS = 1
"""Time after which a client may try again what was refused with 503: queues are short, and loads take seconds."""


@dataclass(frozen=True)
class Status:
    """What a client is told of an error.

    Attributes:
        http: the status code.
        grpc: the name of the `grpc.StatusCode`.
        message: the text.
    """

    http: int
    grpc: str
    message: str


# The first row whose class fits counts.
_CODES: tuple[tuple[type[Exception], int, str], ...] = (
    (InputError, 400, "INVALID_ARGUMENT"),
    (StreamError, 400, "INVALID_ARGUMENT"),
    (UnauthorizedError, 401, "UNAUTHENTICATED"),
    (UnknownModelError, 404, "NOT_FOUND"),
    (TooLargeError, 413, "RESOURCE_EXHAUSTED"),
    (UnsupportedError, 501, "UNIMPLEMENTED"),
    (BusyError, 503, "UNAVAILABLE"),
    (ClosedError, 503, "UNAVAILABLE"),
    (DeadlineError, 504, "DEADLINE_EXCEEDED"),
)


def status(error: Exception) -> Status:
    """The status of any error."""
    for error_class, http, grpc in _CODES:
        if isinstance(error, error_class):
            return Status(http, grpc, _sendable(error))
    if isinstance(error, DeployError):
        return Status(500, "INTERNAL", _sendable(error))
    # The text of any other error may contain what is not meant for clients.
    return Status(500, "INTERNAL", "the server failed; its log has the reason.")


def _sendable(error: Exception) -> str:
    """The text of an error, which may have what a client wrote: half of a surrogate pair becomes such as "\\ud800"."""
    return str(error).encode("utf-8", "backslashreplace").decode("utf-8")
