"""Inference requests over HTTP: most of what a server does is to answer them, so nothing stands between."""

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy_rnn.errors import ClosedError, DeployError

from ..protocol.deliveries import Delivery
from ..protocol.inference import (
    MAX_INLINE_BYTES,
    STOPPED,
    Inference,
    InferRequest,
    Submitted,
    in_thread_if_large,
)
from ..scheduling.request import Response
from ..settings import Settings
from .binary import HEADER_LENGTH, split
from .bodies import receive_body
from .compression import choose_encoding, compress
from .direct import MAX_KNOWN_BYTES, Begin, Begun, Reply
from .errors import error_response
from .messages import Description, describe, read, write

logger = logging.getLogger(__name__)

MIN_COMPRESSED_BYTES = 1024
"""A shorter answer fits into one packet anyway."""

PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")

LENGTH = HEADER_LENGTH.lower().encode()

READ_HEADERS = frozenset((LENGTH, b"content-encoding", b"accept-encoding"))

Answer = tuple[bytes, dict[str, str]]
"""The body of an answer, and its headers."""


class InferApp:
    """An ASGI application that answers inference requests. `path_params` of the scope have the model, and the version
    if the client has named it."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._settings = inference.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body, headers = await self._answer(scope, receive)
        except ClientDisconnect:
            return  # nobody reads an answer
        except Exception as error:
            await error_response(error)(scope, receive, send)
            if not isinstance(error, DeployError):
                raise  # for the log
            return
        pairs = _pairs(body, headers)
        await send({"type": "http.response.start", "status": 200, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    def direct(self, scope: Scope) -> Begin | None:
        """As for `DirectApp`: a request is unusual if it is compressed, or large."""
        headers = _headers(scope)
        if b"content-encoding" in headers:
            return None
        return Directly(self._inference, *_model(scope), headers, self._stream_headers(scope))

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        name, version = _model(scope)
        self._inference.check_model(name, version)
        headers = _headers(scope)
        header_length = _header_length(headers)
        encoding = headers.get(b"content-encoding", "")
        only_json = header_length is None
        body = await receive_body(scope, receive, encoding, self._settings, only_json=only_json)

        # In one step: many bodies that wait to be decoded would take much memory if they were decompressed before.
        def decode() -> InferRequest:
            return read(body.decompressed(), header_length, self._settings)

        submitted = await self._inference.submit(
            name, version, body.most_bytes, decode, self._stream_headers(scope)
        )
        response = await self._inference.answer(submitted.future)
        accepted = headers.get(b"accept-encoding", "")
        return await in_thread_if_large(
            _size(response),
            _encode,
            submitted.infer_request,
            name,
            response,
            accepted,
            self._settings,
        )

    def _stream_headers(self, scope: Scope) -> list[str]:
        """Every value of the header that names the stream; none if the server wants none."""
        wanted = self._settings.stream_header
        if wanted is None:
            return []
        key = wanted.encode()
        return [value.decode("latin-1") for name, value in scope["headers"] if name == key]


class Directly:
    """Begins to answer the inference requests that have one and the same head.

    Args:
        headers: those of `_headers`.
        stream_headers: the values of the header that names the stream.
    """

    def __init__(
        self,
        inference: Inference,
        model_name: str,
        version: str,
        headers: Mapping[bytes, str],
        stream_headers: Sequence[str],
    ) -> None:
        self._inference = inference
        self._model_name = model_name
        self._version = version
        self._header_length = _header_length(headers)
        self._accepted = headers.get(b"accept-encoding", "")
        self._stream_headers = stream_headers
        settings = inference.settings
        only_json = self._header_length is None
        max_bytes = settings.max_json_bytes if only_json else settings.max_bytes
        self._max_bytes = min(MAX_INLINE_BYTES, max_bytes)
        # What the last request said besides its bytes: the next one with this head mostly says the same.
        self._text = b""
        self._description: Description | None = None

    def __call__(self, body: bytes, reply: Reply) -> Begun | None:
        if len(body) > self._max_bytes:
            return None
        begun = Inferring(self._inference, self._model_name, self._accepted, reply)
        try:
            submitted = self._inference.submit_small(
                self._model_name,
                self._version,
                partial(self._read, body),
                self._stream_headers,
            )
        except Exception as error:
            begun.fail(error)
        else:
            begun.expect(submitted)
        return begun

    def _read(self, body: bytes) -> InferRequest:
        text, binary = split(body, self._header_length)
        if self._description is not None and text == self._text:
            return self._description.complete(binary)
        description = describe(text, self._inference.settings)
        if len(text) <= MAX_KNOWN_BYTES and description.is_all_binary:
            self._text, self._description = text, description
        return description.complete(binary)


class Inferring(Begun):
    """A request that is answered directly.

    Args:
        model_name: of the model that is asked.
        accepted: the client's Accept-Encoding.
        reply: gets the answer.
    """

    def __init__(self, inference: Inference, model_name: str, accepted: str, reply: Reply) -> None:
        self._inference = inference
        self._model_name = model_name
        self._accepted = accepted
        self._reply: Reply | None = reply
        self._infer_request: InferRequest | None = None
        self._delivery: Delivery[Response] | None = None
        self._task: asyncio.Task[None] | None = None

    def expect(self, submitted: Submitted) -> None:
        """Reply once the model has answered."""
        self._infer_request = submitted.infer_request
        self._delivery = self._inference.deliveries().expect(submitted.future, self._finish)

    def leave(self) -> None:
        self._reply = None
        self._drop_delivery()

    def cancel(self, msg: Any = None) -> None:
        # As a task, it ends only after this: who cancels many does not expect them to change meanwhile.
        asyncio.get_running_loop().call_soon(self._stop)

    def _stop(self) -> None:
        self._drop_delivery()
        self.fail(ClosedError(STOPPED))

    def _drop_delivery(self) -> None:
        if self._delivery is not None:
            self._inference.deliveries().drop(self._delivery)
            self._delivery = None

    def fail(self, error: Exception) -> None:
        """Reply that there is no answer, and why."""
        if not isinstance(error, DeployError):
            logger.error("a request failed", exc_info=error)
        response = error_response(error)
        self._send(response.status_code, response.raw_headers, bytes(response.body))

    def _finish(self, delivery: Delivery[Response]) -> None:
        try:
            response = delivery.result()
            if _size(response) > MAX_INLINE_BYTES:
                self._task = asyncio.get_running_loop().create_task(self._finish_large(response))
                return
            answer = self._encode(response)
        except Exception as error:
            self.fail(error)
        else:
            self._succeed(answer)

    async def _finish_large(self, response: Response) -> None:
        try:
            answer = await in_thread_if_large(_size(response), self._encode, response)
        except Exception as error:
            self.fail(error)
        else:
            self._succeed(answer)

    def _encode(self, response: Response) -> Answer:
        assert self._infer_request is not None
        settings = self._inference.settings
        return _encode(self._infer_request, self._model_name, response, self._accepted, settings)

    def _succeed(self, answer: Answer) -> None:
        body, headers = answer
        self._send(200, _pairs(body, headers), body)

    def _send(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        reply = self._reply
        # The connection knows this; in a circle, both would stay in memory until garbage is collected.
        self._reply = self._delivery = None
        if reply is not None:
            reply(status, headers, body)


class Shortcut:
    """Hands inference requests to `infer`, and all others to `router`, which knows every path."""

    def __init__(self, infer: InferApp, router: ASGIApp) -> None:
        self._infer = infer
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._infer if self._is_infer(scope) else self._router
        await app(scope, receive, send)

    def direct(self, scope: Scope) -> Begin | None:
        return self._infer.direct(scope) if self._is_infer(scope) else None

    def _is_infer(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] != "POST":
            return False
        match = PATH.fullmatch(scope["path"])
        if match is None:
            return False
        scope["path_params"] = {"model": match[1], "version": match[2] or ""}
        return True


def _model(scope: Scope) -> tuple[str, str]:
    """Name and version of the model; "" for a version that the client has not named."""
    path_params = scope["path_params"]
    return path_params["model"], path_params.get("version", "")


def _headers(scope: Scope) -> dict[bytes, str]:
    """Those that matter here; of several of one name the first counts."""
    found: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in READ_HEADERS and name not in found:
            found[name] = value.decode("latin-1")
    return found


def _header_length(headers: Mapping[bytes, str]) -> str | None:
    length = headers.get(LENGTH)
    # A parser may leave spaces at the end of a value.
    return None if length is None else length.strip()


def _size(response: Response) -> int:
    return sum([array.nbytes for array in response.outputs.values()])


def _encode(
    infer_request: InferRequest,
    model_name: str,
    response: Response,
    accepted: str,
    settings: Settings,
) -> Answer:
    """The answer of a model as HTTP; `accepted`: the client's Accept-Encoding."""
    body, headers = write(infer_request, model_name, response, settings)
    return compress_if_accepted(body, headers, accepted)


def compress_if_accepted(body: bytes, headers: dict[str, str], accepted: str) -> Answer:
    """The answer, compressed if it is large and the client's Accept-Encoding allows it."""
    encoding = None
    if accepted and len(body) >= MIN_COMPRESSED_BYTES:
        encoding = choose_encoding(accepted, binary=HEADER_LENGTH in headers)
    if encoding:
        body = compress(body, encoding)
        headers["Content-Encoding"] = encoding
    return body, headers


def _pairs(body: bytes, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer as ASGI has them."""
    pairs = [(b"content-length", b"%d" % len(body))]
    for name, value in headers.items():
        pairs.append((name.lower().encode(), value.encode()))
    return pairs
