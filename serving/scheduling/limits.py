"""`Limits`: how much a model takes on at once."""

from dataclasses import dataclass

from deploy_rnn.number_fields import check_numbers


@dataclass(frozen=True)
class Limits:
    """The limits of one model; benchmarks/serving/batching.py measures what those of a batch bring and cost.

    Attributes:
        max_rows: rows of one run; a request of more runs in pieces, one that must not be split is refused.
        max_queue: requests that wait; one more is refused.
        max_queue_bytes: bytes of the inputs of those that wait; a request that would exceed it is refused, unless it is
            the only one.
        max_wait: seconds that a run is put off for more rows. With 0 it starts as soon as a core is free, with what has
            come in meanwhile.
        max_waste: share of a run's steps that may be padding.
        max_steps: steps of one request, and of chunks of a stream that are run as one.
        max_row_steps: rows times steps of one run, since memory and time grow with them and a run cannot be stopped; a
            request of which a run would have more is refused. 131,072 of them take about 200 MB in a bidirectional LSTM
            of 32 units.
        max_output_bytes: bytes of the outputs of one request.
        max_streams: streams that are held at once.
        stream_idle: seconds without a chunk after which a stream is dropped.
        stream_keep: seconds for which a stream is safe from being dropped for a new one when the table is full.
        refuse_restart: whether a start is refused while the stream of that name is live; otherwise it begins anew.
        max_replaced: models of one name that were replaced, and are kept until their streams end; the streams of older
            ones are ended.

    Raises:
        ValueError: an integer that is below 1 or not whole, another number below 0, or a share of 1 or more.
    """

    max_rows: int = 32
    max_queue: int = 1024
    max_queue_bytes: int = 2**30
    max_wait: float = 0.0
    max_waste: float = 0.15
    max_steps: int = 100_000
    max_row_steps: int = 131_072
    max_output_bytes: int = 256 * 2**20
    max_streams: int = 4096
    stream_idle: float = 300.0
    stream_keep: float = 10.0
    refuse_restart: bool = False
    max_replaced: int = 2

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.max_waste >= 1:
            raise ValueError(f"`max_waste` (={self.max_waste!r}) must be below 1: it is a share.")


def lower(limit: int, other: int | None) -> int:
    """Return the lower of two limits; None is none."""
    return limit if other is None else min(limit, other)
