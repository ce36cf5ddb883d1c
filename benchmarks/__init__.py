"""Every figure that the README and docs state, and the scripts that made it: `python -m benchmarks.run`."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
