"""`Calls`: a stop waits for the calls that are on their way, but not for clients that go on to call."""

import asyncio

from deploy_rnn.errors import ClosedError
from deploy_rnn.serving.grpc import calls as module


def test_calls_are_held_until_none_arrives_any_more() -> None:
    calls = module.Calls(10, 1.0, 2**30, lambda peer: None)
    refused: list[str] = []

    async def call() -> None:
        await calls.released()
        try:
            calls.enter("ipv4:127.0.0.1:1")
        except ClosedError as error:
            refused.append(str(error))

    async def arrive(seconds: float) -> None:
        while True:
            tasks.append(asyncio.create_task(call()))
            await asyncio.sleep(seconds)

    async def stop() -> None:
        calls.draining = True
        calls.hold()
        arrivals = asyncio.create_task(arrive(0))
        await calls.quiet(60, 0.1)  # they go on: for 0.1 s and no longer
        assert len(tasks) > 1
        assert not refused
        arrivals.cancel()
        await calls.quiet(0.01, 60)  # none arrives any more
        calls.release()
        await asyncio.gather(*tasks)

    tasks: list[asyncio.Task[None]] = []
    asyncio.run(asyncio.wait_for(stop(), 30))
    assert set(refused) == {module.STOPPING}
