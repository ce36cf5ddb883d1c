"""How the system schedules the threads that run models."""

import contextlib
import os


def let_others_go_first() -> None:
    """Have this thread wait for its turn when it awakes, where Linux would interrupt another one for it.

    The event loop wakes a thread for each request that begins a run, and the thread at once needs the lock of Python,
    which the loop has: it would interrupt the loop only to wait for it. It gets as much of the cores as before.
    """
    if not hasattr(os, "SCHED_BATCH"):  # it is Linux that has it
        return
    with contextlib.suppress(OSError):  # a container may forbid it
        # Whoever has started this process with another policy wants that one.
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
