"""`compile`: a whole model, its recurrent layers included, through `torch.compile`."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch._inductor
from torch import nn

from deploy_rnn.conversion import convert

# Inductor can write the driving code in C++ too, which makes a loop of small steps up to 1.7x faster
# (benchmarks/rnn.py, B=1). It miscompiles a loop's gradient at T=1 (torch 2.13), and any loop before torch 2.13.
CPP_WRAPPER = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)


def compile(model: nn.Module) -> nn.Module:
    """A compiled copy of `model`: `convert`, then `torch.compile(fullgraph=True, dynamic=True)`.

    The time loop stays a loop in the compiled code, so compiling takes as long for T=1000 as for T=10, and new lengths
    and batch sizes do not compile again, except T=1 and B=1, once each; sizes that were equal in the first call (T=B,
    say) are taken for one, which costs one more compilation when they first differ. Compilation happens at the first
    call; it needs a C++ compiler on the CPU. Gradients flow; calls under `torch.no_grad()` are compiled separately, and
    faster.

    Args:
        model: any module that `convert` takes; it is not touched, and shares no parameters with the result.

    Raises:
        ConversionError: see `convert`.
    """
    return cast(nn.Module, torch.compile(convert(model), fullgraph=True, dynamic=True, backend=_backend))


def _backend(graph: torch.fx.GraphModule, example_inputs: Sequence[torch.Tensor]) -> Callable[..., Any]:
    options = {"cpp_wrapper": True} if CPP_WRAPPER and not torch.is_grad_enabled() else {}
    return cast(Callable[..., Any], torch._inductor.compile(graph, list(example_inputs), options=options))
