"""A server among 300 clients of every kind, whose models are replaced, loaded and unloaded all the time, until it is
told to stop: no answer is wrong, nothing that it accepted is lost, and it holds no more than before.

`make chaos` runs it; `pytest -m chaos -s` shows what became of the requests.
"""

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn.export import export_bundle
from tests.serving.chaos.clients import Case, Live, Report, Server, Usage, crowd

SECONDS = float(os.environ.get("DEPLOY_RNN_CHAOS_SECONDS", "60"))
"""Of load: half to warm up, a quarter between the two measurements, a quarter until the server is stopped."""

CLIENTS = int(os.environ.get("DEPLOY_RNN_CHAOS_CLIENTS", "300"))

FEWEST = 300
"""Right answers of each part, which goes on until there are so many: a busy machine only takes longer."""

STREAM_IDLE = 15.0

MODELS = ("tagger", "stream", "other")

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(sys.platform != "linux", reason="the server's memory is read from /proc"),
]


class Tagger(nn.Module):
    """Tokens (B, T) and lengths (B,) -> scores (B, T, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.rnn = deploy_rnn.LSTM(8, 16, bidirectional=True, batch_first=True)
        self.score = nn.Linear(32, 3)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        scores: Tensor = self.score(self.rnn(self.embed(tokens), None, lengths)[0])
        return scores


def tagger_in_torch(model: Tagger, tokens: Tensor, lengths: Tensor) -> Tensor:
    """`Tagger` with the layer of torch.nn."""
    layer = nn.LSTM(8, 16, bidirectional=True, batch_first=True).eval()
    layer.load_state_dict(model.rnn.state_dict())
    packed = nn.utils.rnn.pack_padded_sequence(
        model.embed(tokens), lengths, batch_first=True, enforce_sorted=False
    )
    output, _ = nn.utils.rnn.pad_packed_sequence(
        layer(packed)[0], batch_first=True, total_length=tokens.shape[1]
    )
    scores: Tensor = model.score(output)
    return scores


def seeded(make: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return make().eval()


@pytest.fixture(scope="module")
def models() -> dict[str, list[Any]]:
    """Model -> its versions."""
    return {
        "tagger": [seeded(Tagger, seed) for seed in (1, 2)],
        "stream": [seeded(lambda: nn.GRU(3, 8, 2, batch_first=True), seed) for seed in (3, 4)],
        "other": [seeded(lambda: nn.RNN(2, 3, batch_first=True), 5)],
    }


@pytest.fixture(scope="module")
def bundles(models: dict[str, list[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each version, such as `tagger-1`."""
    folder = tmp_path_factory.mktemp("versions")
    tokens, lengths = torch.randint(20, (2, 12)), torch.tensor([12, 5])
    arguments: dict[str, tuple[Any, dict[str, Any]]] = {
        "tagger": ((tokens, lengths), {"forms": ["native"], "buckets": [16]}),
        "stream": ((torch.randn(2, 6, 3),), {"forms": ["native"], "streaming": True}),
        "other": ((torch.randn(2, 6, 2),), {"forms": ["native"]}),
    }
    for name, (args, options) in arguments.items():
        for version, model in enumerate(models[name]):
            export_bundle(model, args, folder / f"{name}-{version}", sizes=(2,), **options)
    return folder


@pytest.fixture(scope="module")
def cases(models: dict[str, list[Any]]) -> dict[str, list[Case]]:
    rng = random.Random(0)
    torch.manual_seed(6)
    cases: dict[str, list[Case]] = {name: [] for name in MODELS}
    with torch.no_grad():
        for _ in range(200):
            rows = rng.choice((1, 1, 1, 2, 4))
            steps = rng.choice((1, 2, 15, 16, 17, rng.randint(1, 120), rng.randint(1, 120), 1500))
            tokens = torch.randint(20, (rows, steps))
            lengths = torch.tensor([rng.randint(1, steps) for _ in range(rows)])
            inputs = {"tokens": tokens.numpy()}
            if rng.random() < 0.5:
                inputs["lengths"] = lengths.numpy()
            else:
                lengths = torch.full((rows,), steps)
            expected = [tagger_in_torch(model, tokens, lengths) for model in models["tagger"]]
            cases["tagger"].append(Case(inputs, [array.numpy() for array in expected]))
        for name, width, most_steps in (("stream", 3, 60), ("other", 2, 40)):
            for _ in range(60):
                x = torch.randn(rng.choice((1, 1, 2)), rng.randint(4, most_steps), width)
                expected = [model(x)[0].numpy() for model in models[name]]
                cases[name].append(Case({"input": x.numpy()}, expected))
    return cases


@pytest.fixture
def served(bundles: Path, tmp_path: Path) -> Path:
    """A folder of bundles, each in its first version."""
    for name in MODELS:
        shutil.copytree(bundles / f"{name}-0", tmp_path / "served" / name)
    return tmp_path / "served"


@contextmanager
def running(folder: Path, log: Path) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """`deploy-rnn serve` in a process of its own, and its two addresses."""
    command = [sys.executable, "-m", "deploy_rnn", "serve", str(folder), "--max-queue", "4096"]
    command += ["--http-port", "0", "--grpc-port", "0", "--request-seconds", "100"]
    command += ["--stream-idle", str(STREAM_IDLE), "--drain-seconds", "100"]
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            addresses = next((line for line in lines if line.startswith("HTTP on ")), "")
            assert addresses, log.read_text(encoding="utf-8")
            http, address = addresses.removeprefix("HTTP on http://").rstrip().split(", gRPC on ")
            yield process, http, address
        finally:
            process.kill()


@dataclass
class Chaos:
    """A crowd of clients around a server."""

    process: "subprocess.Popen[str]"
    http: str
    grpc: str
    served: Path
    bundles: Path
    cases: Mapping[str, Sequence[Case]]

    def __post_init__(self) -> None:
        self.report = Report()
        self.live = {name: Live() for name in MODELS}

    async def swap(self, name: str, version: int) -> None:
        """Put a version of a bundle in the place of the other, as a deployment does: copied, then renamed."""
        new, old = self.served / f".new-{name}", self.served / f".old-{name}"
        await asyncio.to_thread(shutil.copytree, self.bundles / f"{name}-{version}", new)
        (self.served / name).rename(old)
        new.rename(self.served / name)
        await asyncio.to_thread(shutil.rmtree, old)

    async def load(self, seconds: float, seed: int, *, stop: bool = False) -> None:
        """Let all clients go on for a while; with `stop`, until the server has stopped."""
        until = time.monotonic() + seconds
        right_before = self.right()

        def enough() -> bool:
            return time.monotonic() >= until and self.right() >= right_before + FEWEST

        def going() -> bool:
            return self.process.poll() is None if stop else not enough()

        async def stop_it() -> None:
            while not enough():
                await asyncio.sleep(0.05)
            self.report.stopping = True
            self.process.send_signal(signal.SIGTERM)

        async with grpc.aio.insecure_channel(self.grpc) as channel:
            server = Server(self.http, self.grpc, channel, self.live, self.report)
            tasks = [crowd(server, CLIENTS, seed, going, self.cases, self.swap)]
            if stop:
                tasks.append(stop_it())
            await asyncio.gather(*tasks)

    def right(self) -> int:
        return sum(n for (_, outcome), n in self.report.outcomes.items() if outcome == "right")

    def settle(self) -> Usage:
        """What the server holds once it has answered all, its streams have expired and their models are closed."""
        deadline = time.monotonic() + 120
        held = "nothing was asked"
        while held:
            assert time.monotonic() < deadline, f"the server goes on holding {held}"
            time.sleep(0.5)
            metrics = httpx.get(f"http://{self.http}/metrics", timeout=60).text
            held = re.findall(
                r"^deploy_rnn_(?:streams|queued_requests|replaced_models)\{.*\} [1-9].*$",
                metrics,
                re.MULTILINE,
            )
        time.sleep(2)
        return Usage.of(self.process.pid)

    def table(self, usage: Mapping[str, Usage], seconds: float) -> str:
        outcomes = sorted({outcome for _, outcome in self.report.outcomes})
        lines = [f"{'':26}" + "".join(f"{each:>9}" for each in ("sent", *outcomes))]
        for kind, sent in sorted(self.report.sent.items()):
            counts = [self.report.outcomes[kind, outcome] for outcome in outcomes]
            lines.append(f"{kind:26}" + "".join(f"{count:9}" for count in (sent, *counts)))
        rate = self.right() / seconds
        lines.append(
            f"{CLIENTS} clients, {rate:.0f} right answers a second, {self.report.loads} loads"
        )
        for when, each in usage.items():
            lines.append(
                f"{when}: {each.memory:.0f} MB, {each.files} files, {each.threads} threads"
            )
        return "\n".join(lines)


def test_nothing_is_wrong_lost_or_left_behind(
    served: Path, bundles: Path, cases: dict[str, list[Case]], tmp_path: Path
) -> None:
    for case in (*cases["tagger"], *cases["stream"]):
        first, second = case.expected
        assert np.abs(first - second).max() > 0.01  # or else no test could tell them apart
    log = tmp_path / "stderr"
    usage: dict[str, Usage] = {}
    with running(served, log) as (process, http, address):
        chaos = Chaos(process, http, address, served, bundles, cases)
        report = chaos.report
        started = time.monotonic()
        asyncio.run(chaos.load(SECONDS / 2, 1))
        usage["after half"] = chaos.settle()
        asyncio.run(chaos.load(SECONDS / 4, 2))
        usage["after three quarters"] = chaos.settle()
        asyncio.run(chaos.load(SECONDS / 4, 3, stop=True))
        exit_code = process.wait(120)
        print("\n" + chaos.table(usage, time.monotonic() - started))
        print("\n".join(report.faults[:10]))
        errors = log.read_text(encoding="utf-8")
    faults = Counter(re.sub(r"[0-9]+", "#", fault) for fault in report.faults)
    assert not faults, "\n".join(f"{count} x {fault}" for fault, count in faults.most_common(20))
    assert exit_code == 0, errors[-2000:]
    assert not errors, errors[-2000:]
    assert sum(report.outcomes.values()) == sum(report.sent.values())
    for kind in report.sent.keys() - {"half requests"}:
        assert report.outcomes[kind, "right"] >= 5, kind
    before, after = usage.values()
    assert after.memory < before.memory + 30
    assert after.files <= before.files + 10
    assert after.threads <= before.threads + 4
