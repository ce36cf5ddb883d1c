"""What a model returns: a file returns tensors, and nothing else."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploy_rnn.checking.structure import without_numbers
from deploy_rnn.errors import ExportError


def check_result(result: Any) -> None:
    """Check what a model returned on its example.

    Raises:
        ExportError: no tensor; something else than tensors, numbers and None; or a tensor that no file can return.
    """
    leaves = pytree.tree_leaves_with_path(result)
    for path, leaf in leaves:
        where = (
            f"`{pytree.keystr(path)}` of what the model returns"
            if path
            else "what the model returns"
        )
        # A number becomes a tensor.
        if leaf is not None and not isinstance(leaf, (int, float)):
            _check_leaf(where, leaf)
    if not any(isinstance(leaf, Tensor) for _, leaf in leaves):
        raise ExportError(
            "the model returns no tensor, so that a file of it would have no output; let `forward` return one."
        )


def _check_leaf(where: str, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        name = type(leaf).__name__
        shown = f" (={leaf!r})" if isinstance(leaf, (bool, int, float, str)) else ""
        raise ExportError(
            f"{where} is of type {name}{shown}; a file returns tensors, alone or in tuples, lists and dicts: let "
            "`forward` return these."
        )
    if leaf.is_complex():
        dtype = str(leaf.dtype).removeprefix("torch.")
        raise ExportError(
            f"{where} is {dtype}, and ONNX has no complex outputs; let `forward` return torch.view_as_real of it."
        )
    if leaf.dtype is torch.bfloat16:
        raise ExportError(
            f"{where} is bfloat16, which numpy lacks, and so onnxruntime in Python: let `forward` return float32."
        )
    if leaf.layout is not torch.strided:
        raise ExportError(f"{where} is {leaf.layout}; let `forward` return a dense tensor.")


def return_tensors(model: nn.Module, result: Any) -> None:
    """Let a model return tensors in place of the numbers in its result, if there are any."""
    leaves = pytree.tree_leaves(result)
    if any(isinstance(leaf, (int, float)) for leaf in leaves):
        model.register_forward_hook(lambda _, args, output: without_numbers(output))
