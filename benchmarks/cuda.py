"""`make cuda OUT=DIR`: everything that needs a GPU, in one command, with a JSON for each part in DIR.

machine.json               GPU, driver, versions
tests.json                 every test marked `cuda`: passed, failed or skipped, with the reason
cuda_configurations.json   benchmarks.studies.cuda_configurations: every layer and form against torch.nn
grid_cuda.json             benchmarks.grid.measure: cuDNN in every precision, onnxruntime with and without CUDA graphs
modules_cuda.json          benchmarks.studies.torch_modules: our networks by themselves against torch.nn
cuda_ways.json             benchmarks.studies.cuda_ways: cuDNN in a graph, recorded launches, files, in every precision

`--parts` runs some of them. Exit code 0 if everything passed; 1 if something failed, or if there is no GPU and so
nothing was checked.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.reporting.machine import describe
from deploy_rnn.runtime import usable_cores


def run_tests(folder: Path) -> bool:
    """Run the marked tests: -> whether some ran and none failed."""
    junit = folder / "tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        *marked_files(),
        "-m",
        "cuda",
        "-p",
        "no:cacheprovider",
        *in_parallel(),
        f"--junit-xml={junit}",
    ]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    rows = [test_row(case) for case in ElementTree.parse(junit).iter("testcase")]
    junit.unlink()
    counts = Counter(row["outcome"] for row in rows)
    write(folder / "tests.json", {"counts": dict(counts), "tests": rows})
    return code == 0 and counts["passed"] > 0


def marked_files() -> list[str]:
    """The test files that need a GPU; the others import packages that a machine with one may not have."""
    files = (ROOT / "tests").rglob("test_*.py")
    return [str(path) for path in sorted(files) if "mark.cuda" in path.read_text(encoding="utf-8")]


def in_parallel() -> list[str]:
    """pytest's options for one process a core, where pytest-xdist is installed; eight share a GPU well."""
    if importlib.util.find_spec("xdist") is None:
        return []
    return [
        "-n",
        str(min(8, usable_cores())),
        "-p",
        "no:benchmark",
    ]  # a plugin that warns of processes


def test_row(case: ElementTree.Element) -> dict[str, Any]:
    """What tests.json says about one test."""
    row: dict[str, Any] = {
        "test": f"{case.get('classname')}::{case.get('name')}",
        "seconds": float(case.get("time", 0)),
        "outcome": "passed",
    }
    # A case that passed has none of these elements.
    for tag, outcome in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
        element = case.find(tag)
        if element is not None:
            row["outcome"] = outcome
            row["reason"] = element.get("message", "")
    return row


STUDIES = {
    "cuda_configurations": ["studies.cuda_configurations"],
    "grid_cuda": ["grid.measure"],
    "modules_cuda": ["studies.torch_modules", "--hidden", "64", "256"],
    "cuda_ways": ["studies.cuda_ways"],
}
"""Name of the JSON -> the module of `benchmarks` that measures it, and its arguments."""


def run_study(folder: Path, name: str) -> bool:
    module, *arguments = STUDIES[name]
    output = (folder / f"{name}.json").resolve()
    command = [
        sys.executable, "-m", f"benchmarks.{module}", *arguments, "--device", "cuda", "--output", str(output),
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(
        json.dumps({"machine": describe(), **content}, indent=2) + "\n", encoding="utf-8"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parts = ["tests", *STUDIES]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    folder = options.folder
    if not torch.cuda.is_available():
        print(
            f"There is no CUDA GPU here (torch {torch.__version__} sees none): nothing was checked.",
            file=sys.stderr,
        )
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "machine.json", {})
    results = {}
    for part in options.parts:
        results[part] = run_tests(folder) if part == "tests" else run_study(folder, part)
    for part, passed in results.items():
        verdict = "ok" if passed else "FAILED"
        print(f"{part}: {verdict}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
