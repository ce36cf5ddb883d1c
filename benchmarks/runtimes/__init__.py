"""Which runtime takes which file: `make runtimes-table` runs every one; docs/runtimes.md has the table."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "runtimes.json"
PAGE = ROOT / "docs" / "runtimes.md"
