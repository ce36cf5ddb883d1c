"""The dashboard and the alerts in deploy/: against the metrics, and in a real Prometheus that scrapes a real server.

`make prometheus` installs Prometheus and runs all of these; those of the marker `prometheus` need it.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy_rnn.serving.metrics import Metrics
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.scheduling.model import Model
from deploy_rnn.serving.server import Server

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "deploy-rnn.json").read_text(encoding="utf-8"))

PROMETHEUS = os.environ.get("PROMETHEUS", "prometheus")
PROMTOOL = os.environ.get("PROMTOOL", "promtool")

# Grafana puts these into a query.
VARIABLES = {"$__rate_interval": "1m", "$job": "deploy-rnn", "$model": ".*"}

TOKENS = {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 3]}]}

SCRAPE_SECONDS = 1

needs_prometheus = pytest.mark.prometheus


def panel_queries() -> list[tuple[str, str]]:
    """The title of each panel with a query, and the query as Grafana sends it."""
    found = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            found.append((panel["title"], query))
    return found


def alert_queries() -> list[tuple[str, str]]:
    """The name of each alert, and its expression as one that is 0 or 1, whether or not it is at fault."""
    found = []
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            value, comparison, limit = re.split(r" ([<>]) (?=[\d.]+$)", rule["expr"])
            found.append((rule["alert"], f"{value} {comparison} bool {limit}"))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="a process tells its files and memory on Linux")
@pytest.mark.parametrize("queries", [panel_queries(), alert_queries()])
def test_every_metric_exists(queries: list[tuple[str, str]], repository: Repository) -> None:
    text = Metrics(repository).text().decode()
    names = set(re.findall(r"^(\w+)[{ ]", text, re.MULTILINE)) | {"up"}
    assert queries
    for title, query in queries:
        metrics = set(re.findall(r"\b(?:deploy_rnn_|process_)\w+|\bup\b", query))
        assert metrics, title
        assert metrics <= names, (title, metrics - names)


def test_the_dashboard_has_what_grafana_needs() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = re.findall(r"\$\{?(\w+)", json.dumps(panels))
    assert set(used) == variables | {"__rate_interval"}


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "alerts.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ],
)
def test_promtool_passes(arguments: list[str]) -> None:
    command = [PROMTOOL, *arguments]
    result = subprocess.run(command, cwd=ALERTS.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SUCCESS" in result.stdout


@needs_prometheus
@pytest.mark.parametrize("alert", [name for name, _ in alert_queries()])
def test_an_alert_that_never_fires_is_seen(alert: str, tmp_path: Path) -> None:
    """The tests of the rules fail for each alert whose limit is another."""
    rules = ALERTS.read_text(encoding="utf-8")
    start = rules.index(f"alert: {alert}\n")
    spoilt = re.sub(r"([<>]) [\d.]+$", r"\1 -1", rules[start:], count=1, flags=re.MULTILINE)
    (tmp_path / "alerts.yml").write_text(rules[:start] + spoilt, encoding="utf-8")
    shutil.copy(ALERTS.parent / "alerts_test.yml", tmp_path)
    command = [PROMTOOL, "test", "rules", "alerts_test.yml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1, result.stdout + result.stderr


class Prometheus:
    """A running Prometheus."""

    def __init__(self, address: str, log: Path) -> None:
        self._client = httpx.Client(base_url=f"http://{address}/api/v1", timeout=30)
        self._log = log

    def query(self, query: str) -> list[dict[str, Any]]:
        """The series of a query now."""
        answer = self._client.get("/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def alerts(self) -> set[str]:
        """The names of all alerts that it has read."""
        groups = self._client.get("/rules").json()["data"]["groups"]
        return {
            rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "ok"
        }

    def is_up(self) -> bool:
        try:
            return self._client.get("/query", params={"query": "1"}).status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._client.close()

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(is_true: Any, what: Any) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Prometheus with the configuration in deploy/, but for the address and the seconds between two scrapes."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    every = f"{SCRAPE_SECONDS}s"
    config["global"] = {"scrape_interval": every, "evaluation_interval": every}
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    shutil.copy(ALERTS, folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    log = folder / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=stderr, stderr=stderr) as process,
    ):
        prometheus = Prometheus(address, log)
        try:
            wait_until(prometheus.is_up, prometheus.log)
            yield prometheus
        finally:
            prometheus.close()
            process.kill()


@pytest.fixture(scope="module")
def real_server(real_bundles: Path, run_server: Any) -> Iterator[Server]:
    repository = Repository(real_bundles, lambda path, name: Model(path, name=name))
    repository.load_all()
    with run_server(repository) as server:
        yield server


@contextmanager
def under_load(server: Server) -> Iterator[None]:
    """Requests, one after another, of which some are bad."""
    stop = threading.Event()
    url = f"http://{server.http_address}/v2/models/tagger/infer"

    def ask() -> None:
        with httpx.Client() as client:
            while not stop.wait(0.02):
                assert client.post(url, json=TOKENS).status_code == 200
                assert client.post(url, json={}).status_code == 400

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@needs_prometheus
def test_a_real_prometheus_answers_every_query(real_server: Server, tmp_path: Path) -> None:
    """Each has a series with a number for the model that is asked, or for the process."""
    unanswered = dict([*panel_queries(), *alert_queries()])
    queries = [*panel_queries(), *alert_queries()]

    with (
        running_prometheus(tmp_path, real_server.http_address) as prometheus,
        under_load(real_server),
    ):

        def all_are_answered() -> bool:
            unanswered.clear()
            for title, query in queries:
                series = prometheus.query(query)
                values = [
                    one["value"][1]
                    for one in series
                    if one["metric"].get("model", "tagger") == "tagger"
                ]
                if not values or "NaN" in values:
                    unanswered[title] = query
            return not unanswered

        wait_until(all_are_answered, lambda: unanswered)
        assert prometheus.alerts() == {name for name, _ in alert_queries()}
        (ready,) = prometheus.query("deploy_rnn_ready")
        assert ready["metric"]["job"] == "deploy-rnn"
        (rows,) = prometheus.query('deploy_rnn_rows_total{model="tagger"}')
        assert float(rows["value"][1]) > 0
