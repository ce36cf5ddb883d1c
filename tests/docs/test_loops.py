"""docs/loops.md, followed literally: its code runs, and prints what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/loops.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMPILING = [block for block in BLOCKS if "deploy_rnn.compile(" in block]


def run(source: str, folder: Path) -> list[str]:
    """What the code prints."""
    (folder / "page.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "page.py"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def promised(source: str) -> list[str]:
    return re.findall(r"print\(.*\)  # (\w+)", source)


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    source = "\n".join(block for block in BLOCKS if block not in COMPILING)
    assert run(source, tmp_path) == promised(source)


LOADED = """
packaged = torch._inductor.aoti_load_package("decoder.pt2")
for batch, steps, places in ((3, 9, 4), (2, 6, 5)):
    x, memory = torch.randn(batch, steps, 8), torch.randn(batch, places, 16)
    with torch.no_grad():
        print(torch.allclose(packaged(x, memory), decoder(x, memory), atol=1e-5))
"""


@pytest.mark.slow
def test_the_decoder_compiled_and_packaged(tmp_path: Path) -> None:
    """The package, a loop of one's own in a .pt2 file, also runs at other sizes."""
    (compiling,) = COMPILING
    without_onnx = BLOCKS[0].partition("export_onnx(decoder")[0]
    source = f"{without_onnx}\n{compiling}{LOADED}"
    assert run(source, tmp_path) == [*promised(source), "True", "True"]
