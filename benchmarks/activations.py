"""Why large tensors take tanh from a sigmoid in eager mode: `python benchmarks/activations.py`, microseconds each."""

import torch

from deploy_rnn.timing import compare
from text import markdown

ELEMENTS = [128, 1024, 4096, 16384, 65536]


def main() -> None:
    rows = []
    for count in ELEMENTS:
        x = torch.randn(count)
        calls = {
            "torch.tanh": lambda x=x: torch.tanh(x),
            "2 * sigmoid(2 * x) - 1": lambda x=x: torch.rsub(torch.sigmoid(x + x), -1, alpha=-2),
        }
        with torch.no_grad():
            times = compare(calls, calls=2000, warm_up=200)
        rows.append([f"{count:,}", *(f"{1e6 * time.median:.1f}" for time in times.values())])
    print(markdown(["elements", *calls], rows))


if __name__ == "__main__":
    main()
