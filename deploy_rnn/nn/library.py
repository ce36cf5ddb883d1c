"""Which layers of a compiled graph a library's kernel computes: oneDNN's on a CPU, cuDNN's on a GPU."""

from torch import nn

from deploy_rnn.nn import cudnn, onednn
from deploy_rnn.nn.cells import CELLS
from deploy_rnn.nn.cudnn import CudnnRecurrence
from deploy_rnn.nn.onednn import OneDnnRecurrence
from deploy_rnn.nn.recurrence import Recurrence
from deploy_rnn.nn.recurrent import Recurrent

RECURRENCES = ("auto", "library", "scan")
"""What may compute a layer in a compiled graph."""

_LOOPS = ("run_layers", "_run_layer", "_loop")
"""Methods of a layer in whose place a kernel is."""


def check_recurrence(recurrence: str) -> None:
    """Check a user's choice.

    Raises:
        ValueError: it is not one of `RECURRENCES`.
    """
    if recurrence not in RECURRENCES:
        choices = ", ".join(map(repr, RECURRENCES))
        raise ValueError(f"`recurrence` (={recurrence!r}) must be one of {choices}.")


def assign_kernels(model: nn.Module, recurrence: str) -> list[OneDnnRecurrence | CudnnRecurrence]:
    """Let a library's kernel compute the layers of `model`, a converted copy, where the user's choice says so.

    "auto" is a kernel where it was measured to be faster than the loop: oneDNN's. cuDNN's was not measured in a graph.

    Returns:
        What is to `prepare` before each call.
    """
    if recurrence == "scan":
        return []
    kernels: list[OneDnnRecurrence | CudnnRecurrence] = []
    for layer in model.modules():
        if not isinstance(layer, Recurrent) or not _is_of_torch(layer):
            continue
        # A kernel leaves to the one before it what it does not take.
        if onednn.has_kernel(layer):
            layer.recurrence = OneDnnRecurrence(layer)
            kernels.append(layer.recurrence)
        if recurrence == "library" and cudnn.has_kernel():
            layer.recurrence = CudnnRecurrence(layer)
            kernels.append(layer.recurrence)
    return kernels


def _is_of_torch(layer: Recurrent) -> bool:
    """Whether a layer computes what one of torch.nn does, without a loop of its own."""
    return (
        any(layer._step is cell.step for cell in CELLS.values())
        and type(layer.recurrence).run is Recurrence.run
        and all(getattr(type(layer), name) is getattr(Recurrent, name) for name in _LOOPS)
    )
