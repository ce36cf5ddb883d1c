"""A score that was killed goes on: nothing is lost, nothing is done twice, and the output has the same bytes."""

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy_rnn.errors import InputError, RunError
from deploy_rnn.serving import score
from deploy_rnn.serving.scoring import workers
from deploy_rnn.serving.scoring.parts import Parts
from deploy_rnn.serving.scoring.window import WindowWork

Rows = list[dict[str, Any]]

KILLED = """
import os, signal, sys
from deploy_rnn.serving import score

model, rows, output, processes, call, count = sys.argv[1:]
left = int(count)
real = getattr(os, call)

def kill_at_last(*args, **options):
    global left
    left -= 1
    if left < 0 or str(args[-1]) == output:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)

output = os.path.realpath(output)
setattr(os, call, kill_at_last)
score(model, rows, output, errors=output + ".errors", window=5, processes=int(processes))
"""
"""Kills itself in its last call of `os.fsync`, with a part half written, or of `os.replace`, before it is moved; at the
latest before the output is moved to its place."""


@pytest.fixture
def mixed(rows: Rows, write_lines: Callable[..., Path]) -> Path:
    """90 good rows and 10 bad ones."""
    return write_lines([*rows[:45], *["no"] * 10, *rows[45:90]])


def test_after_kill_9_at_any_point_the_output_is_that_of_an_undisturbed_run(
    bundle: Path, mixed: Path, tmp_path: Path
) -> None:
    expected = tmp_path / "expected.jsonl"
    score(bundle, mixed, expected, errors=tmp_path / "errors", window=5, processes=1)
    output = tmp_path / "answers.jsonl"
    choose = random.Random(5)
    points = [("fsync", choose.randint(3, 9)), ("replace", choose.randint(3, 9)), ("replace", 99)]
    for call, count in points:
        command = [sys.executable, "-c", KILLED, str(bundle), str(mixed), str(output), "1"]
        killed = subprocess.run([*command, call, str(count)], check=False)
        assert killed.returncode == -9
        assert not output.exists()
    report = score(bundle, mixed, output, errors=f"{output}.errors", window=5, processes=1)
    assert output.read_bytes() == expected.read_bytes()
    assert Path(f"{output}.errors").read_bytes() == (tmp_path / "errors").read_bytes()
    assert (report.rows, report.failed) == (100, 10)
    assert report.resumed > 0
    assert not (tmp_path / "answers.jsonl.parts").exists()


def test_what_is_done_is_not_done_again(
    bundle: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    write = WindowWork.write

    def fail_at_sixty(self: Any, span: Any, *rest: Any) -> Any:
        if span.first == 60 and 60 not in answered:
            answered.append(60)
            raise KeyboardInterrupt
        answered.append(span.first)
        return write(self, span, *rest)

    monkeypatch.setattr(WindowWork, "write", fail_at_sixty)
    output = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score(bundle, mixed, output, window=20, processes=1)
    report = score(bundle, mixed, output, window=20, processes=1)
    assert answered == [0, 20, 40, 60, 60, 80]
    assert (report.rows, report.failed, report.resumed) == (100, 10, 60)


@pytest.fixture
def begun(bundle: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a score that was interrupted after a window."""

    def interrupt(self: Any, *arguments: Any) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score(bundle, mixed, output, window=50, processes=1)
    return output


def test_another_input_model_or_option_is_refused(
    bundle: Path,
    begun: Path,
    mixed: Path,
    rows: Rows,
    write_lines: Callable[..., Path],
    tmp_path: Path,
) -> None:
    parts = str(tmp_path / "answers.jsonl.parts")
    other = write_lines(rows, "other.jsonl")
    with pytest.raises(InputError) as raised:
        score(bundle, other, begun, window=50, processes=1)
    assert str(raised.value).startswith(f"{parts!r} has parts of another score: `input` was ")
    assert str(raised.value).endswith("or restart (--restart), which drops these parts.")
    with pytest.raises(InputError, match=r"another score: `window` was 50 and is 40\. Give"):
        score(bundle, mixed, begun, window=40, processes=1)
    with pytest.raises(InputError, match=r"another score: `outputs` was null and is \[\"marks\"\]"):
        score(bundle, mixed, begun, window=50, outputs=["marks"], processes=1)
    # One number more, in a file of the same size and time.
    stat = mixed.stat()
    mixed.write_bytes(mixed.read_bytes().replace(b"no\n", b"on\n"))
    os.utime(mixed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(InputError, match="another score: `input` was "):
        score(bundle, mixed, begun, window=50, processes=1)
    report = score(bundle, mixed, begun, window=50, processes=1, restart=True)
    assert (report.resumed, begun.exists()) == (0, True)


def test_two_at_once_are_refused(bundle: Path, begun: Path, mixed: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    folder = tmp_path / "answers.jsonl.parts"
    identity = json.loads((folder / "journal.json").read_text(encoding="utf-8"))
    held = Parts.open(folder, identity, ".jsonl", restart=False)
    with pytest.raises(InputError, match="another process is at work in"):
        score(bundle, mixed, begun, window=50, processes=1)
    held.close()
    score(bundle, mixed, begun, window=50, processes=1)


def test_parts_of_an_earlier_score_are_not_taken_for_those_of_this_one(tmp_path: Path) -> None:
    """A process of a score that was killed may write its part after another has begun."""
    folder = tmp_path / "parts"
    old = Parts.open(folder, {"input": "a"}, ".jsonl", restart=False)
    old.close()
    new = Parts.open(folder, {"input": "b"}, ".jsonl", restart=True)
    old.files.write(0, 5, b"old", b"")
    assert new.files.done() == {}
    part = new.files.write(0, 5, b"new", b"")
    assert new.files.done() == {0: part}
    new.close()


def test_a_journal_that_is_none_is_refused(bundle: Path, mixed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "answers.jsonl.parts"
    folder.mkdir()
    (folder / "journal.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is not a journal of a score; give another output"):
        score(bundle, mixed, tmp_path / "answers.jsonl")


def test_files_of_others_are_left_alone(bundle: Path, mixed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "answers.jsonl.parts"
    folder.mkdir()
    (folder / "thesis.txt").touch()
    for restart in (False, True):
        with pytest.raises(InputError, match=r"has 'thesis\.txt', which is not of a score; give"):
            score(bundle, mixed, tmp_path / "answers.jsonl", restart=restart)
    assert (folder / "thesis.txt").exists()


def test_a_stream_is_not_gone_on_with(
    bundle: Path, begun: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are the parts of a file dropped for it, or left behind by it."""

    def stream() -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(mixed.read_bytes())))

    stream()
    with pytest.raises(InputError, match="another score: `input` was "):
        score(bundle, "-", begun, window=50, processes=1)
    with monkeypatch.context() as patch:

        def interrupt(self: Any, *arguments: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(Parts, "join", interrupt)
        stream()
        with pytest.raises(KeyboardInterrupt):
            score(bundle, "-", tmp_path / "other.jsonl", processes=1)
    assert not (tmp_path / "other.jsonl.parts").exists()
    stream()
    assert score(bundle, "-", tmp_path / "other.jsonl", processes=1).resumed == 0


def test_a_process_that_is_killed_is_named_and_the_score_goes_on(
    bundle: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = workers._start

    def start_and_kill() -> Any:
        process = start()
        process.kill()
        process.wait()
        return process

    monkeypatch.setattr(workers, "_start", start_and_kill)
    with pytest.raises(RunError, match="ended with signal 9 while it opened the model; if the"):
        score(bundle, mixed, tmp_path / "answers.jsonl", window=20, processes=2)
    monkeypatch.setattr(workers, "_start", start)
    report = score(bundle, mixed, tmp_path / "answers.jsonl", window=20, processes=1)
    assert report.rows == 100
