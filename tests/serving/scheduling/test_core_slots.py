"""`CoreSlots`: a run has one core, or all; they are given in the order in which they are asked for."""

import threading
import time
from collections.abc import Callable

from deploy_rnn.serving.scheduling.core_slots import CoreSlots


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_as_many_runs_at_a_time_as_there_are_cores() -> None:
    cores = CoreSlots(2)
    with cores.taken() as first:
        with cores.taken() as second:
            assert not cores.widen(first)
            third = threading.Thread(target=lambda: cores.taken().__enter__())
            third.start()
            wait_until(lambda: len(cores._waiting) == 1)
            assert (first.cores, second.cores) == (1, 1)
        third.join(30)
        assert not third.is_alive()


def test_the_only_run_may_take_all() -> None:
    cores = CoreSlots(3)
    with cores.taken() as slot:
        assert cores.widen(slot)
        assert cores._free == 0
    assert cores._free == 3
    with cores.taken() as slot, cores.taken():
        assert not cores.widen(slot)
    assert cores._free == 3
    with CoreSlots(1).taken() as slot:
        assert slot.cores == 1


def test_they_are_given_in_the_order_in_which_they_are_asked_for() -> None:
    cores = CoreSlots(1)
    order: list[int] = []

    def run(number: int) -> None:
        with cores.taken():
            order.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    with cores.taken() as slot:
        for number, thread in enumerate(threads):
            thread.start()
            wait_until(lambda number=number: len(cores._waiting) == number + 1)  # type: ignore[misc]
        assert not cores.widen(slot), "others wait"
    for thread in threads:
        thread.join(30)
    assert order == list(range(8))


def test_a_run_that_fails_gives_its_cores_back() -> None:
    cores = CoreSlots(2)
    for _ in range(3):
        try:
            with cores.taken() as slot:
                assert cores.widen(slot)
                raise ValueError
        except ValueError:
            pass
    assert cores._free == 2
