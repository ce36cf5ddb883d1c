"""Results of another thread, on an event loop."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from deploy_rnn.errors import ClosedError, DeadlineError
from deploy_rnn.serving.protocol.deliveries import Deliveries


def in_a_thread(function: Callable[[], Any]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_the_results_of_a_run_are_one_wake_up() -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        wake_ups: list[Any] = []
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *call: (wake_ups.append(call), wake(*call))  # type: ignore
        deliveries = Deliveries(loop, 60)
        for _ in range(2):
            futures: list[Future[int]] = [Future() for _ in range(8)]
            tasks = [asyncio.create_task(deliveries.wait(future)) for future in futures]
            await asyncio.sleep(0)
            # The loop does not run meanwhile, as it does not while it serves others.
            in_a_thread(lambda futures=futures: [f.set_result(n) for n, f in enumerate(futures)])
            assert await asyncio.gather(*tasks) == list(range(8))
        assert len(wake_ups) == 2

    asyncio.run(check())


def test_what_becomes_of_a_future() -> None:
    async def check() -> None:
        deliveries = Deliveries(asyncio.get_running_loop(), 60)
        done: Future[int] = Future()
        done.set_result(3)
        assert await deliveries.wait(done) == 3
        failed: Future[int] = Future()
        failed.set_exception(ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            await deliveries.wait(failed)
        cancelled: Future[int] = Future()
        cancelled.cancel()
        with pytest.raises(ClosedError, match="the request was cancelled"):
            await deliveries.wait(cancelled)

    asyncio.run(check())


def test_who_leaves_cancels() -> None:
    async def check() -> None:
        deliveries = Deliveries(asyncio.get_running_loop(), 60)
        left: Future[int] = Future()
        running: Future[int] = Future()
        running.set_running_or_notify_cancel()
        for future in (left, running):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(deliveries.wait(future), 0.01)
        assert left.cancelled()
        running.set_result(1)  # nobody waits, and nobody minds
        await asyncio.sleep(0)

    asyncio.run(check())


def test_a_result_that_takes_too_long() -> None:
    async def check() -> None:
        deliveries = Deliveries(asyncio.get_running_loop(), 0.01)
        late: Future[int] = Future()
        with pytest.raises(DeadlineError, match=r"^the answer took more than 0.01 s\.$"):
            await deliveries.wait(late)
        assert late.cancelled()

    asyncio.run(check())


def test_a_result_after_the_loop_has_closed(caplog: pytest.LogCaptureFixture) -> None:
    late: Future[int] = Future()
    late.set_running_or_notify_cancel()

    async def leave() -> None:
        deliveries = Deliveries(asyncio.get_running_loop(), 60)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(deliveries.wait(late), 0.01)

    asyncio.run(leave())
    late.set_result(1)
    assert not caplog.records
