"""Models of public packages, sent every way out of PyTorch: `make zoo`. docs/models.md shows what came of it."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "zoo.json"
PAGE = ROOT / "docs" / "models.md"
