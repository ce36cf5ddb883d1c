"""The benchmark of servers counts what it should count. What it measures is not tested."""

import asyncio
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.reporting import serving_tables
from benchmarks.serving import contestants, ladder, load, over_grpc, over_http, serve, sketch_server
from benchmarks.serving.models import Served
from benchmarks.serving.traffic import FailedError, Traffic, difference, draw_rows
from benchmarks.serving.triton import Installation
from deploy_rnn.serving.grpc.messages import CLASSES

LABELS = 3
MACHINE = {"cpu": "a", "cores": 2, "python": "1"}


def make_traffic() -> Traffic:
    rows = draw_rows(8, longest=5, symbols=9)
    answers = [np.ones((1, row.shape[1], LABELS), np.float32) for row in rows]
    return Traffic("tiny", rows, answers)


class PlantedServer:
    """Stands for the runners and the model of the sketch; every fourth answer is off by 0.01, every fifth an error."""

    takes_lengths = True

    def __init__(self) -> None:
        self.jobs = 0

    def add(self, job: sketch_server.Job) -> None:
        self.jobs += 1
        scores = np.ones((1, len(job.row), LABELS), np.float32)
        if self.jobs % 5 == 0:
            job.connection._transport.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")
            return
        if self.jobs % 4 == 0:
            scores[0, -1, 0] += 0.01
        job.connection.answer(scores)


def run_load(drive: Callable[[load.Load, int], Any]) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        planted: Any = PlantedServer()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: sketch_server.Connection({"tiny": planted}, planted), "127.0.0.1", 0
        )
        async with server:
            traffic_load = load.Load("http", [make_traffic()])
            await drive(traffic_load, server.sockets[0].getsockname()[1])
            report = traffic_load.report()
            traffic_load.close()
        return report

    return asyncio.run(run())


def test_wrong_answers_and_errors_are_counted() -> None:
    report = run_load(lambda load, port: load.run_closed([port], 1, 0.1))
    sent = report["sent"]
    assert sent > 20
    assert report["failed"] == sent // 5
    assert report["wrong"] == sent // 4 - sent // 20
    assert report["right"] == sent - report["failed"] - report["wrong"]
    assert report["difference"] == pytest.approx(0.01 / (2 * 1e-3), rel=1e-3)
    assert report["error"] == "HTTP/1.1 503 Busy: busy"


def test_requests_are_sent_at_the_rate_whether_or_not_they_are_answered() -> None:
    report = run_load(lambda load, port: load.run([port], 500, 0.4))
    assert report["sent"] == pytest.approx(200, abs=60)
    assert not report["overrun"]
    assert report["p50"] > 0
    assert report["models"]["tiny"]["p99"] == report["p99"]


def test_answers_that_never_come_are_lost_and_stop_the_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PlantedServer, "add", lambda self, job: None)
    monkeypatch.setattr(load, "MAX_WAITING", 10)
    monkeypatch.setattr(load, "LAST_ANSWERS_SECONDS", 0.02)
    report = run_load(lambda load, port: load.run([port], 1000, 0.1))
    assert (report["sent"], report["lost"], report["overrun"]) == (10, 10, True)


def test_an_answer_is_compared_in_shape_and_in_every_score() -> None:
    expected = np.ones((1, 4, 2), np.float32)
    assert difference(expected, expected) == 0
    assert difference(expected[:, :3], expected) == np.inf
    assert difference(np.full_like(expected, np.nan), expected) == np.inf
    assert difference(expected + 0.0019, expected) < 1 < difference(expected + 0.0021, expected)


def test_percentiles_run_from_when_a_request_was_due() -> None:
    calls = [load.Call(0, 0, due=1.0, done=1.0 + ms / 1e3) for ms in range(101)]
    assert load.percentiles(calls) == pytest.approx({"p50": 50, "p95": 95, "p99": 99})
    assert load.percentiles([]) == {}


def test_traffic_is_kept_in_a_file(tmp_path: Path) -> None:
    traffic = make_traffic()
    traffic.save(tmp_path / "traffic.npz")
    kept = Traffic.load(tmp_path / "traffic.npz")
    assert kept.model == "tiny"
    for name in ("rows", "answers"):
        for before, after in zip(getattr(traffic, name), getattr(kept, name), strict=True):
            np.testing.assert_array_equal(before, after)


def test_an_answer_over_grpc_is_read() -> None:
    message = CLASSES["ModelInferResponse"](model_name="tiny")
    message.outputs.add(name="output", datatype="FP32", shape=[1, 2, 1])
    message.raw_output_contents.append(np.array([3, 4], np.float32).tobytes())
    answer = over_grpc.read_answer(bytes(5) + message.SerializeToString())
    assert answer.tolist() == [[[3], [4]]]
    with pytest.raises(FailedError, match="without a message"):
        over_grpc.read_answer(b"")


def test_an_answer_in_several_pieces_is_one_answer() -> None:
    answers: list[tuple[int, bytes | None]] = []
    client = over_http.Client(lambda call, answer: answers.append((call, answer)))
    connection = over_http.Connection(client)
    connection.call = 7
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd"
    for start in range(0, len(whole), 5):
        connection.data_received(whole[start : start + 5])
    assert answers == [(7, whole)]


def make_point(rate: float, **changes: Any) -> dict[str, Any]:
    point = {"rate": rate, "sent": 100, "right": 100, "wrong": 0, "overrun": False, "p99": 20.0}
    point |= {"p50": 5.0, "p95": 10.0, "load_cpu": 0.1, "server_cpu": 0.2, "seconds": 1.0}
    return {**point, **changes}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"right": 99, "wrong": 1}, False),
        ({"right": 99}, False),
        ({"overrun": True}, False),
        ({"p99": 251.0}, False),
        ({"sent": 0, "right": 0}, False),
    ],
)
def test_a_rate_is_kept_up_if_all_answers_are_right_and_in_time(
    changes: dict[str, Any], kept: bool
) -> None:
    assert ladder.kept_up(make_point(100, **changes)) is kept


def server_of(capacity: float, rates: list[float]) -> Callable[[float], dict[str, Any]]:
    """A server that keeps up with `capacity` requests a second; `rates` gets those that were tried."""

    def measure(rate: float) -> dict[str, Any]:
        rates.append(rate)
        return make_point(rate, p99=20.0 if rate <= capacity else 900.0)

    return measure


@pytest.mark.parametrize("capacity", [200, 640, 899, 1300, 2600])
def test_the_capacity_is_found_within_its_precision(capacity: float) -> None:
    found = ladder.climb(server_of(capacity, []), ladder.RATES, search=True)["capacity"]
    assert capacity / ladder.PRECISION <= found <= capacity


def test_a_rate_that_is_too_much_is_tried_twice_and_ends_the_climb() -> None:
    rates: list[float] = []
    climbed = ladder.climb(server_of(450, rates), ladder.RATES, search=False)
    assert rates == [200, 400, 550, 550]
    assert [point["rate"] for point in climbed["points"]] == [200, 400, 550]
    assert climbed["capacity"] == 400
    assert ladder.climb(server_of(100, []), ladder.RATES, search=True)["capacity"] == 0


def make_result(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "rates": [200.0, 400.0], "rows": list(rows), "run_ms": 0.05, "machine": MACHINE,
        "triton": {"nvidia-pytriton": "0.7.0"},
    }  # fmt: skip


def make_row(contestant: str, capacity: float, p99: float) -> dict[str, Any]:
    points = [make_point(rate, p99=p99) for rate in (200.0, 400.0)]
    return {
        "contestant": contestant, "protocol": "http", "points": points, "search": [], "capacity": capacity,
    }  # fmt: skip


def test_the_line_of_the_readme_names_the_peers_that_ran() -> None:
    rows = [make_row(contestants.DEPLOY_RNN, 800, 30), make_row(contestants.PLAIN, 300, 30)]
    words = serving_tables.serving_in_words(make_result(*rows))
    assert "keeps up with 800 requests a second on 2 cores" in words
    assert "the load shares (p99 at 400: 30 ms)" in words
    assert words.endswith("per request, with 300.")
    assert "Triton" not in words
    with_triton = make_result(*rows, make_row(contestants.TRITON, 400, 30))
    triton_words = "in its Python backend, with 400 (p99 at 400: 30 ms);"
    assert triton_words in serving_tables.serving_in_words(with_triton)


def test_a_missing_contestant_and_a_wrong_answer_are_in_the_table() -> None:
    row = make_row(contestants.DEPLOY_RNN, 200, 30)
    row["search"] = [make_point(300, right=98, wrong=2)]
    missing = {"contestant": contestants.TRITON, "missing": "no wheel"}
    table = serving_tables.ladder_table(make_result(row, missing))
    assert "| deploy-rnn serve, HTTP | 200 | 5.0 / 10.0 / 30.0 | not kept up |" in table
    assert "Triton, Python backend is left out: no wheel." in table
    assert "300 answers were compared with PyTorch's; 2 differed." in table
    assert serve.count_wrong(make_result(row, missing)) == 2


def test_goals_are_met_or_not_by_the_figures() -> None:
    ours = make_row(contestants.DEPLOY_RNN, 800, 30)
    triton = make_row(contestants.TRITON, 400, 25)
    cpu_row = {**ours, "points": [make_point(0, server_cpu=0.030)]}
    results = {"lengths": make_result(ours, triton), "cpu": make_result(cpu_row)}
    table = serving_tables.goals_table(results)
    assert (
        "| p99 against Triton's, lengths, HTTP | <= 1x at every rate | 1.20x at 400/s | **no** |"
        in table
    )
    assert "| capacity against Triton's, lengths, HTTP | >= 1.8x | 2.00x | yes |" in table
    assert "| CPU of a request above the run, HTTP | <= 0.35 ms | 0.25 ms | yes |" in table


def test_the_tables_name_the_contestants_as_the_benchmark_does() -> None:
    assert serving_tables.OURS == contestants.DEPLOY_RNN
    assert serving_tables.TRITON == contestants.TRITON
    assert serving_tables.PLAIN == contestants.PLAIN


def test_without_its_environment_triton_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make serving-bench"):
        Installation(tmp_path / "absent")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_the_processor_time_of_a_session_is_that_of_its_processes() -> None:
    running = contestants.Running({}, os.getsid(0))
    before = running.cpu_seconds()
    total = sum(range(4_000_000))
    assert total > 0
    assert running.cpu_seconds() - before >= 0.02
    assert contestants.Running({}, 2**22 + 1).cpu_seconds() == 0


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('no such model')", "has ended at its start: no such model"),
        ("print('HTTP on http://127.0.0.1:1, no gRPC')", "the load failed: .*Connect call failed"),
    ],
)
def test_a_contestant_that_ends_is_left_out_and_says_why(
    program: str, reason: str, plan: serve.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(bundles: Sequence[Path]) -> Any:
        return contestants._printing_ports([sys.executable, "-c", program])

    monkeypatch.setitem(serve.CONTESTANTS, "plain", contestants.Contestant("broken", run))
    traffic = plan.files / "traffic.npz"
    make_traffic().save(traffic)
    served = [Served("tiny", plan.files / "tiny", traffic)]
    plain_plan = replace(plan, contestants=["plain"])
    (row,) = serve.measure_contestants(plain_plan, served, lambda running, protocol: {})
    assert re.search(reason, row["missing"])


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> serve.Plan:
    return serve.Plan(
        contestants=["deploy-rnn", "sketch"], protocols=contestants.PROTOCOLS, rates=[50.0],
        models_rates=[50.0], search=False, seconds=0.3, requests=0, files=tmp_path_factory.mktemp("files"),
    )  # fmt: skip


def test_our_server_and_the_sketch_are_measured_and_right(
    plan: serve.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "WARM_SECONDS", 0.1)
    monkeypatch.setattr(serve, "REST_SECONDS", 0)
    result = serve.PARTS["cpu"](plan)
    rows: Sequence[dict[str, Any]] = result["rows"]
    assert [(row["contestant"], row["protocol"]) for row in rows] == [
        (contestants.DEPLOY_RNN, "http"), (contestants.DEPLOY_RNN, "grpc"), (contestants.SKETCH, "http"),
    ]  # fmt: skip
    for row in rows:
        (point,) = row["points"]
        assert point["right"] == point["sent"] > 5, point
        assert point["server_cpu"] > 0
    assert "| deploy-rnn serve, gRPC |" in serving_tables.cpu_table(
        {**result, "machine": MACHINE, "triton": {}}
    )
