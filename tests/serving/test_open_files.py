"""An event loop without files for more connections."""

import asyncio
import errno
from typing import Any

import pytest

from deploy_rnn.serving.open_files import REMINDER_SECONDS, report_rarely


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
