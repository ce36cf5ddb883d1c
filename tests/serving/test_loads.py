"""`Loads`: one load of a name at a time, few in all, and nobody waits for one that hangs."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy_rnn.errors import ClosedError, LoadError
from deploy_rnn.serving.loads import Loads


class Held:
    """Loads that go on when they are told to.

    Attributes:
        begun: names, in the order in which their loads began.
        dropped: names whose loads were no longer wanted at their end.
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.dropped: list[str] = []
        self._changed = threading.Condition()
        self._to_end: list[str] = []

    def load(self, name: str, wanted: Callable[[], bool]) -> None:
        with self._changed:
            self.begun.append(name)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: name in self._to_end, 30)
            self._to_end.remove(name)
            if not wanted():
                self.dropped.append(name)
            self._changed.notify_all()
        if name == "bad":
            raise LoadError("it is bad.")

    def end(self, name: str) -> None:
        with self._changed:
            self._to_end.append(name)
            self._changed.notify_all()

    def wait_for(self, is_true: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(is_true, 30)


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    for name in ("a", "b", "c", "bad"):
        held.end(name)


def test_those_who_ask_during_a_load_share_the_next_one(held: Held) -> None:
    loads = Loads(held.load)
    first = loads.ask("a")
    held.wait_for(lambda: held.begun == ["a"])
    others = [loads.ask("a") for _ in range(20)]
    assert len({id(load) for load in others}) == 1
    assert others[0] is not first
    assert not first.cancel()
    held.end("a")
    assert first.result(30) is None
    held.wait_for(lambda: held.begun == ["a", "a"])
    assert "a" in loads
    assert not others[0].done()
    held.end("a")
    assert others[0].result(30) is None
    assert "a" not in loads
    assert held.begun == ["a", "a"]


def test_one_that_hangs_holds_up_its_own_name_only(held: Held) -> None:
    loads = Loads(held.load, parallel=2)
    hangs = loads.ask("a")
    again = loads.ask("a")
    bad = loads.ask("bad")
    waits = loads.ask("c")
    held.wait_for(lambda: held.begun == ["a", "bad"])
    assert "c" in loads
    held.end("bad")
    with pytest.raises(LoadError, match="it is bad"):
        bad.result(30)
    held.end("c")
    assert waits.result(30) is None
    assert held.begun == ["a", "bad", "c"]
    assert not hangs.done()
    assert not again.done()


def test_a_load_that_is_given_up(held: Held) -> None:
    loads = Loads(held.load)
    futures = [loads.ask("a")]
    held.wait_for(lambda: held.begun == ["a"])
    futures.append(loads.ask("a"))
    loads.give_up("a", LoadError("it was unloaded."))
    for future in futures:
        with pytest.raises(LoadError, match="it was unloaded"):
            future.result(0)
    later = loads.ask("a")
    assert held.begun == ["a"]
    held.end("a")
    held.wait_for(lambda: held.begun == ["a", "a"])
    held.end("a")
    assert later.result(30) is None
    assert held.dropped == ["a"]


def test_nobody_waits_once_it_is_closed(held: Held) -> None:
    loads = Loads(held.load, parallel=1)
    futures = [loads.ask("a"), loads.ask("b")]
    held.wait_for(lambda: held.begun == ["a"])
    loads.close()
    for future in futures:
        with pytest.raises(ClosedError, match="the server stopped before the model was loaded"):
            future.result(0)
    with pytest.raises(ClosedError, match="the server is stopping and loads no more models"):
        loads.ask("c").result(0)
    held.end("a")
    held.wait_for(lambda: held.dropped == ["a"])
    assert held.begun == ["a"]


def test_no_thread_for_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    loads = Loads(lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            loads.ask("a").result(0)
    assert loads.ask("a").result(30) is None
