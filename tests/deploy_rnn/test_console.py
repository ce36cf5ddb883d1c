"""What all commands share."""

import pytest

from deploy_rnn.console import UsageError, command_errors


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is too little memory; "),
        (RuntimeError("can't start new thread"), "the system has no room for another thread; "),
    ],
)
def test_what_the_system_lacks_is_one_line(error: Exception, message: str) -> None:
    with pytest.raises(UsageError, match=message), command_errors(as_json=False):
        raise error


def test_a_fault_of_the_command_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="a fault"), command_errors(as_json=False):
        raise RuntimeError("a fault")
