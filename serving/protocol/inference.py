"""What HTTP and gRPC do alike: authorize a client, decode and submit its request, and wait for the answer."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from deploy_rnn.errors import (
    ClosedError,
    DeadlineError,
    DeployError,
    InputError,
    TooLargeError,
    UnauthorizedError,
    UnsupportedError,
)

from ..repository import Repository
from ..scheduling.request import Request, Response
from ..scheduling.served_model import ServedModel
from ..settings import Settings
from . import oip
from .deliveries import Deliveries
from .stream_header import check_stream_header

if TYPE_CHECKING:
    from .tracing import Tracing

# Decoding this many bytes of JSON, or of typed contents, takes about 2 ms. A larger body is decoded in a thread, so
# that the event loop goes on serving other clients.
MAX_INLINE_BYTES = 128 * 1024

# Of the rows of one request, so many wait at a time: enough for full runs, and few beside the requests of others.
MAX_TOGETHER = 128

REFUSAL = "this server requires a token; send the header `Authorization: Bearer TOKEN`."

STOPPED = "the server stopped before the request was answered."

Result = TypeVar("Result")


@dataclass(frozen=True)
class InferRequest:
    """A client's request, decoded.

    Attributes:
        id: the client's name for it, sent back with the answer; "" if it has none.
        request: for the model.
        binary: over HTTP, whether outputs are sent as binary data.
        binary_outputs: over HTTP, output -> whether it is sent as binary data, where the request says so.
    """

    id: str
    request: Request
    binary: bool = False
    binary_outputs: Mapping[str, bool] = field(default_factory=dict)

    def is_binary(self, output: str) -> bool:
        """Over HTTP, whether an output is sent as binary data; without a choice of its own it follows the request."""
        return self.binary_outputs.get(output, self.binary)

    def with_inputs(self, inputs: Mapping[str, np.ndarray]) -> "InferRequest":
        """The same request with other inputs."""
        return InferRequest(
            self.id, self.request.with_inputs(inputs), self.binary, self.binary_outputs
        )


@dataclass(frozen=True)
class Submitted:
    """A request that its model has accepted, and the answer to come."""

    infer_request: InferRequest
    future: "Future[Response]"


class Inference:
    """The models of a server as clients reach them; HTTP and gRPC only translate to and from it.

    Every method that takes a model's name raises an UnknownModelError if that model is not served.

    Attributes:
        tracing: what follows the requests; None for nothing.
    """

    tracing: "Tracing | None" = None

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository = repository
        self.settings = settings
        self._deliveries: Deliveries | None = None

    def authorize(self, authorization: str | bytes | None) -> None:
        """
        Args:
            authorization: the `Authorization` header or metadata entry.

        Raises:
            UnauthorizedError: the server has a token, and this is not it.
        """
        if not self.settings.is_authorized(authorization):
            raise UnauthorizedError(REFUSAL)

    def ready(self) -> bool:
        """Whether all models are loaded, and the server is not stopping."""
        return self._repository.ready()

    def stream_idle_seconds(self) -> float:
        """How long the stream of a client may have no chunk; no connection for it is closed earlier."""
        return max(self._repository.limits.stream_idle, self.settings.idle_seconds)

    def check_model(self, name: str, version: str) -> ServedModel:
        """The model; called before any work is spent on a request for it."""
        return self._repository.model(name, version)

    def model_names(self) -> list[str]:
        """Of those that answer."""
        return [model.name for model in self._repository.models()]

    def model_ready(self, name: str, version: str) -> bool:
        self.check_model(name, version)
        return self._repository.ready()

    def model_metadata(self, name: str, version: str) -> dict[str, Any]:
        return oip.model_metadata(self._repository.model(name, version))

    def model_config(self, name: str, version: str) -> dict[str, Any]:
        return oip.model_config(self._repository.model(name, version), self._repository.limits)

    def model_statistics(self, name: str, version: str) -> list[dict[str, Any]]:
        """Of one model, or of all if `name` is empty."""
        if name:
            return [oip.model_statistics(self._repository.model(name, version))]
        return [oip.model_statistics(model) for model in self._repository.models()]

    async def submit(
        self,
        name: str,
        version: str,
        size: int,
        decode: Callable[[], InferRequest],
        stream_headers: Sequence[str] = (),
    ) -> Submitted:
        """Decode a request and hand it to its model.

        Args:
            size: bytes that `decode` has to read; many are decoded in a worker thread.
            stream_headers: every value that it has for `Settings.stream_header`.

        Raises:
            InputError, TooLargeError, UnsupportedError: as `decode`.
            InputError, StreamError, BusyError, ClosedError: as `Model.submit`.
        """
        if size <= MAX_INLINE_BYTES:
            return self.submit_small(name, version, decode, stream_headers)
        model = self._repository.model(name, version)
        try:
            infer_request = await _in_thread(decode)
        except DeployError:
            self._repository.count_unreadable(name)
            raise
        return self._submit(name, version, model, infer_request, stream_headers)

    def submit_small(
        self,
        name: str,
        version: str,
        decode: Callable[[], InferRequest],
        stream_headers: Sequence[str] = (),
    ) -> Submitted:
        """`submit`, where `decode` has at most `MAX_INLINE_BYTES` to read."""
        model = self._repository.model(name, version)
        try:
            infer_request = decode()
        except DeployError:
            self._repository.count_unreadable(name)
            raise
        return self._submit(name, version, model, infer_request, stream_headers)

    def _submit(
        self,
        name: str,
        version: str,
        model: ServedModel,
        infer_request: InferRequest,
        stream_headers: Sequence[str],
    ) -> Submitted:
        self._check_stream_header(infer_request.request, stream_headers)
        request = oip.in_layout_of_model(infer_request.request, model)
        try:
            future = self._repository.submit(name, version, request)
        except InputError as error:
            raise oip.in_words_of_protocol(error, request, model) from error
        return Submitted(infer_request, future)

    async def predict(
        self, name: str, size: int, decode: Callable[[ServedModel], Sequence[Request]]
    ) -> list[Response]:
        """Answer requests that came as one: if one of them is refused or fails, so are all.

        Args:
            size: bytes that `decode` has to read.
            decode: makes the requests to the model.

        Raises:
            InputError, TooLargeError: as `decode`, or as `Model.submit`, with the number of the request.
            BusyError, ClosedError, DeadlineError, RunError: as `submit` and `answer`.
        """
        model = self._repository.model(name, "")
        try:
            requests = await in_thread_if_large(size, decode, model)
        except DeployError:
            self._repository.count_unreadable(name)
            raise
        responses: list[Response] = []
        async with Deadline(self.settings.request_seconds, "the instances took"):
            while len(responses) < len(requests):
                first = len(responses)
                together = requests[first : first + MAX_TOGETHER]
                responses += await self._answer_together(name, together, first)
        return responses

    async def _answer_together(
        self, name: str, requests: Sequence[Request], first: int
    ) -> list[Response]:
        """`first`: the number of the first of them."""
        futures: list[Future[Response]] = []
        try:
            for number, request in enumerate(requests, first):
                with numbered_errors(number):
                    futures.append(self._repository.submit(name, "", request))
            responses = []
            for number, future in enumerate(futures, first):
                with numbered_errors(number):
                    responses.append(await self.answer(future))
            return responses
        finally:
            for future in futures:
                future.cancel()

    def _check_stream_header(self, request: Request, values: Sequence[str]) -> None:
        name = self.settings.stream_header
        if name is not None and request.sequence is not None:
            check_stream_header(name, request.sequence, values)

    async def answer(self, future: "Future[Response]") -> Response:
        """Wait for the answer to a request. If the wait ends early, a request that is not running yet is cancelled.

        Raises:
            DeadlineError: there was no answer within the server's limit, or within the request's own.
            ClosedError: the server stopped first.
            StreamError, InputError, RunError: as the future of `Model.submit`.
        """
        try:
            return await self.deliveries().wait(future)
        except asyncio.CancelledError:
            # Cancelled by a server that has drained long enough, or by a client that has left.
            if not self._repository.stopping():
                raise
            raise ClosedError(STOPPED) from None

    def deliveries(self) -> Deliveries:
        """Those of the running event loop; a server has one for each protocol."""
        loop = asyncio.get_running_loop()
        if self._deliveries is None or self._deliveries.loop is not loop:
            self._deliveries = Deliveries(loop, self.settings.request_seconds)
        return self._deliveries

    async def index(self, *, ready: bool) -> list[dict[str, Any]]:
        """Every bundle, or with `ready` only those that answer."""
        return await asyncio.to_thread(self._repository.index, ready=ready)

    async def load(self, name: str, parameters: object) -> None:
        """Load or replace a model; others who ask for it meanwhile may share the load, which goes on if one leaves.

        Raises:
            UnsupportedError: there are `parameters`.
            DeployError: the bundle cannot be loaded, the model is unloaded meanwhile, or the server stops.
        """
        if parameters:
            raise UnsupportedError(
                "`parameters` of a load are not supported; a model is loaded as its bundle is."
            )
        # An unknown name is looked for on the disk.
        load = await asyncio.to_thread(self._repository.start_load, name)
        await asyncio.wrap_future(load)

    async def unload(self, name: str) -> None:
        await asyncio.to_thread(self._repository.unload, name)


@contextmanager
def numbered_errors(number: int) -> Iterator[None]:
    """Have an error about what a client has sent say which of its instances it is about."""
    try:
        yield
    except (InputError, TooLargeError) as error:
        raise type(error)(f"instances[{number}]: {error}") from error


# Python decodes one body at a time anyway. The others wait here, and not in the threads that all else needs.
_CODING_THREADS = ThreadPoolExecutor(2, "deploy-rnn coding")


async def in_thread_if_large(size: int, function: Callable[..., Result], *args: Any) -> Result:
    """Call `function` inline if it has few bytes to work on, in one of a few threads for this otherwise."""
    return await _in_thread(function, *args) if size > MAX_INLINE_BYTES else function(*args)


async def _in_thread(function: Callable[..., Result], *args: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(_CODING_THREADS, function, *args)


class Deadline:
    """A time limit for the body of an `async with`.

    Raises:
        DeadlineError: "{subject} more than {seconds} s."
    """

    def __init__(self, seconds: float, subject: str) -> None:
        self._seconds = seconds
        self._subject = subject
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        # A TimeoutError of the body itself is not raised here: a DeadlineError is one.
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError:
            raise DeadlineError(f"{self._subject} more than {self._seconds:g} s.") from None
