"""The protocol over gRPC, for `grpc.aio`; gRPC itself answers UNIMPLEMENTED to any method that is not here."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.json_format import ParseDict

from deploy_rnn.errors import BusyError, UnknownModelError

from ..protocol import oip
from ..protocol.inference import Inference, InferRequest, Submitted
from ..protocol.status import Status, status
from .messages import CLASSES, SERVICE
from .streaming_calls import StreamingCalls
from .tensors import read, write

logger = logging.getLogger(__name__)

OPEN_METHODS = ("ServerLive", "ServerReady")
"""Methods for orchestrators, which have no token."""

Context = Any
"""A grpc.aio.ServicerContext."""


class Service:
    """The methods of `inference.GRPCInferenceService`."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._settings = inference.settings
        self._streaming_calls = StreamingCalls(self._submit_in_stream, self._answer_in_stream)

    def handler(self) -> Any:
        """For `grpc.aio.Server.add_generic_rpc_handlers`."""
        unary = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "ModelInfer": self._model_infer,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_model_load,
            "RepositoryModelUnload": self._repository_model_unload,
        }
        methods = {name: self._unary_method(name, function) for name, function in unary.items()}
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._model_stream_infer,
            request_deserializer=CLASSES["ModelInferRequest"].FromString,
            response_serializer=CLASSES["ModelStreamInferResponse"].SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def drain(self) -> None:
        """Read no more from streaming calls; what they have sent is answered, then they end."""
        self._streaming_calls.drain()

    def _unary_method(self, name: str, function: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        async def handle(message: Any, context: Context) -> Any:
            try:
                if name not in OPEN_METHODS:
                    self._authorize(context)
                return await function(message, context)
            except Exception as error:
                await _abort(context, error)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=CLASSES[f"{name}Request"].FromString,
            response_serializer=CLASSES[f"{name}Response"].SerializeToString,
        )

    def _authorize(self, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self._inference.authorize(metadata.get("authorization"))

    async def _server_live(self, message: Any, context: Context) -> Any:
        return CLASSES["ServerLiveResponse"](live=True)

    async def _server_ready(self, message: Any, context: Context) -> Any:
        return CLASSES["ServerReadyResponse"](ready=self._inference.ready())

    async def _server_metadata(self, message: Any, context: Context) -> Any:
        return CLASSES["ServerMetadataResponse"](**oip.server_metadata())

    async def _model_ready(self, message: Any, context: Context) -> Any:
        try:
            ready = self._inference.model_ready(message.name, message.version)
        except (UnknownModelError, BusyError):
            # Over gRPC, Triton answers false where it answers 404 or 503 over HTTP.
            ready = False
        return CLASSES["ModelReadyResponse"](ready=ready)

    async def _model_metadata(self, message: Any, context: Context) -> Any:
        metadata = self._inference.model_metadata(message.name, message.version)
        return CLASSES["ModelMetadataResponse"](**metadata)

    async def _model_config(self, message: Any, context: Context) -> Any:
        config = self._inference.model_config(message.name, message.version)
        # Its enumerations are names, which a constructor does not take.
        return ParseDict({"config": config}, CLASSES["ModelConfigResponse"]())

    async def _model_statistics(self, message: Any, context: Context) -> Any:
        statistics = self._inference.model_statistics(message.name, message.version)
        return CLASSES["ModelStatisticsResponse"](model_stats=statistics)

    async def _repository_index(self, message: Any, context: Context) -> Any:
        return CLASSES["RepositoryIndexResponse"](
            models=await self._inference.index(ready=message.ready)
        )

    async def _repository_model_load(self, message: Any, context: Context) -> Any:
        await self._inference.load(message.model_name, message.parameters)
        return CLASSES["RepositoryModelLoadResponse"]()

    async def _repository_model_unload(self, message: Any, context: Context) -> Any:
        await self._inference.unload(message.model_name)
        return CLASSES["RepositoryModelUnloadResponse"]()

    async def _model_infer(self, message: Any, context: Context) -> Any:
        seconds = self._settings.request_seconds
        client_seconds = context.time_remaining()
        if client_seconds is not None:
            seconds = min(seconds, client_seconds)
        submitted = await self._submit(message, seconds)
        return await self._answer(message, submitted)

    async def _model_stream_infer(
        self, messages: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[Any]:
        try:
            self._authorize(context)
        except Exception as error:
            await _abort(context, error)
        async for answer in self._streaming_calls.answers(messages):
            yield answer
        if self._streaming_calls.draining:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "the server is stopping; everything sent was answered."
            )

    async def _submit(self, message: Any, seconds: float) -> Submitted:
        """Hand a ModelInferRequest, which may take `seconds`, to its model."""

        def decode() -> InferRequest:
            return read(message, seconds, self._settings)

        return await self._inference.submit(
            message.model_name, message.model_version, message.ByteSize(), decode
        )

    async def _answer(self, message: Any, submitted: Submitted) -> Any:
        """The ModelInferResponse to `message`, once it is there."""
        response = await self._inference.answer(submitted.future)
        return write(submitted.infer_request, message.model_name, response)

    async def _submit_in_stream(self, message: Any) -> Submitted:
        # A deadline of the call is for the stream as a whole, not for each request in it.
        return await self._submit(message, self._settings.request_seconds)

    async def _answer_in_stream(self, message: Any, submitted: Submitted | Exception) -> Any:
        """A ModelStreamInferResponse. An error is sent in the stream, which goes on."""
        try:
            if isinstance(submitted, Exception):
                raise submitted
            answer = await self._answer(message, submitted)
        except Exception as error:
            failure = CLASSES["ModelStreamInferResponse"](error_message=_status(error).message)
            failure.infer_response.id = message.id
            return failure
        answer.parameters["triton_final_response"].bool_param = True
        return CLASSES["ModelStreamInferResponse"](infer_response=answer)


def _status(error: Exception) -> Status:
    """The status of an error; what a client is not told of a fault of the server goes to the log."""
    error_status = status(error)
    if error_status.grpc == "INTERNAL":
        logger.error("a request failed", exc_info=error)
    return error_status


async def _abort(context: Context, error: Exception) -> NoReturn:
    """End a call with the status of `error`."""
    error_status = _status(error)
    await context.abort(grpc.StatusCode[error_status.grpc], error_status.message)
    raise AssertionError("abort raises")
