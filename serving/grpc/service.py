"""The protocol over gRPC, for `grpc.aio`; any method that is not here is answered with UNIMPLEMENTED."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, NoReturn

import grpc
from google.protobuf.json_format import ParseDict

from deploy_rnn.errors import (
    BusyError,
    ClosedError,
    InputError,
    TooLargeError,
    UnknownModelError,
    UnsupportedError,
)

from ..protocol import oip
from ..protocol.access_log import Access, AccessLog, current_access
from ..protocol.inference import Deadline, Inference, InferRequest, Submitted, in_thread_if_large
from ..protocol.status import Status, status
from .calls import STOPPING, Calls
from .details import details
from .disconnecting import disconnect
from .messages import CLASSES, parse
from .naming import address, code_name
from .streaming_calls import Accepted, StreamingCalls
from .tensors import Reader, parse_request, write
from .tracing import traced

logger = logging.getLogger(__name__)

UNSUPPORTED_METHODS = (
    "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "TraceSetting", "LogSettings",
)  # fmt: skip
"""Those of Triton's extensions that this server lacks: their clients are told so."""

METHODS = (
    "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics",
    "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelInfer", "ModelStreamInfer",
    *UNSUPPORTED_METHODS,
)  # fmt: skip
"""Those that `Service.handlers` has."""

STREAMING_METHODS = ("ModelStreamInfer",)
"""Those whose calls have any number of messages and answers; all others have one of each."""

Context = Any
"""A grpc.aio.ServicerContext."""

Handler = Callable[[Any, Context], Awaitable[Any]]
"""What gRPC calls with the messages of a call, and its context."""


current_stream_headers: ContextVar[tuple[str, ...]] = ContextVar("stream_headers", default=())
"""Of the call that is being handled, every metadata entry that names a stream."""


class Service:
    """The methods of `inference.GRPCInferenceService`, on one event loop.

    gRPC hands over every message as bytes, once it is asked for it: nothing of a call is read before its client is
    known, and nothing is parsed before its size is.
    """

    def __init__(self, inference: Inference, access_log: AccessLog | None = None) -> None:
        self._inference = inference
        self._access_log = access_log
        self._settings = inference.settings
        self._reader = Reader(self._settings)
        self._calls = Calls(
            self._settings.max_connections,
            self._settings.unread_seconds,
            self._settings.max_unread_bytes,
            disconnect,
        )
        self._streaming_calls = StreamingCalls(
            self._submit_in_stream, self._answer_in_stream, self._settings.max_bytes
        )

    def handlers(self) -> dict[str, Any]:
        """Method -> its handler, for `grpc.aio.Server.add_registered_method_handlers`."""
        health = {"ServerLive": self._server_live, "ServerReady": self._server_ready}
        unary = {
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_model_load,
            "RepositoryModelUnload": self._repository_model_unload,
        }
        calls = {name: self._health_call(answer) for name, answer in health.items()}
        for name, function in unary.items():
            calls[name] = self._call(self._unary_call(name, function))
        calls["ModelInfer"] = self._call(self._model_infer)
        for name in UNSUPPORTED_METHODS:
            calls[name] = self._call(_not_implemented)
        tracing = self._inference.tracing
        methods = {}
        for name, call in calls.items():
            methods[name] = _unary(self._logged(name, traced(name, call, tracing)))
        streaming_call = self._call(self._model_stream_infer)
        streaming_call = traced("ModelStreamInfer", streaming_call, tracing)
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._logged("ModelStreamInfer/end", streaming_call)
        )
        return methods

    def drain(self) -> None:
        """Refuse new calls, and read no more from streaming ones; what they have sent is answered, then they end."""
        self._calls.draining = True
        self._streaming_calls.drain()

    async def drained(self, seconds: float) -> None:
        """Wait until the last call has ended. Those that take more than `seconds` are told that the server stops."""
        await self._calls.wait(seconds)

    def hold(self) -> None:
        """Refuse new calls only once `release` is called."""
        self._calls.hold()

    async def quiet(self, seconds: float, most: float) -> None:
        """Wait until no call has arrived for `seconds`; for at most `most` in all."""
        await self._calls.quiet(seconds, most)

    def release(self) -> None:
        self._calls.release()

    def _health_call(self, answer: Callable[[], Any]) -> Handler:
        """Health is for orchestrators, which have no token: it needs no place, and reads nothing."""

        async def handle(messages: object, context: Context) -> bytes:
            return _serialized(answer())

        return handle

    def _call(self, handle: Callable[[Context], Awaitable[bytes]]) -> Handler:
        """All that comes before and after a call is handled."""

        async def handle_call(messages: object, context: Context) -> bytes:
            try:
                self._authorize(context)
                await self._calls.released()
                self._calls.enter(context.peer())
                if self._settings.stream_header is not None:
                    current_stream_headers.set(self._stream_headers(context))
                answer = await handle(context)
                self._calls.sending(len(answer))
                return answer
            except grpc.aio.BaseError:
                raise  # of the call itself, which has ended
            except Exception as error:
                self._calls.sending(0)
                await _abort(context, error)
            except asyncio.CancelledError:
                if not self._calls.cut_short:
                    raise
                await _abort(context, ClosedError(STOPPING))

        return handle_call

    def _logged(self, name: str, handle: Handler) -> Handler:
        """The same call, which has its line in the log when it ends."""
        log = self._access_log
        if log is None:
            return handle

        async def handle_logged(messages: object, context: Context) -> bytes:
            access = Access("grpc", address(context.peer()), name)
            current_access.set(access)
            try:
                answer: bytes = await handle(messages, context)
                access.status = "OK"
                access.size += len(answer)
                return answer
            finally:
                access.status = access.status or code_name(context.code())
                log.add(access)

        return handle_logged

    def _unary_call(
        self, name: str, function: Callable[[Any], Awaitable[Any]]
    ) -> Callable[[Context], Awaitable[bytes]]:
        async def handle(context: Context) -> bytes:
            data = await self._only_message(context)
            max_bytes = self._settings.max_json_bytes
            if len(data) > max_bytes:
                raise TooLargeError(
                    f"the message has {len(data)} bytes; the limit for a {name}Request is {max_bytes}."
                )
            message = parse(f"{name}Request", data)
            _note_model(getattr(message, "model_name", "") or getattr(message, "name", ""))
            return _serialized(await function(message))

        return handle

    async def _only_message(self, context: Context) -> bytes:
        """The message of a unary call."""
        async with Deadline(self._settings.body_seconds, "the message took"):
            data: bytes = await context.read()
        if data is grpc.aio.EOF:
            raise InputError("the call has no message; it must have one.")
        return data

    def _authorize(self, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self._inference.authorize(metadata.get("authorization"))

    def _stream_headers(self, context: Context) -> tuple[str, ...]:
        wanted = self._settings.stream_header
        if wanted is None:
            return ()
        entries = context.invocation_metadata() or ()
        return tuple(value for key, value in entries if key == wanted)

    def _server_live(self) -> Any:
        return CLASSES["ServerLiveResponse"](live=True)

    def _server_ready(self) -> Any:
        return CLASSES["ServerReadyResponse"](ready=self._inference.ready())

    async def _server_metadata(self, message: Any) -> Any:
        return CLASSES["ServerMetadataResponse"](**oip.server_metadata())

    async def _model_ready(self, message: Any) -> Any:
        try:
            ready = self._inference.model_ready(message.name, message.version)
        except (UnknownModelError, BusyError):
            # Over gRPC, Triton answers false where it answers 404 or 503 over HTTP.
            ready = False
        return CLASSES["ModelReadyResponse"](ready=ready)

    async def _model_metadata(self, message: Any) -> Any:
        metadata = self._inference.model_metadata(message.name, message.version)
        return CLASSES["ModelMetadataResponse"](**metadata)

    async def _model_config(self, message: Any) -> Any:
        config = self._inference.model_config(message.name, message.version)
        # Its enumerations are names, which a constructor does not take.
        return ParseDict({"config": config}, CLASSES["ModelConfigResponse"]())

    async def _model_statistics(self, message: Any) -> Any:
        statistics = self._inference.model_statistics(message.name, message.version)
        return CLASSES["ModelStatisticsResponse"](model_stats=statistics)

    async def _repository_index(self, message: Any) -> Any:
        return CLASSES["RepositoryIndexResponse"](
            models=await self._inference.index(ready=message.ready)
        )

    async def _repository_model_load(self, message: Any) -> Any:
        await self._inference.load(message.model_name, message.parameters)
        return CLASSES["RepositoryModelLoadResponse"]()

    async def _repository_model_unload(self, message: Any) -> Any:
        await self._inference.unload(message.model_name)
        return CLASSES["RepositoryModelUnloadResponse"]()

    async def _model_infer(self, context: Context) -> bytes:
        data = await self._only_message(context)
        size = len(data)
        message = await self._parse(data)
        del data  # of a large request, one copy is enough
        seconds = self._settings.request_seconds
        client_seconds = context.time_remaining()
        if client_seconds is not None:
            seconds = min(seconds, client_seconds)
        model = message.model_name
        submitted = await self._submit(message, size, seconds)
        del message
        return _serialized(await self._response(model, submitted))

    async def _model_stream_infer(self, context: Context) -> bytes:
        idle_seconds = self._inference.stream_idle_seconds()

        async def read_next() -> bytes | None:
            async with Deadline(idle_seconds, "the call has sent nothing for"):
                data = await context.read()
            return None if data is grpc.aio.EOF else data

        async def send(answer: Any) -> None:
            data = _serialized(answer)
            access = current_access.get()
            if access is not None:
                access.size += len(data)
            seconds = self._calls.seconds_to_read(len(data))
            self._calls.sending(len(data))
            async with Deadline(seconds, "the client has read nothing for"):
                await context.write(data)
            self._calls.sent()

        await self._streaming_calls.handle(read_next, send)
        if self._streaming_calls.draining:
            raise ClosedError("the server is stopping; everything sent was answered.")
        return b""  # nothing more

    async def _parse(self, data: bytes) -> Any:
        """The ModelInferRequest in `data`."""
        return await in_thread_if_large(len(data), parse_request, data, self._settings)

    async def _submit(self, message: Any, size: int, seconds: float) -> Submitted:
        """Hand a ModelInferRequest of `size` bytes, which may take `seconds`, to its model."""

        def decode() -> InferRequest:
            return self._reader.read(message, seconds)

        model, version = message.model_name, message.model_version
        _note_model(model)
        headers = current_stream_headers.get()
        return await self._inference.submit(model, version, size, decode, headers)

    async def _response(self, model: str, submitted: Submitted) -> Any:
        """The ModelInferResponse, once it is there."""
        response = await self._inference.answer(submitted.future)
        return write(submitted.infer_request, model, response)

    async def _submit_in_stream(self, data: bytes) -> Accepted:
        request_id = model = ""
        began = time.perf_counter()
        # A deadline of the call is for the stream as a whole, not for each request in it.
        seconds = self._settings.request_seconds
        try:
            message = await self._parse(data)
            request_id, model = message.id, message.model_name
            submitted = await self._submit(message, len(data), seconds)
            return Accepted(request_id, model, submitted, began)
        except Exception as error:
            return Accepted(request_id, model, error, began)

    async def _answer_in_stream(self, accepted: Accepted) -> Any:
        """A ModelStreamInferResponse. An error is sent in the stream, which goes on."""
        try:
            if isinstance(accepted.outcome, Exception):
                raise accepted.outcome
            answer = await self._response(accepted.model, accepted.outcome)
        except Exception as error:
            error_status = _status(error)
            message = details(error_status.message)
            failure = CLASSES["ModelStreamInferResponse"](error_message=message)
            failure.infer_response.id = accepted.id
            self._log_in_stream(accepted, error_status.grpc, failure)
            return failure
        self._log_in_stream(accepted, "OK", answer)
        answer.parameters["triton_final_response"].bool_param = True
        return CLASSES["ModelStreamInferResponse"](infer_response=answer)

    def _log_in_stream(self, accepted: Accepted, code: str, answer: Any) -> None:
        """Each request of a streaming call has a line of its own."""
        call = current_access.get()
        if self._access_log is None or call is None:
            return
        access = Access(
            "grpc",
            call.client,
            "ModelStreamInfer",
            model=accepted.model,
            status=code,
            size=answer.ByteSize(),
            began=accepted.began,
        )
        self._access_log.add(access)


async def _not_implemented(context: Context) -> NoReturn:
    raise UnsupportedError(
        "this server has no shared memory, tracing or log settings; send tensors in the message."
    )


def _unary(handler: Handler) -> Any:
    """A method of one message and one answer. For gRPC it takes a stream of messages, which it may leave unread."""
    return grpc.stream_unary_rpc_method_handler(handler)


def _note_model(name: str) -> None:
    """Have the log say which model the current call is about."""
    access = current_access.get()
    if access is not None:
        access.model = name


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _status(error: Exception) -> Status:
    """The status of an error; what a client is not told of a fault of the server goes to the log."""
    error_status = status(error)
    if error_status.grpc == "INTERNAL":
        logger.error("a request failed", exc_info=error)
    return error_status


async def _abort(context: Context, error: Exception) -> NoReturn:
    """End a call with the status of `error`."""
    error_status = _status(error)
    await context.abort(grpc.StatusCode[error_status.grpc], details(error_status.message))
    raise AssertionError("abort raises")
