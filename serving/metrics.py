"""What Prometheus is told: the statistics of every model when it asks, and the process."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .repository import Repository
from .scheduling.statistics import Statistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds of the histogram of rows in a run."""

# Attribute of `Statistics` -> name and help of the metric.
COUNTERS = {
    "executions": ("executions", "Runs of the model."),
    "rows": ("rows", "Rows that were run."),
    "queue_seconds": ("queue_seconds", "Time that requests waited for their run."),
    "compute_seconds": ("compute_seconds", "Time that requests spent in their run."),
    "steps_real": ("steps_real", "Steps of sequences that were run."),
    "steps_padded": ("steps_padded", "Steps that were run only to fill shorter sequences up."),
}
GAUGES = {
    "queued": ("queued_requests", "Requests that wait for their run."),
    "streams": ("streams", "Streams whose state is held."),
}


class Metrics:
    """The text that `/metrics` answers with."""

    def __init__(self, repository: Repository) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(ModelCollector(repository))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class ModelCollector(Collector):
    """Reads `Model.statistics` when it is asked; nothing is counted twice. Counters start anew with a reload."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Metric]:
        found = {model.name: model.statistics() for model in self._repository.models()}
        yield GaugeMetricFamily(
            "deploy_rnn_ready", "Whether the server takes requests.", float(self._repository.ready())
        )
        yield _requests(found)
        for attribute, (name, text) in COUNTERS.items():
            yield _of_each(CounterMetricFamily(f"deploy_rnn_{name}", text, labels=["model"]), attribute, found)
        for attribute, (name, text) in GAUGES.items():
            yield _of_each(GaugeMetricFamily(f"deploy_rnn_{name}", text, labels=["model"]), attribute, found)
        yield _batch_sizes(found)


def _requests(found: Mapping[str, Statistics]) -> Metric:
    family = CounterMetricFamily("deploy_rnn_requests", "Requests by outcome.", labels=["model", "outcome"])
    for name, statistics in found.items():
        family.add_metric([name, "success"], statistics.successes)
        family.add_metric([name, "failure"], statistics.failures)
    return family


def _of_each(
    family: CounterMetricFamily | GaugeMetricFamily, attribute: str, found: Mapping[str, Statistics]
) -> Metric:
    for name, statistics in found.items():
        family.add_metric([name], getattr(statistics, attribute))
    return family


def _batch_sizes(found: Mapping[str, Statistics]) -> Metric:
    family = HistogramMetricFamily("deploy_rnn_batch_size", "Rows of a run.", labels=["model"])
    for name, statistics in found.items():
        runs = {rows: executions for rows, (executions, _) in statistics.batch_rows.items()}
        within = [(str(bound), sum(n for rows, n in runs.items() if rows <= bound)) for bound in BATCH_SIZES]
        buckets = [*within, ("+Inf", sum(runs.values()))]
        family.add_metric([name], buckets, sum(rows * executions for rows, executions in runs.items()))
    return family
