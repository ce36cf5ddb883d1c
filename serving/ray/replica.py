"""`Replica`: a server that Ray Serve starts as often as it is told to."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import Context
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy_rnn.errors import (
    BusyError,
    ClosedError,
    DeployError,
    InputError,
    UnsupportedError,
)

from ..grpc.service import METHODS, STREAMING_METHODS, Service
from ..process import let_threads_share_memory, let_threads_take_turns
from ..protocol import oip
from ..protocol.inference import Inference
from ..repository import Repository
from ..rest.app import make_app
from ..rest.errors import error_response
from ..rest.other_sites import OwnHost, parse_hosts
from ..scheduling.core_slots import CoreSlots
from ..scheduling.limits import Limits
from ..scheduling.model import Model
from ..scheduling.request import Request, Response
from ..settings import Settings
from .grpc_calls import answer_many, answer_one
from .ledger import Ledger
from .owners import Claim, StreamOwners
from .routed_model import RoutedModel, outcome_or_raise, routed_by

TOKEN_VARIABLE = "DEPLOY_RNN_TOKEN"

OWNERS_NAMESPACE = "deploy-rnn"

SESSION_HEADER = b"x-session-id"

ONE_REPLICA = "cannot be asked for here: it would be about one of several replicas. A new bundle is a new deployment."


class ReplicaRepository(Repository):
    """The bundles of a replica, which all have the same: no client loads or unloads one."""

    def start_load(self, name: str) -> Any:
        if self.ready():
            raise UnsupportedError(f"a load of `{name}` {ONE_REPLICA}")
        return super().start_load(name)

    def unload(self, name: str) -> None:
        raise UnsupportedError(f"an unload of `{name}` {ONE_REPLICA}")


class Routed:
    """Notes by which session Ray has routed a request, and refuses what concerns one replica."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            sessions = [value for name, value in scope["headers"] if name == SESSION_HEADER]
            routed_by.set(sessions[0].decode("latin-1") if len(sessions) == 1 else "")
            if scope["path"] == "/metrics":
                error = UnsupportedError(f"/metrics {ONE_REPLICA} Ray exports its own metrics.")
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Replica:
    """HTTP, gRPC and the models.

    Args:
        bundles: the path of a bundle, of an .onnx file, or of a folder of bundles, on every machine.
        limits, settings, model: keyword arguments of `Limits`, `Settings` and `Model`.
        owners: the name of the actor that knows which replica has which stream.
        local_only: whether only clients of this machine are answered.
        version: of the bundles; a new one makes Ray replace all replicas.
    """

    def __init__(
        self,
        bundles: str,
        limits: Mapping[str, Any],
        settings: Mapping[str, Any],
        model: Mapping[str, Any],
        owners: str,
        local_only: bool = False,
        version: str = "",
    ) -> None:
        let_threads_take_turns()
        let_threads_share_memory()
        self._owners_name = owners
        self._own_handle: Any = None
        self._owners_actor = _owners_actor(owners)
        self._ledger = Ledger(self._claim)
        self._routed: dict[str, RoutedModel] = {}
        model_limits = Limits(**limits)
        core_options = {name: model[name] for name in ("provider", "threads") if name in model}
        cores = CoreSlots.of(**core_options)

        def make(folder: Path, name: str) -> RoutedModel:
            made = Model(folder, name=name, limits=model_limits, cores=cores, **model)
            self._routed[name] = RoutedModel(made, self._ledger, self._send)
            return self._routed[name]

        self._repository = ReplicaRepository(bundles, make, model_limits)
        self._settings = _make_settings(settings)
        self._local_only = local_only
        self._repository.load_all()
        inference = Inference(self._repository, self._settings)
        self._grpc_handlers = Service(inference).handlers()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = make_app(self._repository, self._settings)
        if self._local_only:
            app = OwnHost(app, parse_hosts(self._settings.allowed_hosts))
        return Routed(app)

    def check_health(self) -> None:
        """Ray calls this every few seconds."""
        if not self._repository.ready():
            raise RuntimeError("the replica has closed its models.")

    def answered(self) -> tuple[str, dict[str, int]]:
        """The id of this replica, and how many requests each model has answered."""
        models = self._repository.models()
        counts = {model.name: model.statistics().successes for model in models}
        return serve.get_replica_context().replica_id.unique_id, counts

    async def chunk(self, model: str, request: Request) -> Response | DeployError:
        """A chunk of a stream, from the replica that has received it."""
        routed = self._routed[model]
        try:
            return await asyncio.wrap_future(routed.submit_here(request))
        except InputError as error:
            return oip.in_words_of_protocol(error, request, routed)
        except DeployError as error:
            return error

    async def _send(self, model: str, session: str, request: Request) -> Response:
        """Have the replica that Ray routes a session to answer a chunk."""
        if self._own_handle is None:
            context = serve.get_replica_context()
            self._own_handle = serve.get_deployment_handle(context.deployment, context.app_name)
        # Not by reference: with Ray 2.60, one in a few thousand calls of a replica to itself would never be answered.
        handle = self._own_handle.options(
            method_name="chunk", session_id=session, _by_reference=False
        )
        try:
            # In an empty context. In that of the request that is being answered, Ray 2.60 would give all calls made for
            # it one id, and would take those that wait at the same time for each other: one would go to a replica that
            # does not have its stream, and another would never be sent.
            call = Context().run(handle.remote, model, request)
            return outcome_or_raise(await call)
        except RayActorError:
            raise ClosedError(
                f"the replica that had stream {request.sequence!r} has ended; start it again."
            ) from None
        except BackPressureError as error:
            raise BusyError(
                f"the replica of stream {request.sequence!r} is busy: {error}"
            ) from None
        except DeploymentUnavailableError:
            raise ClosedError("there is no replica; try again later.") from None

    async def _claim(self, claims: Sequence[Claim]) -> Sequence[bool]:
        try:
            answers: Sequence[bool] = await self._owners_actor.claim.remote(claims)
        except RayActorError:
            self._owners_actor = _owners_actor(self._owners_name)
            raise
        return answers


def _make_settings(options: Mapping[str, Any]) -> Settings:
    """The settings; a token that is not among the options may be in the environment of the machine."""
    token = options.get("token") or os.environ.get(TOKEN_VARIABLE)
    pages = tuple(Path(page) for page in options.get("pages", ()))
    hosts = tuple(options.get("allowed_hosts", ()))
    return Settings(**{**options, "token": token, "pages": pages, "allowed_hosts": hosts})


def _owners_actor(name: str) -> Any:
    """The actor of this name, which the first replica that asks makes. Ray starts it again if it is lost."""
    return (
        ray.remote(StreamOwners)
        .options(
            name=name, namespace=OWNERS_NAMESPACE, lifetime="detached", get_if_exists=True,
            max_restarts=-1, num_cpus=0,
        )
        .remote()
    )  # fmt: skip


def _unary_method(name: str) -> Callable[..., Any]:
    async def method(self: Any, message: bytes, grpc_context: Any) -> Any:
        handle = self._grpc_handlers[name].stream_unary
        return await answer_one(handle, message, grpc_context, local_only=self._local_only)

    method.__name__ = name
    return method


def _streaming_method(name: str) -> Callable[..., Any]:
    async def method(
        self: Any, messages: AsyncIterator[bytes], grpc_context: Any
    ) -> AsyncIterator[Any]:
        handle = self._grpc_handlers[name].stream_stream
        answers = answer_many(handle, messages, grpc_context, local_only=self._local_only)
        async for answer in answers:
            yield answer

    method.__name__ = name
    return method


# Ray calls a method of the replica by the name of that of the protocol.
for _name in METHODS:
    _make = _streaming_method if _name in STREAMING_METHODS else _unary_method
    setattr(Replica, _name, _make(_name))
