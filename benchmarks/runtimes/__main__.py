"""Run every file in every runtime that is installed: `python -m benchmarks.runtimes [RUNTIME ...]`

Writes benchmarks/results/runtimes.json and docs/runtimes.md. With names, the other runtimes keep their results.
"""

import argparse
import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.reporting.machine import publish
from deploy_rnn.errors import RunError, RuntimeMissingError
from deploy_rnn.export.runtimes.table import ONNXRUNTIME, RUNTIMES, Runtime
from deploy_rnn.files import replace_file

from . import RESULT
from .files import write_files
from .page import load, write_page
from .trials import RuntimeTrials, Trial

OURS = Runtime(
    ONNXRUNTIME, "onnxruntime, CPU", "benchmarks.runtimes.on_onnxruntime", "onnxruntime", ""
)


def main() -> None:
    every = {ONNXRUNTIME: OURS, **RUNTIMES}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtimes", nargs="*", metavar="RUNTIME", help=f"of {', '.join(every)}")
    names = parser.parse_args().runtimes or list(every)
    unknown = sorted(set(names) - every.keys())
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    warnings.filterwarnings("ignore")
    with TemporaryDirectory() as folder:
        print("writing the files, and PyTorch's results ...", flush=True)
        trials = [Trial.of(file) for file in write_files(Path(folder))]
        files = {trial.file.name: trial.facts() for trial in trials}
        results = load()["runtimes"] if RESULT.exists() else {}
        for name in names:
            try:
                results[name] = run_all(every[name], trials)
            except (RuntimeMissingError, RunError) as error:
                print(f"{name} is left out: {error}", flush=True)
                continue
            # After each, since all of them take a quarter of an hour.
            write(files, {known: results[known] for known in every if known in results})


def write(files: dict[str, Any], runtimes: dict[str, Any]) -> None:
    """Write the results, and the page."""
    result = publish({"files": files, "runtimes": runtimes}, None)
    text = json.dumps(result, indent=1) + "\n"
    replace_file(RESULT, lambda new: new.write_text(text, encoding="utf-8"))
    write_page()


def run_all(runtime: Runtime, trials: list[Trial]) -> dict[str, Any]:
    """Every file in one runtime."""
    started = time.perf_counter()
    outcomes = {}
    with RuntimeTrials(runtime) as tried:
        version = tried.version()
        for trial in trials:
            outcomes[trial.file.name] = asdict(tried.run(trial))
    counts = {
        kind: sum(outcome[kind] > 0 for outcome in outcomes.values())
        for kind in ("right", "wrong", "refused")
    }
    print(f"{runtime.title} {version}: {counts}, {time.perf_counter() - started:.0f} s", flush=True)
    return {"title": runtime.title, "version": version, "outcomes": outcomes}


if __name__ == "__main__":
    main()
