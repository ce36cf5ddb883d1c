"""The protocol over gRPC, for `grpc.aio`; a method that is not here answers UNIMPLEMENTED, as gRPC does by itself."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from typing import Any, NoReturn

import grpc
from google.protobuf.json_format import ParseDict

from deploy_rnn.errors import UnknownModelError, UnsupportedError

from ..protocol import oip
from ..protocol.status import status
from ..repository import Repository
from ..scheduling.request import Response
from ..settings import Settings
from ..token import REFUSAL, is_authorized
from .messages import CLASSES, SERVICE
from .streaming_calls import StreamingCalls
from .tensors import read, write

logger = logging.getLogger(__name__)

# Decoding this many bytes takes about 2 ms if they are typed contents; see rest.READ_IN_A_THREAD.
READ_IN_A_THREAD = 128 * 1024

OPEN = ("ServerLive", "ServerReady")
"""What needs no token: an orchestrator asks it."""

Context = Any
"""A grpc.aio.ServicerContext."""


class Service:
    """Answers every method of `inference.GRPCInferenceService` that is done."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository, self._settings = repository, settings
        self._streams = StreamingCalls(self._begin, self._stream_answer)

    def handler(self) -> Any:
        """For `grpc.aio.Server.add_generic_rpc_handlers`."""
        unary = {
            "ServerLive": self._live, "ServerReady": self._ready, "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata, "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config, "ModelStatistics": self._model_statistics, "ModelInfer": self._infer,
            "RepositoryIndex": self._index, "RepositoryModelLoad": self._load, "RepositoryModelUnload": self._unload,
        }  # fmt: skip
        methods = {name: self._unary(name, function) for name, function in unary.items()}
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=CLASSES["ModelInferRequest"].FromString,
            response_serializer=CLASSES["ModelStreamInferResponse"].SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def drain(self) -> None:
        """Read no more from streaming calls; what they have sent is answered, then they end."""
        self._streams.drain()

    def _unary(self, name: str, function: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        async def handle(message: Any, context: Context) -> Any:
            try:
                if name not in OPEN:
                    await self._authorize(context)
                return await function(message, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await _abort(context, error)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=CLASSES[f"{name}Request"].FromString,
            response_serializer=CLASSES[f"{name}Response"].SerializeToString,
        )

    async def _authorize(self, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        if not is_authorized(metadata.get("authorization"), self._settings.token):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, REFUSAL)

    async def _live(self, message: Any, context: Context) -> Any:
        return CLASSES["ServerLiveResponse"](live=True)

    async def _ready(self, message: Any, context: Context) -> Any:
        return CLASSES["ServerReadyResponse"](ready=self._repository.ready())

    async def _model_ready(self, message: Any, context: Context) -> Any:
        try:
            self._repository.model(message.name, message.version)
        except UnknownModelError:  # Triton says so here, where HTTP has a status code for it
            return CLASSES["ModelReadyResponse"](ready=False)
        return CLASSES["ModelReadyResponse"](ready=self._repository.ready())

    async def _server_metadata(self, message: Any, context: Context) -> Any:
        return CLASSES["ServerMetadataResponse"](**oip.server_metadata())

    async def _model_metadata(self, message: Any, context: Context) -> Any:
        model = self._repository.model(message.name, message.version)
        return CLASSES["ModelMetadataResponse"](**oip.model_metadata(model))

    async def _model_config(self, message: Any, context: Context) -> Any:
        model = self._repository.model(message.name, message.version)
        return ParseDict({"config": oip.model_config(model, self._repository.limits)}, CLASSES["ModelConfigResponse"]())

    async def _model_statistics(self, message: Any, context: Context) -> Any:
        one = [self._repository.model(message.name, message.version)] if message.name else None
        found = [oip.model_statistics(model) for model in one or self._repository.models()]
        return CLASSES["ModelStatisticsResponse"](model_stats=found)

    async def _index(self, message: Any, context: Context) -> Any:
        found = await asyncio.to_thread(self._repository.index, ready=message.ready)
        return CLASSES["RepositoryIndexResponse"](models=found)

    async def _load(self, message: Any, context: Context) -> Any:
        if message.parameters:
            raise UnsupportedError("a model is loaded as its bundle is; `parameters` of a load are not done.")
        await asyncio.to_thread(self._repository.load, message.model_name)
        return CLASSES["RepositoryModelLoadResponse"]()

    async def _unload(self, message: Any, context: Context) -> Any:
        await asyncio.to_thread(self._repository.unload, message.model_name)
        return CLASSES["RepositoryModelUnloadResponse"]()

    async def _infer(self, message: Any, context: Context) -> Any:
        future = await self._begin(message, context.time_remaining())
        return await self._finish(message, future)

    async def _begin(self, message: Any, seconds: float | None) -> "Future[Response]":
        """Hand a ModelInferRequest to its model; `seconds`: how long the client waits, None for ever."""
        self._repository.model(message.model_name, message.model_version)
        wait = self._settings.request_seconds if seconds is None else seconds
        if message.ByteSize() > READ_IN_A_THREAD:
            request = await asyncio.to_thread(read, message, wait, self._settings)
        else:
            request = read(message, wait, self._settings)
        return self._repository.submit(message.model_name, message.model_version, request)

    async def _finish(self, message: Any, future: "Future[Response]") -> Any:
        async with asyncio.timeout(self._settings.request_seconds):
            return write(message, await asyncio.wrap_future(future))

    async def _stream(self, messages: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        await self._authorize(context)
        async for answer in self._streams.answers(messages):
            yield answer
        if self._streams.draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping; everything sent was answered.")

    async def _stream_answer(self, message: Any, begun: "Future[Response] | Exception") -> Any:
        """A ModelStreamInferResponse: an error travels in the stream, which goes on."""
        try:
            if isinstance(begun, Exception):
                raise begun
            answer = await self._finish(message, begun)
            answer.parameters["triton_final_response"].bool_param = True
            return CLASSES["ModelStreamInferResponse"](infer_response=answer)
        except Exception as error:
            found = CLASSES["ModelStreamInferResponse"](error_message=_known(error).message)
            found.infer_response.id = message.id
            return found


def _known(error: Exception) -> Any:
    found = status(error)
    if found.grpc == "INTERNAL":
        logger.error("a request failed", exc_info=error)
    return found


async def _abort(context: Context, error: Exception) -> NoReturn:
    found = _known(error)
    await context.abort(grpc.StatusCode[found.grpc], found.message)
    raise AssertionError("abort raises")
