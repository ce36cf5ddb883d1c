"""An event loop without files for more connections."""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from deploy_rnn.serving import open_files
from deploy_rnn.serving.open_files import REMINDER_SECONDS, Listener, report_rarely
from deploy_rnn.serving.server import new_event_loop


def test_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    others: list[Any] = []
    loop.set_exception_handler(lambda loop, context: others.append(context["exception"]))
    now = 0.0
    report_rarely(loop, lambda: now)
    for number in (errno.EMFILE, errno.ENFILE) * 10:
        loop.call_exception_handler({"message": "accept", "exception": OSError(number, "files")})
    assert [record.getMessage()[:16] for record in caplog.records] == ["connections wait"]
    assert caplog.records[0].exc_info is None
    now = REMINDER_SECONDS + 1
    loop.call_exception_handler({"message": "accept", "exception": OSError(errno.EMFILE, "files")})
    assert len(caplog.records) == 2
    other = ValueError("another")
    loop.call_exception_handler({"message": "other", "exception": other})
    assert others == [other]
    loop.close()


def test_without_a_handler_before_it(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    report_rarely(loop)
    loop.call_exception_handler({"message": "another error"})
    assert [record.getMessage() for record in caplog.records] == ["another error"]
    loop.close()


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        transport.write(b"hello")
        transport.close()


class FewFiles(socket.socket):
    """A listening socket that cannot accept twice, for lack of files."""

    failures = 2

    def accept(self) -> Any:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return super().accept()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, new_event_loop])
def test_connections_wait_for_files(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(open_files, "PAUSE_SECONDS", 0.02)

    async def greetings(address: Any) -> list[bytes]:
        connections = [await asyncio.open_connection(*address) for _ in range(3)]
        read = [await reader.read() for reader, _ in connections]
        for _, writer in connections:
            writer.close()
        return read

    async def check() -> None:
        report_rarely(asyncio.get_running_loop())
        with FewFiles(socket.AF_INET, socket.SOCK_STREAM) as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            listener = Listener(listening, Greeter)
            address = listening.getsockname()
            assert await asyncio.wait_for(greetings(address), 20) == [b"hello"] * 3
            assert not listening.failures
            listener.close()
            await listener.wait_closed()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(check())
    assert [record.getMessage()[:16] for record in caplog.records] == ["connections wait"]
