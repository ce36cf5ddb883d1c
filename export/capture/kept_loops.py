"""Loops of Python over the steps: kept as loops, or written out with a warning."""

from collections.abc import Sequence

from torch import nn

from deploy_rnn.checking.cell_calls import CellCalls, count_cell_calls
from deploy_rnn.checking.model_state import fresh_copy
from deploy_rnn.checking.python_loops import PythonLoop, python_loop
from deploy_rnn.errors import ExportError
from deploy_rnn.model_errors import warn_user
from deploy_rnn.nn.loops import noted_loops

from ..options import ExportOptions
from .capture import Tracer

CALLER = "deploy_rnn.checking.example_call"
"""The module whose code calls a model."""

WRITTEN_OUT = "PyTorch writes out the loop, with the number of steps of the example."


def keep_loops_or_warn(
    model: nn.Module,
    tracer: Tracer,
    options: ExportOptions,
    *,
    has_layers: bool,
    is_fixed: bool,
) -> str:
    """A loop of Python stays a loop if its number of steps is to be dynamic; otherwise it is written with the steps of
    the example, which has a warning.

    A model without one has recurrent layers or loops of `deploy_rnn.scan`, takes one step, or has no steps at all.

    Args:
        has_layers: whether the model has recurrent layers, too, as the encoder before a decoder's loop.
        is_fixed: whether the form fixes the number of steps.

    Returns:
        What is to be said of a loop that is written out, if that depends on the axes that the recurrent layers open;
        else an empty text.

    Raises:
        ExportError: the number is to be dynamic, the loop cannot be kept, and there are no recurrent layers.
    """
    call = tracer.call
    # In training mode, a call would change the batch statistics.
    copied = fresh_copy(model)
    with count_cell_calls(copied, CALLER) as cells, noted_loops() as loops:
        call.run(copied)
    if loops:
        return ""
    loop = python_loop(fresh_copy(model), call)
    in_loop = describe_loop(cells, loop)
    if not in_loop:
        return ""
    axes_asked = None if options.dynamic_shapes is None else call.axes(options.dynamic_shapes)
    is_asked = axes_asked is None or (loop is not None and loop.axis in axes_asked[loop.tensor])
    can_be_kept = loop is not None and is_asked and not is_fixed and not options.streaming
    if can_be_kept and loop is not None and tracer.keeps_loops(loop.places):
        return ""
    if has_layers:
        return in_loop
    if axes_asked is None and not is_fixed:
        raise ExportError(
            f"{type(model).__name__} has no recurrent layer: {in_loop} Or use form='unrolled', for the steps of the "
            "example."
        )
    warn_user(in_loop)
    return ""


def describe_loop(cells: Sequence[CellCalls], loop: PythonLoop | None) -> str:
    """What a loop over the steps means for an export, and what to do; empty if there is none.

    Args:
        cells: how often each cell of torch.nn was called.
        loop: one that was found otherwise.
    """
    for cell in cells:
        if cell.number > 1:
            return f"{cell}: {WRITTEN_OUT} {cell.advice}"
    return f"{loop}: {WRITTEN_OUT} {loop.advice}" if loop else ""
