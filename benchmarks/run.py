"""`make bench`: every benchmark on this machine's CPU, its JSON in build/bench, its table on the screen.

`--commit` writes to benchmarks/results instead and makes the README's tables and pictures anew.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {
    "rnn_cpu": ["rnn.py"],
    "export": ["exporters.py"],
    "compile_time": ["compile_time.py"],
    "torch_modules": ["torch_modules.py"],
    "batching": ["batching.py"],
    "serving": ["serve.py"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", action="store_true", help="replace the committed results and the README's tables")
    options = parser.parse_args()
    folder = HERE / "results" if options.commit else HERE.parent / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (script, *arguments) in PARTS.items():
        output = folder / f"{name}.json"
        print(f"\n{name} -> {output}\n", flush=True)
        subprocess.run([sys.executable, HERE / script, *arguments, "--output", output], check=True)
    if options.commit:
        for page in ("tables.py", "plots.py"):
            subprocess.run([sys.executable, HERE / page], check=True)


if __name__ == "__main__":
    main()
