"""Streams of several replicas, without Ray: replicas of this process, and a router that sends chunks as a test says."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deploy_rnn.errors import BusyError, ClosedError, InputError, StreamError
from deploy_rnn.serving.grpc.service import METHODS, STREAMING_METHODS, Service
from deploy_rnn.serving.protocol.inference import Inference
from deploy_rnn.serving.ray import routed_model
from deploy_rnn.serving.ray.grpc_calls import add_to_server, answer_many, answer_one, only
from deploy_rnn.serving.ray.ledger import Ledger
from deploy_rnn.serving.ray.owners import BEGIN, CONFIRM, END, Claim, StreamOwners
from deploy_rnn.serving.ray.routed_model import RoutedModel, routed_by
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.scheduling.request import Request, Response
from deploy_rnn.serving.settings import Settings


class Replicas:
    """Two replicas of `SumModel`, and the record of their streams.

    Attributes:
        models: A and B.
        routes: session -> the replica to which the router sends it.
        lost: whether the record of streams is out of reach.
        sent: the sessions that were sent from one replica to another.
    """

    def __init__(self, folder: Path, sum_model: Any) -> None:
        self.owners = StreamOwners()
        self.lost = False
        self.routes: dict[str, str] = {}
        self.sent: list[str] = []
        self.models: dict[str, RoutedModel] = {}
        for name in "AB":
            model = sum_model(folder / "sum", "sum")
            self.models[name] = RoutedModel(model, Ledger(self._claim), self._send)

    async def _claim(self, claims: Sequence[Claim]) -> Sequence[bool]:
        await asyncio.sleep(0)
        if self.lost:
            raise RuntimeError("the actor is dead")
        return self.owners.claim(claims)

    async def _send(self, model: str, session: str, request: Request) -> Response:
        self.sent.append(session)
        await asyncio.sleep(0)
        target = self.models[self.routes[session]]
        return await asyncio.wrap_future(target.submit_here(request))

    async def ask(self, replica: str, request: Request, routed: str = "") -> float:
        """The sum that a replica answers with; `routed`: the session by which the request was sent to it."""
        routed_by.set(routed)
        response = await asyncio.wrap_future(self.models[replica].submit(request))
        return float(response.outputs["y"][0, -1])


@pytest.fixture
def replicas(folder: Path, sum_model: Any) -> Replicas:
    return Replicas(folder, sum_model)


def chunk(value: float, **options: Any) -> Request:
    return Request({"x": np.float32([[value]])}, sequence="s", **options)


def run(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 60))


def test_a_stream_that_comes_back_does_not_go_on_from_its_old_states(replicas: Replicas) -> None:
    async def steps() -> None:
        assert await replicas.ask("A", chunk(1, start=True), routed="s") == 1
        # Now the router says B, where the client starts again, and then A once more.
        with pytest.raises(StreamError, match="there is no stream 's'"):
            await replicas.ask("B", chunk(2), routed="s")
        assert await replicas.ask("B", chunk(5, start=True), routed="s") == 5
        with pytest.raises(StreamError, match=r"is not on this replica any more.*; start it again"):
            await replicas.ask("A", chunk(2), routed="s")
        # The states are gone, so that nothing is found there later either.
        assert not replicas.models["A"].holds("s")
        # A router that still knows of B finds the latest stream there.
        assert await replicas.ask("B", chunk(2), routed="s") == 7
        assert await replicas.ask("A", chunk(3, start=True), routed="s") == 3
        with pytest.raises(StreamError, match="is not on this replica any more"):
            await replicas.ask("B", chunk(2), routed="s")

    run(steps())


def test_a_chunk_that_arrives_elsewhere_is_sent_on(replicas: Replicas) -> None:
    async def steps() -> None:
        replicas.routes["s"] = "B"
        sums = [await replicas.ask("A", chunk(1, start=True)), await replicas.ask("A", chunk(2))]
        assert sums == [1, 3]
        assert await replicas.ask("B", chunk(3, end=True), routed="s") == 6
        assert not replicas.models["A"].holds("s")
        assert replicas.sent == ["s", "s"]
        with pytest.raises(StreamError, match="there is no stream"):
            await replicas.ask("A", chunk(1))

    run(steps())


def test_chunks_that_are_sent_on_keep_their_order(replicas: Replicas) -> None:
    async def steps() -> None:
        replicas.routes["s"] = "B"
        requests = [chunk(1, start=number == 0) for number in range(20)]
        sums = await asyncio.gather(*(replicas.ask("A", request) for request in requests))
        assert list(sums) == list(range(1, 21))

    run(steps())


def test_a_request_without_a_stream_stays(replicas: Replicas) -> None:
    async def steps() -> None:
        assert await replicas.ask("A", replace(chunk(4), sequence=None), routed="other") == 4
        assert not replicas.sent

    run(steps())


def test_a_stream_that_cannot_be_confirmed_is_ended(replicas: Replicas) -> None:
    async def steps() -> None:
        await replicas.ask("A", chunk(1, start=True), routed="s")
        replicas.lost = True
        with pytest.raises(ClosedError, match=r"cannot be reached; start it again\.$"):
            await replicas.ask("A", chunk(1), routed="s")
        replicas.lost = False
        # Its state is one chunk too far.
        with pytest.raises(StreamError, match="there is no stream"):
            await replicas.ask("A", chunk(1), routed="s")

    run(steps())


def test_a_record_that_was_lost_ends_streams(replicas: Replicas) -> None:
    async def steps() -> None:
        await replicas.ask("A", chunk(1, start=True), routed="s")
        replicas.owners = StreamOwners()
        with pytest.raises(StreamError, match="the record of streams was lost; start it again"):
            await replicas.ask("A", chunk(1), routed="s")
        assert await replicas.ask("A", chunk(1, start=True), routed="s") == 1

    run(steps())


def test_only_so_many_are_sent_on(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routed_model, "MAX_FORWARDED", 1)

    async def steps() -> None:
        replicas.routes["s"] = "B"
        first = asyncio.create_task(replicas.ask("A", chunk(1, start=True)))
        while not replicas.sent:
            await asyncio.sleep(0)
        with pytest.raises(BusyError, match="or send the header `x-session-id: s`"):
            await replicas.ask("A", chunk(2))
        assert await first == 1

    run(steps())


def test_a_wrong_chunk_is_refused_and_changes_nothing(replicas: Replicas) -> None:
    async def steps() -> None:
        await replicas.ask("A", chunk(1, start=True), routed="s")
        wrong = replace(chunk(1), inputs={"x": np.float64([[1]])})
        with pytest.raises(InputError):
            await replicas.ask("A", wrong, routed="s")
        assert await replicas.ask("A", chunk(1), routed="s") == 2

    run(steps())


def test_owners() -> None:
    owners = StreamOwners(max_streams=2)
    claims = [
        Claim(BEGIN, "s", "1"), Claim(CONFIRM, "s", "1"), Claim(CONFIRM, "s", "2"), Claim(BEGIN, "s", "2"),
        Claim(CONFIRM, "s", "1"), Claim(END, "s", "1"), Claim(CONFIRM, "s", "2"), Claim(END, "s", "2"),
        Claim(CONFIRM, "s", "2"),
    ]  # fmt: skip
    expected = [True, True, False, True, False, False, True, True, False]
    assert owners.claim(claims) == expected
    # The one that was used longest ago is forgotten.
    begins = [Claim(BEGIN, name, "1") for name in "ab"]
    assert owners.claim([*begins, Claim(CONFIRM, "a", "1"), Claim(BEGIN, "c", "1")]) == [True] * 4
    confirms = [Claim(CONFIRM, name, "1") for name in "abc"]
    assert owners.claim(confirms) == [True, False, True]


def test_claims_go_together() -> None:
    async def steps() -> None:
        batches: list[int] = []
        gate = asyncio.Event()

        async def call(claims: Sequence[Claim]) -> list[bool]:
            batches.append(len(claims))
            await gate.wait()
            return [claim.token == "mine" for claim in claims]

        ledger = Ledger(call)
        answers = [ledger.claim(Claim(CONFIRM, "s", "mine"))]
        while not batches:
            await asyncio.sleep(0)
        answers += [ledger.claim(Claim(CONFIRM, "s", token)) for token in ("mine", "other", "mine")]
        gate.set()
        assert await asyncio.gather(*answers) == [True, True, False, True]
        assert batches == [1, 3]

    run(steps())


class Context:
    """As much of Ray's context of a gRPC call as is used."""

    def __init__(self, peer: str = "ipv4:127.0.0.1:5000", **metadata: str) -> None:
        self._peer = peer
        self._metadata = metadata
        self.status: Any = None
        self.text = ""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self._metadata.items())

    def peer(self) -> str:
        return self._peer

    def code(self) -> Any:
        return self.status

    def set_code(self, code: Any) -> None:
        self.status = code

    def set_details(self, details: str) -> None:
        self.text = details


@pytest.fixture
def handlers(repository: Repository) -> dict[str, Any]:
    return Service(Inference(repository, Settings())).handlers()


def ask_grpc(handlers: dict[str, Any], context: Context, *, local_only: bool) -> bytes:
    handle = handlers["ServerMetadata"].stream_unary

    async def ask() -> bytes:
        answer = await answer_one(handle, b"", context, local_only=local_only)
        return answer.SerializeToString()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("peer", "is_local"),
    [
        ("ipv4:127.0.0.1:5000", True), ("ipv6:%5B::1%5D:5000", True), ("ipv6:%5B::ffff:127.0.0.1%5D:5000", True),
        ("ipv4:10.0.0.7:5000", False), ("ipv6:%5Bfd00::7%5D:5000", False), ("unknown", False),
    ],
)  # fmt: skip
def test_other_machines_are_refused(peer: str, is_local: bool, handlers: dict[str, Any]) -> None:
    """Ray's gRPC listens on all addresses."""
    context = Context(peer)
    assert bool(ask_grpc(handlers, context, local_only=True)) == is_local
    if not is_local:
        assert context.status == grpc.StatusCode.PERMISSION_DENIED
        assert "start it with `--host 0.0.0.0`, or with a token" in context.text
    assert ask_grpc(handlers, Context(peer), local_only=False)


def test_a_streaming_call_ends_with_its_status(handlers: dict[str, Any]) -> None:
    context = Context()

    async def ask() -> list[bytes]:
        handle = handlers["ModelStreamInfer"].stream_stream
        answers = answer_many(handle, only(b"\xff"), context, local_only=True)
        return [answer.SerializeToString() async for answer in answers]

    answers = asyncio.run(ask())
    # An error of a request is an answer in the stream.
    assert len(answers) == 1
    assert b"cannot be parsed" in answers[0] or b"ModelInferRequest" in answers[0]


def test_ray_is_told_every_method(handlers: dict[str, Any]) -> None:
    assert set(METHODS) == handlers.keys()
    told: list[Any] = []

    class Proxy:
        def add_generic_rpc_handlers(self, generic: Any) -> None:
            told.extend(generic)

    add_to_server(None, Proxy())
    methods = told[0]._method_handlers
    assert methods.keys() == {f"/inference.GRPCInferenceService/{name}" for name in METHODS}
    streaming = {
        name.rpartition("/")[2] for name, method in methods.items() if method.request_streaming
    }
    assert streaming == set(STREAMING_METHODS)
