"""`compile`: a whole model, its recurrent layers included, through `torch.compile`."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch._inductor
from torch import nn
from torch.fx.experimental import _config as shape_config

from deploy_rnn.conversion import convert

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

# Inductor can write the driving code in C++ too, which makes a loop of small steps up to 1.7x faster
# at B=1. It miscompiles a loop's gradient at T=1 (torch 2.13), and any loop before torch 2.13.
CPP_WRAPPER = TORCH_VERSION >= (2, 13)


def compile(model: nn.Module) -> nn.Module:
    """Compile a copy of `model`: `convert`, then `torch.compile(fullgraph=True, dynamic=True)`.

    The time loop stays a loop in the compiled code, so compiling takes as long for T=1000 as for T=10, and new lengths
    and batch sizes do not compile again, except T=1 and B=1, once each. Compilation happens at the first call; it
    needs a C++ compiler on the CPU. Gradients flow; calls under `torch.no_grad()` are compiled separately, and faster.

    Args:
        model: any module that `convert` takes; it is not changed, and shares no parameters with the result.

    Raises:
        ConversionError: see `convert`.
    """
    compiled: Any = torch.compile(convert(model), fullgraph=True, dynamic=True, backend=_backend)
    forward = compiled.forward

    def forward_without_duck_shapes(*args: Any, **kwargs: Any) -> Any:
        with _NO_DUCK_SHAPES:
            return forward(*args, **kwargs)

    compiled.forward = forward_without_duck_shapes
    return cast(nn.Module, compiled)


class _NoDuckShapes:
    """While it is entered, torch.compile does not assume that sizes are one size because its first call has them equal.

    Otherwise T=5, B=5 compiles once, and T=5, B=7 again. It is a setting of the process, hence the count: several
    threads may be inside, and the last to leave restores the setting that was there before the first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads_inside = 0
        self._previous_setting = True

    def __enter__(self) -> None:
        with self._lock:
            if self._threads_inside == 0:
                self._previous_setting = shape_config.use_duck_shape
                shape_config.use_duck_shape = False
            self._threads_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads_inside -= 1
            if self._threads_inside == 0:
                shape_config.use_duck_shape = self._previous_setting


_NO_DUCK_SHAPES = _NoDuckShapes()


def _backend(
    graph: torch.fx.GraphModule, example_inputs: Sequence[torch.Tensor]
) -> Callable[..., Any]:
    # tanh from one exponential, in one vectorised loop.
    options: dict[str, Any] = {"cpp.use_decompose_tanh": True}
    if CPP_WRAPPER and not torch.is_grad_enabled():
        options["cpp_wrapper"] = True
    return cast(
        Callable[..., Any], torch._inductor.compile(graph, list(example_inputs), options=options)
    )
