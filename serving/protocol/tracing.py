"""`Tracing`: a span of OpenTelemetry for each request, and in it one for its wait and one for its run.

The only module that knows OpenTelemetry's API; it is loaded when a server traces, and by nobody else.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider

from deploy_rnn import __version__

from ..repository import Repository
from ..scheduling.request import Response
from ..scheduling.statistics import reason_of
from ..settings import Settings
from .inference import Inference, InferRequest, Submitted

MAX_CHARACTERS = 200
"""Of a value that a client has chosen."""

IN_THE_RUN = ("bad_input", "run_error")
"""Reasons of a failure that a request has met in its run; all others keep it from having one."""

Attributes = Mapping[str, str | int]


class RequestSpan:
    """The span of a request, while it is handled."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def end_with(self, attributes: Attributes, failure: str = "") -> None:
        """Note what came of the request.

        Args:
            failure: the `error.type` of a fault of the server; "" for none, also if the client is at fault.
        """
        self._span.set_attributes(dict(attributes))
        if failure:
            self._span.set_attribute("error.type", failure)
            self._span.set_status(StatusCode.ERROR)


class Tracing:
    """Traces the requests of a server.

    The span of a client that sends a W3C `traceparent` (or what OTEL_PROPAGATORS names) is the parent of its request's
    span, and the sampler of `provider` decides as that says, unless it is told otherwise.

    Args:
        provider: an `opentelemetry.trace.TracerProvider`, which samples the spans and sends them somewhere.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("deploy_rnn.serving", __version__)

    def inference(self, repository: Repository, settings: Settings) -> Inference:
        """Make an `Inference` whose requests have their spans."""
        return TracedInference(repository, settings, self)

    @contextmanager
    def request(
        self, name: str, headers: Mapping[str, Sequence[str]], attributes: Attributes
    ) -> Iterator[RequestSpan]:
        """The span of a request, current as long as the context is entered.

        Args:
            headers: of HTTP, or the metadata of gRPC; names are in lower case.
        """
        parent = propagate.extract(headers)
        with self._tracer.start_as_current_span(
            name,
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield RequestSpan(span)

    def follow(self, model: str, submitted: Submitted) -> None:
        """Have the current span note the model of a request, and record its wait and its run when it has ended."""
        parent = trace.get_current_span()
        if not parent.is_recording():
            return
        attributes = _attributes(model, submitted.infer_request)
        parent.set_attribute("deploy_rnn.model", model)
        context = trace.set_span_in_context(parent)
        record = self._recorder(context, attributes, time.time_ns())
        # Called before those who wait for the answer are, so that the spans end before their parent.
        submitted.future.add_done_callback(record)

    def _recorder(
        self, context: Context, attributes: Attributes, accepted: int
    ) -> "Callable[[Future[Response]], None]":
        """
        Args:
            accepted: nanoseconds since the epoch.
        """

        def record(future: "Future[Response]") -> None:
            now = time.time_ns()
            try:
                response = future.result()
            except (Exception, CancelledError) as error:
                reason = reason_of(error)
                name = "run" if reason in IN_THE_RUN else "queue"
                span = self._start(name, context, attributes, accepted)
                span.set_attribute("error.type", reason)
                span.set_status(StatusCode.ERROR)
                span.end(now)
                return
            ran_from = now - _nanoseconds(response.computed)
            waited_from = ran_from - _nanoseconds(response.queued)
            self._start("queue", context, attributes, waited_from).end(ran_from)
            span = self._start("run", context, attributes, ran_from)
            span.set_attribute("deploy_rnn.run.rows", response.rows)
            span.end(now)

        return record

    def _start(self, name: str, context: Context, attributes: Attributes, start: int) -> Span:
        return self._tracer.start_span(name, context, attributes=attributes, start_time=start)


class TracedInference(Inference):
    """An `Inference` that `tracing` follows."""

    def __init__(self, repository: Repository, settings: Settings, tracing: Tracing) -> None:
        super().__init__(repository, settings)
        self.tracing: Tracing = tracing

    async def submit(
        self,
        name: str,
        version: str,
        size: int,
        decode: Callable[[], InferRequest],
        stream_headers: Sequence[str] = (),
    ) -> Submitted:
        submitted = await super().submit(name, version, size, decode, stream_headers)
        self.tracing.follow(name, submitted)
        return submitted


def _attributes(model: str, infer_request: InferRequest) -> Attributes:
    attributes: dict[str, str | int] = {"deploy_rnn.model": model}
    if infer_request.id:
        attributes["deploy_rnn.request.id"] = infer_request.id[:MAX_CHARACTERS]
    sequence = infer_request.request.sequence
    if sequence is not None:
        attributes["deploy_rnn.sequence.id"] = str(sequence)[:MAX_CHARACTERS]
    return attributes


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
