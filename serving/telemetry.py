"""`Telemetry`: where the traces of a server go, as `--otlp-endpoint` and OpenTelemetry's own variables say."""

import asyncio
import contextlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from deploy_rnn import __version__
from deploy_rnn.console import UsageError

from .protocol.tracing import Tracing

NAME = "deploy-rnn"

CLOSE_SECONDS = 5.0
"""Time for the last spans to be sent when the server has stopped."""

OTLP_EXPORTERS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""Protocol of OTLP -> its exporter's name among the entry points."""

TRACES_PATH = "/v1/traces"
"""Where spans go below an endpoint of OTLP over HTTP."""


class Telemetry:
    """A provider of traces, from the environment.

    The variables are those of OpenTelemetry's specification: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
    OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_PROTOCOL, _HEADERS, _TIMEOUT, OTEL_BSP_..., and so on.

    Args:
        endpoint: of OTLP; takes the place of OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_ENDPOINT.

    Attributes:
        tracing: for the server.

    Raises:
        UsageError: the endpoint or a variable is not valid.
    """

    def __init__(self, environ: Mapping[str, str], endpoint: str | None = None) -> None:
        self._provider = TracerProvider(resource=_resource())
        for exporter in _exporters(environ, endpoint):
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracing = Tracing(self._provider)

    async def close(self) -> None:
        """Send what was not sent yet, if that can be done soon."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(self._provider.shutdown), CLOSE_SECONDS)


def _resource() -> Resource:
    """What the environment says of this process, and a name if it has none."""
    resource = Resource.create()
    name = resource.attributes.get(SERVICE_NAME, "")
    ours = {SERVICE_VERSION: __version__}
    if str(name).startswith("unknown_service"):  # the SDK's own
        ours[SERVICE_NAME] = NAME
    return resource.merge(Resource(ours))


def _exporters(environ: Mapping[str, str], endpoint: str | None) -> list[SpanExporter]:
    if endpoint is not None:
        return [_otlp_exporter(environ, endpoint)]
    names = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    return [_exporter(environ, name.strip()) for name in names.split(",")]


def _otlp_exporter(environ: Mapping[str, str], endpoint: str) -> SpanExporter:
    if not endpoint.startswith(("http://", "https://")):
        raise UsageError(
            f"`--otlp-endpoint` (={endpoint!r}) must begin with http:// or https://, such as "
            "http://localhost:4318."
        )
    name = _otlp_name(environ)
    if name == OTLP_EXPORTERS["http/protobuf"]:
        # Some give the whole address.
        endpoint = endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH
    exporter: SpanExporter = _load(name)(endpoint=endpoint)
    return exporter


def _exporter(environ: Mapping[str, str], name: str) -> SpanExporter:
    exporter: SpanExporter = _load(_otlp_name(environ) if name == "otlp" else name)()
    return exporter


def _otlp_name(environ: Mapping[str, str]) -> str:
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    for variable in variables:
        protocol = environ.get(variable, "").strip()
        if protocol and protocol not in OTLP_EXPORTERS:
            raise UsageError(f"{variable} (={protocol!r}) must be http/protobuf or grpc.")
        if protocol:
            return OTLP_EXPORTERS[protocol]
    return OTLP_EXPORTERS["http/protobuf"]


def _load(name: str) -> Any:
    """The class of an exporter that an installed package brings."""
    for entry_point in entry_points(group="opentelemetry_traces_exporter", name=name):
        return entry_point.load()
    raise UsageError(
        f"OTEL_TRACES_EXPORTER (={name!r}) is not installed; must be otlp, console or none, or what another package "
        "brings."
    )
