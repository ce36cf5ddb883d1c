"""What an error is called in HTTP and in gRPC, as Triton calls it."""

from dataclasses import dataclass

from deploy_rnn.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    DeployError,
    InputError,
    StreamError,
    TooLargeError,
    UnknownModelError,
    UnsupportedError,
)  # fmt: skip


@dataclass(frozen=True)
class Status:
    """
    Attributes:
        http: the status code.
        grpc: the name of the `grpc.StatusCode`.
        message: for the client.
    """

    http: int
    grpc: str
    message: str


# The first that fits.
_CODES: tuple[tuple[type[Exception], int, str], ...] = (
    (InputError, 400, "INVALID_ARGUMENT"),
    (StreamError, 400, "INVALID_ARGUMENT"),
    (UnknownModelError, 404, "NOT_FOUND"),
    (TooLargeError, 413, "RESOURCE_EXHAUSTED"),
    (UnsupportedError, 501, "UNIMPLEMENTED"),
    (BusyError, 503, "UNAVAILABLE"),
    (ClosedError, 503, "UNAVAILABLE"),
    (DeadlineError, 504, "DEADLINE_EXCEEDED"),
)


def status(error: Exception) -> Status:
    """An error that deploy-rnn does not raise itself has no message of its own: it may name what is none of the
    client's business."""
    for kind, http, grpc in _CODES:
        if isinstance(error, kind):
            return Status(http, grpc, str(error))
    known = isinstance(error, DeployError)
    return Status(500, "INTERNAL", str(error) if known else "the server failed; its log has the reason.")
