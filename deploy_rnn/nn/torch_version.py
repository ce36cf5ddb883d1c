"""What the installed torch can do, in the one place that asks for its version."""

import torch

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

# Inductor can write the driving code in C++ too, which makes a loop of small steps up to 1.7x faster
# at B=1. It miscompiles a loop's gradient at T=1 (torch 2.13), and any loop before torch 2.13.
CPP_WRAPPER = TORCH_VERSION >= (2, 13)
