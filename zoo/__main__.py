"""`make zoo`: every model in a process of its own; what came of it is kept in benchmarks/results/zoo.json.

A model that is in the file is left alone, so that a run can be stopped and continued; one that is named is run again.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.reporting.machine import describe
from deploy_rnn.files import replace_file

from . import RESULT, ROOT
from .models import MODELS
from .page import write_page

SECONDS = int(os.environ.get("ZOO_SECONDS", "1500"))
"""For one model: minutes of a C++ compiler, on a busy machine."""

CACHE = ROOT / "build" / "zoo-cache"
"""Of the C++ compiler: its precompiled headers take longer than a model."""

LIBRARY = ("deploy_rnn", "export", "serving")
"""Folders whose last commit is written beside each cell."""

MEMORY = 12 * 2**30
"""Bytes of address space of one process."""


QUICK = ("convert", "unrolled", "scan", "native", "auto", "bundle", "Engine", ".pt", "streaming")
SLOW = ("compile", ".pt2")
"""Ways that need the C++ compiler: they come when every model has gone the others."""


def run(name: str, ways: Sequence[str], old: Mapping[str, Any]) -> dict[str, Any]:
    """Send one model these ways; `old`: what is known of it."""
    failure = ""
    commit = library_commit()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cells.json"
        command = [sys.executable, "-m", "zoo.judges", name, str(path), *ways]
        start = time.monotonic()
        try:
            finished = subprocess.run(
                command,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(CACHE)},
                timeout=SECONDS,
                preexec_fn=_limit_memory,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            if finished.returncode:
                failure = (finished.stderr.strip().splitlines() or ["killed"])[-1]
        except subprocess.TimeoutExpired:
            failure = f"TimeoutExpired: it took more than {SECONDS} seconds."
        seconds = round(time.monotonic() - start)
        cells = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if failure:
        print("  ", failure, flush=True)
    missing = [way for way in ways if way not in cells]
    error, _, message = failure.partition(": ")
    cells |= {way: {"goes": False, "error": error, "message": message} for way in missing}
    for cell in cells.values():
        cell["commit"] = commit
    entry = MODELS[name]
    return {
        "package": entry.package,
        "version": version(entry.package),
        "title": entry.title,
        "about": entry.about,
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": old.get("seconds", 0) + seconds,
        "cells": {**old.get("cells", {}), **cells},
    }


def library_commit() -> str:
    """The last commit that changed the library, with a "+" behind it if files were changed since."""
    commit = _git("log", "-1", "--format=%h")
    return f"{commit}+" if _git("status", "--porcelain") else commit


def _git(*command: str) -> str:
    """What git says of the folders of the library."""
    finished = subprocess.run(
        ["git", *command, "--", *LIBRARY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return finished.stdout.strip()


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    unknown = [name for name in sys.argv[1:] if name not in MODELS]
    if unknown:
        sys.exit(f"MODELS has {', '.join(unknown)}; the zoo has {', '.join(MODELS)}.")
    result: dict[str, Any] = {"models": {}}
    if RESULT.exists():
        result = json.loads(RESULT.read_text(encoding="utf-8"))
    models = result["models"]
    for name in sys.argv[1:]:
        models.pop(name, None)
    for ways in (QUICK, SLOW):
        for name in sys.argv[1:] or MODELS:
            old = models.get(name, {})
            missing = [way for way in ways if way not in old.get("cells", {})]
            if missing:
                print(name, flush=True)
                models[name] = run(name, missing, old)
                _write(result)


def _write(result: dict[str, Any]) -> None:
    models = result["models"]
    # In the order of models.py, without those that are no longer there.
    ordered = {name: models[name] for name in MODELS if name in models}
    text = json.dumps({"machine": describe(), "models": ordered}, indent=1) + "\n"
    replace_file(RESULT, lambda new: new.write_text(text, encoding="utf-8"))
    write_page()


if __name__ == "__main__":
    main()
