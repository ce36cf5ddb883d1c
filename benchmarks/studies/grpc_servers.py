"""What gRPC itself takes of a request: `python -m benchmarks.studies.grpc_servers`, in two minutes.

Servers that answer each call with the bytes of its message, made with what Python has for gRPC, and this server with a
tiny model. All of them run at the same time, and wait while another is measured; each is measured in turn, several
times over. The load is that of `benchmarks.serving`. Processor time is the server's, of all its threads.

The server made of h2, a library for HTTP/2, is there if `pip install h2` has been run. It does only what this load
needs: no limits, no deadlines, no flow control, no errors.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import uvloop

from benchmarks import ROOT
from benchmarks.reporting.machine import publish, versions
from benchmarks.reporting.serving_tables import grpc_servers_table
from benchmarks.serving import over_grpc
from benchmarks.serving.contestants import Running, run_deploy_rnn
from benchmarks.serving.models import prepare
from benchmarks.serving.traffic import Traffic
from deploy_rnn.serving.grpc.messages import CLASSES, SERVICE

PACKAGES = ("grpcio", "uvloop", "protobuf", "h2")
DEPLOY_RNN = "deploy-rnn serve, tiny model"
OF_H2 = "h2, an asyncio.Protocol"
CALLS = 16
"""Requests under way at any time."""
WARM_SECONDS = 1.0
POOL = 8
"""Threads of the server without an event loop; each call keeps one."""


async def echo(message: bytes, context: Any) -> bytes:
    return message


async def read_and_echo(messages: Any, context: Any) -> bytes:
    """As this server does: the message is asked for once it is known who calls."""
    data: bytes = await context.read()
    return data


async def echo_message(message: Any, context: Any) -> Any:
    """With generated code, gRPC parses messages before a handler sees them."""
    return CLASSES["ModelInferResponse"](
        id=message.id, raw_output_contents=message.raw_input_contents
    )


def echo_in_thread(message: bytes, context: Any) -> bytes:
    return message


async def serve_aio(handler: Any) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_registered_method_handlers(SERVICE, {"ModelInfer": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def serve_read() -> None:
    uvloop.run(serve_aio(grpc.stream_unary_rpc_method_handler(read_and_echo)))


def serve_unary() -> None:
    uvloop.run(serve_aio(grpc.unary_unary_rpc_method_handler(echo)))


def serve_asyncio() -> None:
    asyncio.run(serve_aio(grpc.unary_unary_rpc_method_handler(echo)))


def serve_parsed() -> None:
    handler = grpc.unary_unary_rpc_method_handler(
        echo_message,
        CLASSES["ModelInferRequest"].FromString,
        CLASSES["ModelInferResponse"].SerializeToString,
    )
    uvloop.run(serve_aio(handler))


def serve_threads() -> None:
    handler = grpc.unary_unary_rpc_method_handler(echo_in_thread)
    server = grpc.server(ThreadPoolExecutor(POOL), options=[("grpc.so_reuseport", 0)])
    server.add_registered_method_handlers(SERVICE, {"ModelInfer": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def serve_h2() -> None:
    from benchmarks.studies.grpc_over_h2 import serve

    uvloop.run(serve())


SERVERS: dict[str, Callable[[], None]] = {
    "grpc.aio, the message read by the handler": serve_read,
    "grpc.aio, a unary handler": serve_unary,
    "grpc.aio, a unary handler, asyncio's loop": serve_asyncio,
    "grpc.aio, messages parsed by gRPC": serve_parsed,
    f"grpc.server, {POOL} threads": serve_threads,
    OF_H2: serve_h2,
}


class Echoes:
    """Counts answers, and sends the next request for each until `until`."""

    def __init__(self, messages: list[bytes]) -> None:
        self._messages = messages
        self._client = over_grpc.Client(self._record)
        self._sent = 0
        self._until = 0.0
        self.waiting = 0
        self.answered = 0
        self.lost = 0

    async def run(self, port: int, seconds: float) -> None:
        await self._client.connect(port, CALLS)
        self._until = time.perf_counter() + seconds
        for _ in range(CALLS):
            self._send()
        await asyncio.sleep(seconds)
        while self.waiting:
            await asyncio.sleep(0.005)
        self._client.close()

    def _send(self) -> None:
        self._sent += 1
        self.waiting += 1
        self._client.send(self._sent, self._messages[self._sent % len(self._messages)])

    def _record(self, number: int, answer: bytes | None) -> None:
        self.waiting -= 1
        if answer:
            self.answered += 1
        else:
            self.lost += 1
        if answer and time.perf_counter() < self._until:
            self._send()


def measure(running: Running, messages: list[bytes], seconds: float) -> float:
    """Milliseconds of the server's processor time for a request."""
    before = running.cpu_seconds()
    echoes = Echoes(messages)
    asyncio.run(echoes.run(running.ports["grpc"], seconds))
    if echoes.lost:
        sys.exit(f"{echoes.lost} calls had no answer.")
    return 1e3 * (running.cpu_seconds() - before) / echoes.answered


def start_echo(stack: ExitStack, name: str) -> Running:
    """A server of `SERVERS`, in a process and session of its own."""
    command = [sys.executable, "-m", "benchmarks.studies.grpc_servers", "--serve", name]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{name!r} did not start.")
    return Running({"grpc": int(line)}, process.pid)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each point (default 3)")
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    parser.add_argument(
        "--servers", nargs="+", choices=SERVERS, default=SERVERS, help="besides ours"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="gets the JSON")
    options = parser.parse_args()
    if options.serve:
        SERVERS[options.serve]()
        return
    names = [name for name in options.servers if name != OF_H2 or find_spec("h2")]
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        served = prepare("tiny", Path(temporary))
        traffic = Traffic.load(served.traffic)
        messages = [over_grpc.request_bytes(traffic.model, row) for row in traffic.rows]
        running = {DEPLOY_RNN: stack.enter_context(run_deploy_rnn([served.bundle]))}
        running |= {name: start_echo(stack, name) for name in names}
        points: dict[str, list[float]] = {name: [] for name in running}
        for number in range(options.rounds + 1):
            for name, server in running.items():
                seconds = options.seconds if number else WARM_SECONDS
                milliseconds = measure(server, messages, seconds)
                print(name, milliseconds, file=sys.stderr, flush=True)
                if number:
                    points[name].append(milliseconds)
    rows = []
    for name, measured in points.items():
        rows.append({"server": name, "cpu_ms": median(measured), "points": measured})
    header = {"benchmark": "grpc_servers", "calls": CALLS, "versions": versions(PACKAGES)}
    print(grpc_servers_table(publish({**header, "rows": rows}, options.output)))


if __name__ == "__main__":
    main()
