"""`--engine ray`: Ray Data gives the same answers. `make ray` installs Ray and runs this."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy_rnn.serving import score
from deploy_rnn.serving.scoring.window import WindowWork

pytestmark = pytest.mark.ray

RAY_PYTHON = os.environ.get("RAY_PYTHON", sys.executable)
"""The Python of an environment with Ray."""

START_AND_WAIT = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
print("ready", flush=True)
input()
"""


@pytest.fixture
def other_ray() -> Iterator[None]:
    """Someone else's Ray on this machine, which would be taken by anyone who names no address."""
    process = subprocess.Popen(
        [RAY_PYTHON, "-c", START_AND_WAIT],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.communicate("\n", timeout=60)


def environment() -> dict[str, str]:
    """That of a process which names no cluster."""
    others = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**others, "RAY_AUTH_MODE": "disabled"}


@pytest.mark.usefixtures("other_ray")
def test_ray_goes_on_after_a_local_run_and_gives_the_same_bytes(
    bundle: Path,
    rows: list[dict[str, Any]],
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_lines([*rows[:50], *["no"] * 3, *rows[50:]])
    options: dict[str, Any] = {"window": 20, "processes": 1}
    expected = tmp_path / "expected.jsonl"
    score(bundle, path, expected, errors=tmp_path / "expected.errors", **options)
    output = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        write = WindowWork.write

        def interrupt(self: Any, span: Any, *rest: Any) -> Any:
            if span.first == 40:
                raise KeyboardInterrupt
            return write(self, span, *rest)

        patch.setattr(WindowWork, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score(bundle, path, output, **options)
    command = [RAY_PYTHON, "-m", "deploy_rnn", "score", str(bundle), str(path), "-o", str(output)]
    command += ["--errors", str(tmp_path / "errors"), "--window", "20", "--engine", "ray"]
    finished = subprocess.run(
        [*command, "--processes", "2"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert finished.returncode == 3, finished.stderr
    assert "103 rows in " in finished.stderr
    assert "; 40 of them were done before; 3 failed" in finished.stderr
    assert output.read_bytes() == expected.read_bytes()
    assert (tmp_path / "errors").read_bytes() == (tmp_path / "expected.errors").read_bytes()
