"""`timing.compare`: blocks that take turns, with warm-up calls that do not count."""

import pytest

from deploy_rnn import timing


def test_blocks_take_turns_and_every_call_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: events.append("pause"))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    contestants = {"a": lambda: events.append("a"), "b": lambda: events.append("b")}
    timings = timing.compare(contestants, rounds=2, calls=3, warm_up=1)
    a, b = ["pause"] + ["a"] * 4, ["pause"] + ["b"] * 4
    assert events == [*a, *b, *b, *a]
    assert timings == {name: timing.Timing(1.0, 1.0, 1.0) for name in "ab"}


@pytest.mark.parametrize(
    ("seconds", "best"), [([0.1, 0.05, 0.2, 0.01], 0.05), ([0.4, 0.3, 0.1], 0.3), ([0.6, 0.1], 0.6)]
)
def test_the_quickest_of_three_unless_they_take_long(seconds: list[float], best: float) -> None:
    now, left = [0.0], iter(seconds)

    def call() -> None:
        now[0] += next(left)

    assert timing.quickest(call, lambda: now[0]) == pytest.approx(best)
