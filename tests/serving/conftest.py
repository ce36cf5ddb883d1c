"""Fixtures: a model whose every answer is known, servers on free ports, small bundles that are exported once."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    InputError,
    LoadError,
    StreamError,
)
from deploy_rnn.examples.highlight import model as highlight
from deploy_rnn.export import export_bundle
from deploy_rnn.runtime import TensorSpec
from deploy_rnn.serving.protocol.access_log import AccessLog
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.rest.app import make_app
from deploy_rnn.serving.scheduling.request import Request, Response
from deploy_rnn.serving.scheduling.statistics import Durations, Statistics
from deploy_rnn.serving.server import Server, new_event_loop
from deploy_rnn.serving.settings import Settings
from tests.serving.behind_nginx import Processes, behind_nginx
from tests.serving.on_ray import Replicas, on_ray


class SumModel:
    """A `ServedModel`, and no more than that: y is the running sum of x over the steps, times the number in the file
    `scale`.

    `gate` holds answers back while it is closed; `fails` is raised instead of an answer.
    """

    inputs = (TensorSpec("x", "float32", ("B", "T")), TensorSpec("total", "float32", ("B", 1)))
    outputs = (TensorSpec("y", "float32", ("B", "T")), TensorSpec("total_n", "float32", ("B", 1)))
    optional = frozenset({"total"})
    streaming = True
    states: Mapping[str, str] = MappingProxyType({"total": "total_n"})
    max_batch = 8
    precision = "float32"

    def __init__(self, path: Path, name: str) -> None:
        scale = (path / "scale").read_text(encoding="utf-8")
        if not scale.isdigit():
            raise LoadError(f"{scale!r} is not a scale.")
        self.name = name
        self.scale = float(scale)
        self.gate = threading.Event()
        self.gate.set()
        self.fails: Exception | None = None
        self.max_queue = 1000
        self.closed = False
        self._retired = False
        self._streams: dict[int | str, list[np.ndarray]] = {}
        self._ended: dict[int | str, str] = {}
        self._worker = ThreadPoolExecutor(1)
        # As in `Model`: a request is accepted before it is closed, or refused, and nothing in between.
        self._lock = threading.Lock()
        self._successes = 0
        self._queued = 0
        self._accepted: list[Future[Response]] = []

    def submit(self, request: Request) -> "Future[Response]":
        with self._lock:
            return self._submit(request)

    def _submit(self, request: Request) -> "Future[Response]":
        begins = request.start or request.sequence not in self._streams
        if self.closed or (self._retired and begins):
            raise ClosedError(f"model `{self.name}` is being unloaded.")
        if self._queued >= self.max_queue:
            raise BusyError("the queue is full.")
        x = request.inputs.get("x")
        if (
            x is None
            or x.dtype != np.float32
            or x.ndim != 2
            or not x.size
            or set(request.inputs) - {"x", "total"}
        ):
            raise InputError("give `x`: float32 [B, T].")
        totals = self._totals(request)
        deadline = None if request.timeout is None else time.monotonic() + request.timeout
        self._queued += 1
        self._accepted.append(self._worker.submit(self._answer, request, totals, deadline))
        return self._accepted[-1]

    def _totals(self, request: Request) -> list[np.ndarray]:
        """The totals after each chunk so far; as in `Model`, a stream has ended once its last chunk is accepted."""
        zeros = np.zeros((len(request.inputs["x"]), 1), np.float32)
        if request.sequence is None:
            return [request.inputs.get("total", zeros)]
        if request.start:
            self._streams[request.sequence] = [zeros]
        elif request.sequence not in self._streams:
            raise StreamError(f"there is no stream {request.sequence!r}.")
        totals = self._streams[request.sequence]
        if request.end:
            del self._streams[request.sequence]
        return totals

    def _answer(
        self, request: Request, totals: list[np.ndarray], deadline: float | None
    ) -> Response:
        self.gate.wait()
        self._queued -= 1
        if self.fails is not None:
            raise self.fails
        if deadline is not None and time.monotonic() > deadline:
            raise DeadlineError("its time ran out before it was run.")
        y = totals[-1] + np.cumsum(request.inputs["x"], axis=1, dtype=np.float32)
        totals.append(y[:, -1:])
        self._successes += 1
        outputs = {"y": y * np.float32(self.scale), "total_n": y[:, -1:]}
        wanted = request.outputs or tuple(outputs)
        return Response({name: outputs[name] for name in wanted}, 0.001, 0.002, len(y))

    def holds(self, sequence: int | str) -> bool:
        return sequence in self._streams

    def retire(self) -> None:
        with self._lock:
            self._retired = True

    def end_streams(self, reason: str, sequence: int | str | None = None) -> list[int | str]:
        with self._lock:
            ended = [name for name in self._streams if sequence in (None, name)]
            for name in ended:
                del self._streams[name]
            self._ended.update(dict.fromkeys(ended, reason))
        return ended

    def ended_streams(self) -> dict[int | str, str]:
        return dict(self._ended)

    def expire(self, name: int | str) -> None:
        """As if nothing had come for a stream for too long."""
        with self._lock:
            del self._streams[name]
            self._ended[name] = "expired after 1 s without a chunk; start it again"

    def statistics(self) -> Statistics:
        return Statistics(
            successes=self._successes, failures=1, executions=3, rows=5, queue_seconds=0.5, compute_seconds=0.25,
            batch_rows={1: (2, 0.1), 3: (1, 0.15)}, steps_real=90, steps_padded=10, queued=self._queued,
            streams=len(self._streams), last_inference=1000.0, failure_reasons={"busy": 1},
            queue_durations=Durations((2, 1, *[0] * 13, 1), 70.5),
        )  # fmt: skip

    def close(self, timeout: float | None = None) -> None:
        with self._lock:
            self.closed = True
        wait(self._accepted, timeout)
        self._worker.shutdown(wait=False)


def write_bundle(folder: Path, scale: str = "1") -> Path:
    """Write as much of a bundle as `SumModel` and `Repository` read."""
    folder.mkdir(exist_ok=True)
    (folder / "scale").write_text(scale, encoding="utf-8")
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one bundle, `sum`."""
    write_bundle(tmp_path / "sum")
    return tmp_path


@pytest.fixture
def repository(folder: Path) -> Iterator[Repository]:
    """Has a loaded `SumModel`, `sum`."""
    with _loaded(folder) as repository:
        yield repository


@contextmanager
def _loaded(folder: Path, model: Callable[..., Any] = SumModel) -> Iterator[Repository]:
    repository = Repository(folder, model)
    repository.load_all()
    yield repository
    for model in repository.models():
        model.gate.set()  # type: ignore[attr-defined]
    repository.close(5)


@pytest.fixture(scope="session")
def load_repository() -> Callable[..., Any]:
    """A context manager: a folder -> its repository, of `SumModel`s if there is no other class."""
    return _loaded


class Client:
    """An HTTP client of an ASGI application in this process."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)


@pytest.fixture
def client(repository: Repository) -> Client:
    return Client(make_app(repository))


@contextmanager
def _running(
    repository: Repository,
    settings: Settings | None = None,
    access_log: AccessLog | None = None,
    tracing: Any = None,
) -> Iterator[Server]:
    """A server on free ports, in its own thread."""
    started: Future[tuple[Server, asyncio.AbstractEventLoop]] = Future()

    async def serve() -> None:
        server = Server(repository, settings, access_log, tracing)
        await server.start()
        started.set_result((server, asyncio.get_running_loop()))
        await server.run()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(serve())
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    server, loop = started.result(30)
    try:
        yield server
    finally:
        with suppress(RuntimeError):  # its loop is closed: the test has stopped it
            loop.call_soon_threadsafe(server.stop)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def server(repository: Repository) -> Iterator[Server]:
    with _running(repository) as server:
        yield server


@pytest.fixture(scope="session")
def run_server() -> Callable[..., Any]:
    """A context manager: repository, settings -> a server on free ports, in its own thread."""
    return _running


@pytest.fixture(scope="session")
def new_bundle() -> Callable[..., Path]:
    return write_bundle


@pytest.fixture(scope="module")
def sum_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles with one, `sum`."""
    folder = tmp_path_factory.mktemp("bundles")
    write_bundle(folder / "sum")
    return folder


@pytest.fixture
def make_client() -> type[Client]:
    return Client


@pytest.fixture(scope="session")
def sum_model() -> type[SumModel]:
    return SumModel


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.rnn = nn.RNN(6, 5, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.rnn(self.embed(tokens))[0]
        return scores


@pytest.fixture(scope="session")
def real_models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"tagger": Tagger().eval(), "stream": nn.GRU(3, 4, batch_first=True).eval()}


@pytest.fixture(scope="session")
def real_bundles(
    real_models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of two exported bundles: `tagger`, and `stream`, which carries its states."""
    folder = tmp_path_factory.mktemp("bundles")
    export_bundle(
        real_models["tagger"], torch.randint(20, (2, 5)), folder / "tagger", forms=["native"]
    )
    export_bundle(
        real_models["stream"],
        torch.randn(2, 5, 3),
        folder / "stream",
        forms=["native"],
        streaming=True,
    )
    return folder


@pytest.fixture(scope="session")
def behind_nginx_servers(
    real_bundles: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Processes]:
    """Two servers of `real_bundles` behind nginx."""
    with behind_nginx(real_bundles, tmp_path_factory.mktemp("nginx")) as servers:
        yield servers


@pytest.fixture(scope="session")
def ray_replicas(
    real_bundles: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    """Two replicas of `real_bundles` on a Ray cluster of two nodes."""
    with on_ray(real_bundles, tmp_path_factory.mktemp("ray")) as replicas:
        yield replicas


class Scorer(nn.Module):
    """Tokens (B, T) and lengths (B,), which may be left out -> scores (B, T, 3)."""

    def __init__(self, family: Any = deploy_rnn.RNN, *, bidirectional: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.rnn = family(8, 16, 2, bidirectional=bidirectional, batch_first=True)
        self.score = nn.Linear(32 if bidirectional else 16, 3)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        scores: Tensor = self.score(self.rnn(self.embed(tokens), None, lengths)[0])
        return scores


@pytest.fixture(scope="session")
def tagger() -> nn.Module:
    torch.manual_seed(1)
    return Scorer().eval()


@pytest.fixture(scope="session")
def padded(tagger: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tagger` with lengths, for any number of steps, for 8 and for 16."""
    folder = tmp_path_factory.mktemp("bundles") / "padded"
    args = (torch.randint(20, (2, 12)), torch.tensor([12, 5]))
    export_bundle(tagger, args, folder, forms=["native"], buckets=[8, 16], sizes=(2,))
    return folder


@pytest.fixture(scope="session")
def exact(tagger: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tagger` without lengths, for any number of steps and for 4."""
    folder = tmp_path_factory.mktemp("bundles") / "exact"
    export_bundle(
        tagger, (torch.randint(20, (2, 12)),), folder, forms=["native"], buckets=[4], sizes=(2,)
    )
    return folder


@pytest.fixture(scope="session")
def stream_model() -> nn.Module:
    torch.manual_seed(2)
    return Scorer(deploy_rnn.LSTM, bidirectional=False).eval()


@pytest.fixture(scope="session")
def streaming(stream_model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "streaming"
    export_bundle(
        stream_model,
        (torch.randint(20, (2, 12)),),
        folder,
        forms=["native"],
        streaming=True,
        sizes=(2,),
    )
    return folder


@pytest.fixture(scope="session")
def highlighter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model, `highlight`."""
    folder = tmp_path_factory.mktemp("demo") / "highlight"
    example = torch.randint(len(highlight.ALPHABET), (2, highlight.WINDOW))
    export_bundle(highlight.load(), (example,), folder, forms=["native"], sizes=(2,))
    return folder
