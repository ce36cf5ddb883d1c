"""Draw the picture in the README: `python -m deploy_rnn.examples.highlight.screenshot FILE PICTURE.svg`."""

import sys
from pathlib import Path

from rich.console import Console

from . import demo


def main() -> None:
    file, picture = map(Path, sys.argv[1:])
    console = Console(record=True, width=120, force_terminal=True, force_interactive=False)
    demo.run(file, Path("build/demo"), console=console)
    console.save_svg(str(picture), title=f"deploy-rnn demo {file.name}")


if __name__ == "__main__":
    main()
