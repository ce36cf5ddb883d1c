"""Inference requests over HTTP: most of what a server does is to answer them, so nothing stands between."""

import re

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy_rnn.errors import DeployError

from ..protocol.inference import Inference, InferRequest, in_thread_if_large
from ..scheduling.request import Response
from .binary import HEADER_LENGTH
from .bodies import receive_body
from .compression import choose_encoding, compress
from .errors import error_response
from .messages import read, write

MIN_COMPRESSED_BYTES = 1024
"""A shorter answer fits into one packet anyway."""

PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")

READ_HEADERS = frozenset((HEADER_LENGTH.lower().encode(), b"content-encoding", b"accept-encoding"))

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
        pairs = [(b"content-length", b"%d" % len(body))]
        for name, value in headers.items():
            pairs.append((name.lower().encode(), value.encode()))
        await send({"type": "http.response.start", "status": 200, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path_params = scope["path_params"]
        name: str = path_params["model"]
        version: str = path_params.get("version", "")
        self._inference.check_model(name, version)
        headers = _headers(scope)
        header_length = headers.get(HEADER_LENGTH.lower().encode())
        if header_length is not None:
            header_length = header_length.strip()  # a parser may leave spaces at the end of a value
        encoding = headers.get(b"content-encoding", "")
        only_json = header_length is None
        body = await receive_body(receive, encoding, self._settings, only_json=only_json)

        # In one step: many bodies that wait to be decoded would take much memory if they were decompressed before.
        def decode() -> InferRequest:
            return read(body.decompressed(), header_length, self._settings)

        submitted = await self._inference.submit(
            name, version, body.most_bytes, decode, self._stream_headers(scope)
        )
        response = await self._inference.answer(submitted.future)
        size = sum([array.nbytes for array in response.outputs.values()])
        accepted = headers.get(b"accept-encoding", "")
        return await in_thread_if_large(
            size, self._encode, submitted.infer_request, name, response, accepted
        )

    def _stream_headers(self, scope: Scope) -> list[str]:
        """Every value of the header that names the stream; none if the server wants none."""
        wanted = self._settings.stream_header
        if wanted is None:
            return []
        key = wanted.encode()
        return [value.decode("latin-1") for name, value in scope["headers"] if name == key]

    def _encode(
        self, infer_request: InferRequest, model_name: str, response: Response, accepted: str
    ) -> Answer:
        """The answer of a model as HTTP; `accepted`: the client's Accept-Encoding."""
        body, headers = write(infer_request, model_name, response, self._settings)
        encoding = None
        if accepted and len(body) >= MIN_COMPRESSED_BYTES:
            encoding = choose_encoding(accepted, binary=HEADER_LENGTH in headers)
        if encoding:
            body = compress(body, encoding)
            headers["Content-Encoding"] = encoding
        return body, headers


class Shortcut:
    """Hands inference requests to `infer`, and all others to `router`, which knows every path."""

    def __init__(self, infer: ASGIApp, router: ASGIApp) -> None:
        self._infer = infer
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._router
        if scope["type"] == "http" and scope["method"] == "POST":
            match = PATH.fullmatch(scope["path"])
            if match is not None:
                app = self._infer
                scope["path_params"] = {"model": match[1], "version": match[2] or ""}
        await app(scope, receive, send)


def _headers(scope: Scope) -> dict[bytes, str]:
    """Those that matter here; of several of one name the first counts."""
    found: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in READ_HEADERS and name not in found:
            found[name] = value.decode("latin-1")
    return found
