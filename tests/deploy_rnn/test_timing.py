"""`timing.compare`: blocks that take turns, with warm-up calls that do not count."""

import pytest

from deploy_rnn import timing


def test_blocks_take_turns_and_every_call_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: made.append("pause"))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    contestants = {"a": lambda: made.append("a"), "b": lambda: made.append("b")}
    found = timing.compare(contestants, rounds=2, calls=3, warm_up=1)
    a, b = ["pause"] + ["a"] * 4, ["pause"] + ["b"] * 4
    assert made == [*a, *b, *b, *a]
    assert found == {name: timing.Timing(1.0, 1.0, 1.0) for name in "ab"}
