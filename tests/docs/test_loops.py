"""docs/loops.md, followed literally but for what compiles: its code runs, and prints what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/loops.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    # Compiling takes a minute.
    source = "\n".join(block for block in blocks if "deploy_rnn.compile(" not in block)
    (tmp_path / "page.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "page.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == re.findall(r"print\(.*\)  # (\w+)", source)
