"""`OwnProcess`: what holds open graphs and threads works only in the process that has opened it."""

import os
from typing import NoReturn

from deploy_rnn.errors import RunError


class OwnProcess:
    """A part of `Engine` and `Model`.

    A fork takes memory along, and no threads: whoever waits for one in the new process waits without end.
    """

    _process: int

    def _note_process(self) -> None:
        """The process that calls this is the one."""
        self._process = os.getpid()

    def _is_elsewhere(self) -> bool:
        """Whether this is another process, a fork of the one."""
        return os.getpid() != self._process

    def _check_process(self) -> None:
        """
        Raises:
            RunError: this is another process.
        """
        if self._is_elsewhere():
            name = type(self).__name__
            raise RunError(
                f"this {name} was opened in process {self._process}; process {os.getpid()} is a fork of it and has "
                f"none of its threads: open the {name} in each process."
            )

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"this {name} cannot be pickled or copied; open it from its path in each process."
        )
