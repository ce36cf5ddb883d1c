"""Draw the picture in the README from a run of the demo: `python -m deploy_rnn.examples.highlight.screenshot`.

It writes docs/demo.svg, if nothing disturbed the measurement. A test compares the picture with the demo.
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from deploy_rnn.files import replace_file

from . import demo

PICTURE = Path("docs/demo.svg")

FONTS = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
"""rich's style sheet loads fonts from another server; the viewer's own serves as well."""


def main() -> None:
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
    demo.run(None, Path("build/demo"), console=console)
    if "speed" not in console.export_text(clear=False):
        sys.exit("something disturbed the measurement; draw the picture on a quiet machine.")
    svg = console.export_svg(title="make demo", theme=DEFAULT_TERMINAL_THEME)
    replace_file(PICTURE, lambda path: path.write_text(FONTS.sub("", svg) + "\n", encoding="utf-8"))


if __name__ == "__main__":
    main()
