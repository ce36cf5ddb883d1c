"""The metrics for Prometheus: the statistics of every model, read when they are requested, and the process."""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .repository import Repository
from .scheduling.statistics import DURATION_BOUNDS, REASONS, Durations, Statistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds of the histogram of rows in a run."""

UNREADABLE = "unreadable"
"""The reason of failures that no model has seen: a body that is not a request of the protocol."""

# Attribute of `Statistics` -> name and help of the metric.
COUNTERS = {
    "executions": ("executions", "Runs of the model."),
    "rows": ("rows", "Rows that were run."),
    "queue_seconds": ("queue_seconds", "Time that requests waited for their run."),
    "compute_seconds": ("compute_seconds", "Time that requests spent in their run."),
    "steps_real": ("steps_real", "Steps of sequences that were run."),
    "steps_padded": ("steps_padded", "Steps that were run only to fill shorter sequences up."),
}
# Histograms of the requests that were answered.
DURATIONS = {
    "queue_durations": ("queue_duration_seconds", "Time that a request waited for its run."),
    "run_durations": ("run_duration_seconds", "Time of the run of a request."),
    "request_durations": (
        "request_duration_seconds",
        "Time from when the model accepted a request to the end of its run.",
    ),
}
# Those of models that were replaced count, too.
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
    """Reads `ServedModel.statistics` when Prometheus asks; nothing is counted twice. A reload resets the counters."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Metric]:
        statistics = {model.name: model.statistics() for model in self._repository.models()}
        ready = float(self._repository.ready())
        yield GaugeMetricFamily("deploy_rnn_ready", "Whether the server takes requests.", ready)
        yield _requests(statistics)
        yield _failures(statistics, self._repository.unreadable())
        for attribute, (name, text) in COUNTERS.items():
            counter = CounterMetricFamily(f"deploy_rnn_{name}", text, labels=["model"])
            yield _with_values(counter, attribute, statistics)
        yield _batch_sizes(statistics)
        for attribute, (name, text) in DURATIONS.items():
            histogram = HistogramMetricFamily(f"deploy_rnn_{name}", text, labels=["model"])
            yield _with_durations(histogram, attribute, statistics)
        yield from self._gauges(statistics)

    def _gauges(self, statistics: Mapping[str, Statistics]) -> Iterator[Metric]:
        """What is held now: by the models that answer, `statistics`, and by those that they replaced."""
        held = {name: [snapshot] for name, snapshot in statistics.items()}
        replaced = GaugeMetricFamily(
            "deploy_rnn_replaced_models",
            "Models that were replaced or unloaded, and hold streams or answer what they accepted.",
            labels=["model"],
        )
        for name, models in self._repository.replaced().items():
            if models:
                held.setdefault(name, []).extend(model.statistics() for model in models)
            if name in held:
                replaced.add_metric([name], len(models))
        yield replaced
        for attribute, (metric, text) in GAUGES.items():
            gauge = GaugeMetricFamily(f"deploy_rnn_{metric}", text, labels=["model"])
            for name, snapshots in held.items():
                gauge.add_metric([name], sum(getattr(each, attribute) for each in snapshots))
            yield gauge


def _requests(statistics: Mapping[str, Statistics]) -> Metric:
    family = CounterMetricFamily(
        "deploy_rnn_requests", "Requests by outcome.", labels=["model", "outcome"]
    )
    for name, snapshot in statistics.items():
        family.add_metric([name, "success"], snapshot.successes)
        family.add_metric([name, "failure"], snapshot.failures)
    return family


def _failures(statistics: Mapping[str, Statistics], unreadable: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(
        "deploy_rnn_failures", "Requests that failed, by reason.", labels=["model", "reason"]
    )
    for name, snapshot in statistics.items():
        # A counter that is there before its first failure shows that one, too, as an increase.
        for reason in REASONS:
            family.add_metric([name, reason], snapshot.failure_reasons.get(reason, 0))
    for name, count in unreadable.items():
        family.add_metric([name, UNREADABLE], count)
    return family


def _with_values(
    family: CounterMetricFamily,
    attribute: str,
    statistics: Mapping[str, Statistics],
) -> Metric:
    for name, snapshot in statistics.items():
        family.add_metric([name], getattr(snapshot, attribute))
    return family


def _with_durations(
    family: HistogramMetricFamily,
    attribute: str,
    statistics: Mapping[str, Statistics],
) -> Metric:
    bounds = [*map(str, DURATION_BOUNDS), "+Inf"]
    for name, snapshot in statistics.items():
        durations: Durations = getattr(snapshot, attribute)
        # Prometheus wants the number of requests up to each bound, not between bounds.
        cumulative_counts = accumulate(durations.counts)
        buckets = list(zip(bounds, cumulative_counts, strict=True))
        family.add_metric([name], buckets, durations.seconds)
    return family


def _batch_sizes(statistics: Mapping[str, Statistics]) -> Metric:
    """The histogram of rows in a run; Prometheus wants the number of runs up to each bound, not between bounds."""
    family = HistogramMetricFamily("deploy_rnn_batch_size", "Rows of a run.", labels=["model"])
    for name, snapshot in statistics.items():
        runs = {rows: count for rows, (count, _) in snapshot.batch_rows.items()}
        buckets = []
        for bound in BATCH_SIZES:
            within = sum(count for rows, count in runs.items() if rows <= bound)
            buckets.append((str(bound), within))
        buckets.append(("+Inf", sum(runs.values())))
        all_rows = sum(rows * count for rows, count in runs.items())
        family.add_metric([name], buckets, all_rows)
    return family
