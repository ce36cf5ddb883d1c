"""`Job`: a request that waits for its run."""

from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..engine.feeds import Feeds
from .request import Response
from .streams import Stream


@dataclass(eq=False)
class Job:
    """
    Attributes:
        feeds: its inputs, checked.
        outputs: the names wanted.
        joins: whether another chunk of its stream may follow in the same run.
        arrived: when it came.
        deadline: the time, by the clock of the model, after which nobody waits for the answer; None for never.
        stream: that it is a chunk of.
        future: of its answer.
        claimed: whether it may be run; None before that was asked.
    """

    feeds: Feeds
    outputs: Sequence[str]
    joins: bool
    arrived: float
    deadline: float | None
    stream: Stream | None = None
    future: "Future[Response]" = field(default_factory=Future)
    claimed: bool | None = None

    @property
    def rows(self) -> int:
        return self.feeds.rows

    @property
    def steps(self) -> int:
        return self.feeds.steps or 1

    @property
    def key(self) -> Hashable:
        """Requests that differ in an axis other than rows and steps cannot share a run."""
        return self.feeds.others

    def claim(self) -> bool:
        """Whether it may be run, and not cancelled any more; if it was cancelled, those who wait for it are told."""
        if self.claimed is None:
            self.claimed = self.future.set_running_or_notify_cancel()
        return self.claimed


StreamSegment = Sequence[Job]
"""Chunks of one stream that run as one; or a single request."""
