"""Draw the picture in the README from a run of the demo: `python -m deploy_rnn.examples.highlight.screenshot`.

It writes docs/demo.svg, if nothing disturbed the measurement. A test compares the picture with the demo.
"""

import io
import os
import re
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from deploy_rnn.files import replace_file

PICTURE = Path("docs/demo.svg")

FONTS = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
"""rich's style sheet loads fonts from another server; the viewer's own serves as well."""


def main() -> None:
    started = time.perf_counter()
    # Loaded here, since its time is the first that the demo shows.
    from . import demo

    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
    # What others want of the cores does not matter to a process that goes before them.
    busy = 0.0 if go_first() else None
    demo.run(None, Path("build/demo"), console=console, started=started, busy=busy)
    if "speed" not in console.export_text(clear=False):
        sys.exit("something disturbed the measurement; draw the picture on a quiet machine.")
    console.print()  # rich cuts the descenders of the last line
    svg = console.export_svg(title="make demo", theme=DEFAULT_TERMINAL_THEME)
    replace_file(PICTURE, lambda path: path.write_text(FONTS.sub("", svg) + "\n", encoding="utf-8"))


def go_first() -> bool:
    """Ask to be run before all other processes: whether that is permitted."""
    if not hasattr(os, "sched_setscheduler"):
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return False
    return True


if __name__ == "__main__":
    main()
