"""A server under every kind of load at once for a while: its memory does not grow, and it still answers."""

import asyncio
import os
import random
import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

SECONDS = float(os.environ.get("DEPLOY_RNN_SOAK_SECONDS", "6"))
"""Half of it is warm-up: by then the server holds what it keeps for each connection, stream and shape."""

FEWEST = 50
"""So many requests that what one of them leaves behind would show."""


def tensor(name: str, array: np.ndarray) -> dict[str, object]:
    datatype = {"float32": "FP32", "int64": "INT64"}[array.dtype.name]
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(array.shape),
        "data": array.ravel().tolist(),
    }


async def requests(client: httpx.AsyncClient, rng: random.Random) -> None:
    tokens = np.ones((rng.randint(1, 4), rng.randint(1, 200)), np.int64)
    answer = await client.post(
        "/v2/models/tagger/infer", json={"inputs": [tensor("tokens", tokens)]}
    )
    assert answer.status_code == 200, answer.text


async def abandoned_streams(client: httpx.AsyncClient, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        parameters = {"sequence_id": rng.getrandbits(60) + 1, "sequence_start": True}
        inputs = [tensor("input", np.ones((1, rng.randint(1, 20), 3), np.float32))]
        answer = await client.post(
            "/v2/models/stream/infer", json={"inputs": inputs, "parameters": parameters}
        )
        assert answer.status_code in (200, 503), answer.text


async def garbage(client: httpx.AsyncClient, rng: random.Random) -> None:
    body = rng.randbytes(rng.randint(0, 5000))
    answer = await client.post("/v2/models/tagger/infer", content=body)
    assert answer.status_code == 400, answer.text


async def killed(client: httpx.AsyncClient, rng: random.Random) -> None:
    """Send a request or half of one, reset the connection, and go on once the server answers another client."""
    body = b'{"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}]}'
    head = b"POST /v2/models/tagger/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    writer.write((head + body)[: rng.randint(1, len(head + body))])
    await writer.drain()
    writer.transport.abort()
    assert (await client.get("/v2/health/live")).status_code == 200


async def load(url: str, until: float) -> int:
    """Run four of each client, as fast as they are answered; return how many requests there were.

    It goes on after `until` while they were few: a busy machine takes longer, and shows the same.
    """
    count = 0

    async def repeat(send: Any, seed: int) -> None:
        nonlocal count
        rng = random.Random(seed)
        while time.monotonic() < until or count <= FEWEST:
            await send(client, rng)
            count += 1

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        clients = [requests, abandoned_streams, garbage, killed] * 4
        await asyncio.gather(*(repeat(send, seed) for seed, send in enumerate(clients)))
    return count


def resources(url: str) -> tuple[float, float]:
    """Bytes in memory and open files of the server, from its metrics, which have neither without a /proc."""
    text = httpx.get(f"{url}/metrics", timeout=20).text
    figures = dict(
        re.findall(r"^process_(resident_memory_bytes|open_fds) (\S+)$", text, re.MULTILINE)
    )
    if not figures:
        pytest.skip("the server cannot measure its memory on this system")
    return float(figures["resident_memory_bytes"]), float(figures["open_fds"])


@pytest.mark.slow
def test_memory_does_not_grow(real_bundles: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "deploy_rnn",
        "serve",
        str(real_bundles),
        "--threads",
        "1",
        "--max-streams",
        "200",
    ]
    ports = ["--http-port", "0", "--grpc-port", "0", "--stream-idle", "0.5"]
    with subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            url = next(line for line in lines if line.startswith("HTTP on ")).split()[2].rstrip(",")
            asyncio.run(load(url, time.monotonic() + SECONDS / 2))
            before, files = resources(url)
            count = asyncio.run(load(url, time.monotonic() + SECONDS / 2))
            after, files_after = resources(url)
            print(
                f"{count} requests, {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB, files {files} -> {files_after}"
            )
            assert count > FEWEST
            assert after < before + 10e6
            assert files_after < files + 50
            assert httpx.get(f"{url}/v2/health/ready", timeout=20).status_code == 200
        finally:
            process.kill()
