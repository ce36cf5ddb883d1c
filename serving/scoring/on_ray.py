"""Windows on Ray Data: actors of a cluster answer them, and this process writes the parts. It needs `ray[data]`.

The windows and what is computed of each are those of `workers`, so that the answers have the same bytes.
"""

import json
import logging
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from deploy_rnn.errors import DeployError, RunError
from deploy_rnn.runtime import provider_named

from .formats import open_source
from .rows import Span
from .scorer import Scorer
from .window import Done
from .worker import Setup

MOST_BLOCKS = 5000
"""Ray Data holds a block of windows at a time in each actor, and some milliseconds of work go into each block."""


class WindowActor:
    """Answers windows in a process of the cluster.

    Args:
        setup: what it needs before the first window.
        path: of the input, on the machine of the actor.
        given_format: of the input; None if its name tells.
    """

    def __init__(self, setup: Setup, path: str, given_format: str | None) -> None:
        self._work = setup.make_work()
        self._source = open_source(path, given_format)

    def __call__(self, windows: dict[str, np.ndarray]) -> dict[str, Any]:
        """Answer windows: the fields of a `Span`, an array of each.

        Returns:
            Answers, errors and what there is to tell of each window, as `WindowWork.answer` returns them.
        """
        results: dict[str, Any] = {name: [] for name in ("answers", "errors", "failed", "reasons")}
        columns = [windows[field].tolist() for field in Span._fields]
        for values in zip(*columns, strict=True):
            span = Span(*values)
            answers, errors, done = self._work.answer(span, self._source.fetch(span))
            results["answers"].append(answers)
            results["errors"].append(errors)
            results["failed"].append(done.failed)
            results["reasons"].append(json.dumps(done.reasons))
        return {**windows, **results}


def on_ray(
    path: str,
    given_format: str | None,
    processes: int | None,
    make_setup: Callable[[], Setup],
    scorer: Scorer,
    spans: Iterator[Span],
) -> Generator[Done, None, None]:
    """Answer windows, as they are done, on the cluster at RAY_ADDRESS, or one that is started on this machine.

    Args:
        path, given_format: of the input.
        processes: how many actors; None for one on each core of the cluster.
        make_setup: makes what each actor gets.
        scorer: not used; it is of this process.
        spans: the windows.

    Raises:
        What an actor raised, if it is an error of deploy-rnn; RunError: anything else that Ray met.
    """
    del scorer
    setup = make_setup()
    model = str(Path(setup.options.model).resolve())
    setup = replace(setup, options=replace(setup.options, model=model))
    items = [span._asdict() for span in spans]
    if not items:
        return
    is_ours = not ray.is_initialized()
    if is_ours:
        _start(processes)
    try:
        for row in _windows(setup, path, given_format, items, processes).iter_rows():
            span = Span(*(row[field] for field in Span._fields))
            setup.files.write(span.first, span.rows, row["answers"], row["errors"])
            reasons = [(number, reason) for number, reason in json.loads(row["reasons"])]
            yield Done(span, row["failed"], reasons)
    except ray.exceptions.RayError as error:
        raise _cause(error) from error
    finally:
        if is_ours:
            ray.shutdown()


def _start(processes: int | None) -> None:
    """Start Ray for this process, or connect it to RAY_ADDRESS. By itself Ray takes any that it finds running here."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        options["address"] = address
    else:
        options |= {"address": "local", "include_dashboard": False, "num_cpus": processes}
    ray.init(**options)


def _windows(
    setup: Setup, path: str, given_format: str | None, items: list[Any], processes: int | None
) -> Any:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    count = processes or max(1, int(ray.cluster_resources().get("CPU", 1)))
    on_cores = provider_named(setup.options.provider).uses_cores
    dataset = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS))
    return dataset.map_batches(
        WindowActor,
        fn_constructor_args=(setup, path, given_format),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(count, len(items))),
        num_cpus=1,
        num_gpus=0 if on_cores else 1,
    )


def _cause(error: BaseException) -> DeployError:
    """The error of deploy-rnn that an actor raised; if there is none, one that has what Ray says."""
    cause: BaseException | None = error
    while cause is not None:
        for candidate in (cause, getattr(cause, "cause", None)):
            if isinstance(candidate, DeployError):
                return candidate
        cause = cause.__cause__
    return RunError(f"Ray failed: {error}")
