"""What a server allows is checked where it is said, not by the first client."""

import re
from typing import Any

import pytest

from deploy_rnn.serving.settings import Settings


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_bytes", 0, "must be 1 or more"),
        ("max_json_bytes", 2.5, "must be a whole number"),
        ("max_connections", True, "must be a whole number"),
        ("body_seconds", -1, "must be 0 or more"),
        ("request_seconds", float("nan"), "must be 0 or more"),
        ("idle_seconds", "75", "must be a number"),
    ],
)
def test_numbers(name: str, value: Any, message: str) -> None:
    text = f"`{name}` (={value!r}) {message}."
    with pytest.raises(ValueError, match=re.escape(text)):
        Settings(**{name: value})


def test_a_time_may_be_whole_or_endless() -> None:
    settings = Settings(request_seconds=60, idle_seconds=float("inf"))
    assert (settings.request_seconds, settings.idle_seconds) == (60, float("inf"))
