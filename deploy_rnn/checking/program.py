"""`runnable`: a model of which only its program is left, TorchScript or an `ExportedProgram`, as a module to run.

Its code cannot be changed, so that nothing can be converted in it; running it is all that `verify` does with a model.
"""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deploy_rnn.checking.module import check_module, is_exported_graph
from deploy_rnn.copying import unwrapped
from deploy_rnn.errors import ConversionError

Wrapped = torch.jit.ScriptModule | fx.GraphModule


def runnable(model: Any) -> nn.Module:
    """Return a module that computes what `model` does, and has a `forward` with the names of its parameters.

    Args:
        model: a module with Python source, which is returned itself; a TorchScript module; or an `ExportedProgram`
            or its `.module()`.

    Raises:
        ConversionError, TypeError: as `check_module`; a TorchScript module without a `forward`.
    """
    if isinstance(model, nn.Module):
        model = unwrapped(model)
    if isinstance(model, ExportedProgram):
        model = model.module()
    if is_exported_graph(model):
        return Program(model, inspect.signature(model.forward), "ExportedProgram")
    if isinstance(model, torch.jit.ScriptModule):
        return Program(model, _scripted_signature(model), model.original_name)
    return check_module(model)


class Program(nn.Module):
    """A program, with what is asked of a module: to be copied, set to evaluation mode, and run in float64.

    Args:
        program: what is run.
        signature: the parameters of its forward, without `self`.
        original_name: the class of the model that it was made of, as far as it is known.
    """

    def __init__(self, program: Wrapped, signature: inspect.Signature, original_name: str) -> None:
        super().__init__()
        self.program = program
        self.original_name = original_name
        self._signature = signature

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override]
        """Run the program: the names of its parameters are those of `inspect.signature`."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.program(*args, **kwargs)

        forward.__signature__ = self._signature  # type: ignore[attr-defined]
        return forward

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        # TorchScript copies its weights by an operation, which autograd would follow.
        with torch.no_grad(), warnings.catch_warnings():
            # PyTorch warns of what its own copying does.
            warnings.simplefilter("ignore", FutureWarning)
            program = copy.deepcopy(self.program, memo)
        copied = Program(program, self._signature, self.original_name)
        copied.training = self.training
        return copied

    def train(self, mode: bool = True) -> "Program":
        """Set the mode, which an exported program has fixed, and refuses to be asked for."""
        self.training = mode
        if isinstance(self.program, torch.jit.ScriptModule):
            self.program.train(mode)
        return self

    def double(self) -> "Program":
        """Turn the weights into float64, and in an exported program the dtypes that it names."""
        super().double()
        if isinstance(self.program, fx.GraphModule):
            _name_float64(self.program)
        return self


def _name_float64(program: fx.GraphModule) -> None:
    """Let a program that names float32, such as for the zeros that a layer starts from, name float64."""

    def widened(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    for node in program.graph.nodes:
        node.args = pytree.tree_map(widened, node.args)
        node.kwargs = pytree.tree_map(widened, node.kwargs)
    program.recompile()


def _scripted_signature(model: torch.jit.ScriptModule) -> inspect.Signature:
    """The parameters of a scripted forward."""
    try:
        forward: Any = model.forward
        arguments = forward.schema.arguments
    except (AttributeError, RuntimeError) as error:
        raise ConversionError(
            "`model` is a TorchScript module without a `forward`; give a module that has one and calls the method that "
            "you want."
        ) from error
    return inspect.Signature([*_parameters(arguments)])


def _parameters(arguments: Iterable[Any]) -> Iterable[inspect.Parameter]:
    # The first is the module itself, whatever its code calls it.
    for argument in list(arguments)[1:]:
        parameter = inspect.Parameter(argument.name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if argument.kwarg_only:
            parameter = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        if argument.has_default_value():
            parameter = parameter.replace(default=argument.default_value)
        yield parameter
