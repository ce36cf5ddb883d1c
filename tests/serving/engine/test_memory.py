"""A rare very long request does not leave its memory behind."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
import numpy as np
from deploy_rnn.serving import Engine

def megabytes(which):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) / 1024

engine = Engine(sys.argv[1], threads=1)
short, long = np.zeros((8, 50), np.int64), np.zeros((32, 8000), np.int64)
for _ in range(3):
    engine.run({"tokens": short})
before = megabytes("VmRSS")
engine.run({"tokens": long})
print(megabytes("VmHWM") - before, megabytes("VmRSS") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_after_a_very_long_request(padded: Path) -> None:
    printed = subprocess.check_output([sys.executable, "-c", CODE, padded], text=True)
    needed, kept = map(float, printed.split())
    assert needed > 80
    assert kept < needed / 3
