"""`scripted_program`: a program of torch.export as a TorchScript module, which refuses what it was not made for.

TorchScript refuses much of Python. The graph of torch.export has none of it left, and is written here as a function in
the words that TorchScript takes. Like every graph of torch.export it holds for the example's side of each branch, and
for the sizes of its dynamic axes; so the function begins with checks.
"""

import builtins
import inspect
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.jit._recursive import create_script_module
from torch.utils import _pytree as pytree

from deploy_rnn.checking.branches import Condition
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import ExportError
from deploy_rnn.packaging.axes import NO_LIMIT, Axes, Axis
from deploy_rnn.packaging.script_graph import GraphText
from deploy_rnn.packaging.script_types import Value, collections, leaves, results_text, type_of
from deploy_rnn.packaging.script_values import constant_text
from deploy_rnn.packaging.size_checks import MESSAGE

_MODULES = {"torch": torch, "math": math, "Tensor": Tensor}


def _named(name: str) -> Any:
    """What a name in the text means, such as `List`; None for one that the text itself defines."""
    for place in (typing, builtins):
        if hasattr(place, name):
            return getattr(place, name)
    return _MODULES.get(name)


def scripted_program(
    program: ExportedProgram,
    call: ExampleCall,
    axes: Sequence[Axes],
    conditions: Sequence[Condition] = (),
) -> torch.jit.ScriptModule:
    """Write a program as TorchScript.

    Args:
        program: as torch.export traced it, with `axes` open.
        call: the call that it was traced with; numbers and strings in it are part of the program.
        axes: the dynamic axes of each tensor of the call.
        conditions: what the function requires of their sizes.

    Returns:
        A module that is called as the model is. It has every parameter of the model up to the last that the call gives.

    Raises:
        ExportError: an operator, or a type of argument, that TorchScript does not have.
    """
    holder = nn.Module()
    text = _text(holder, program, call, axes, conditions)
    # Modules of one class and the same weights would share one type, and so one function.
    module: torch.jit.ScriptModule = create_script_module(
        holder.eval(), lambda _: [], share_types=False
    )
    module._c._define(module._concrete_type, text, _named)
    return module


def _text(
    holder: nn.Module,
    program: ExportedProgram,
    call: ExampleCall,
    axes: Sequence[Axes],
    conditions: Sequence[Condition],
) -> str:
    """The function as text; `holder` gets the weights."""
    graph = GraphText()
    parameters = _write_parameters(graph, call)
    inputs = _write_checks(graph, call, axes, conditions)
    names = [
        _input_name(holder, spec, program, inputs) for spec in program.graph_signature.input_specs
    ]
    outputs = graph.write_graph(program.graph_module, names)
    _write_results(graph, program, outputs, names)
    return "\n".join([f"def forward(self, {', '.join(parameters)}):", *graph.lines, ""])


# What goes in.


def _write_parameters(graph: GraphText, call: ExampleCall) -> list[str]:
    """The parameters of the function, and the checks of those that are no tensors."""
    parameters = []
    has_default = False
    given = set(call.arguments)
    for name, parameter in call.bound.signature.parameters.items():
        if name in given and parameter.kind is parameter.VAR_POSITIONAL:
            for number, value in enumerate(call.arguments[name]):
                parameters.append(f"{name}_{number}: {type_of(f'`{name}`', value)}")
        elif name in given:
            value = call.arguments[name]
            type_name = type_of(f"`{name}`", value)
            if isinstance(value, (bool, int, float, str)):
                has_default = True
                parameters.append(f"{name}: {type_name} = {constant_text(value)}")
            elif has_default:
                parameters.append(f"{name}: Optional[{type_name}] = None")
                with graph.block(f"if {name} is None:"):
                    graph.write(f'raise RuntimeError("`{name}` is missing.")')
            else:
                parameters.append(f"{name}: {type_name}")
        elif _is_constant(parameter.default):
            has_default = True
            parameters.append(_left_out(graph, name, parameter.default))
    return parameters


def _left_out(graph: GraphText, name: str, default: Any) -> str:
    """A parameter that the example call does not give, so that its default is part of the program."""
    if default is None:
        with graph.block(f"if {name} is not None:"):
            graph.write(f'raise RuntimeError("`{name}` must be None, as in the example call.")')
        return f"{name}: Optional[Tensor] = None"
    text = constant_text(default)
    _require(graph, name, text)
    return f"{name}: {type(default).__name__} = {text}"


def _is_constant(default: Any) -> bool:
    return default is None or isinstance(default, (bool, int, float, str))


def _require(graph: GraphText, name: str, text: str) -> None:
    """Refuse another number or string than the example's, which is part of the program."""
    with graph.block(f"if {name} != {text}:"):
        message = constant_text(f"`{name}` must be {text}, as in the example call.")
        graph.write(f"raise RuntimeError({message})")


def _write_checks(
    graph: GraphText, call: ExampleCall, axes: Sequence[Axes], conditions: Sequence[Condition]
) -> list[str]:
    """Refuse inputs that are not like the example: -> a name for each of its leaves, tensors or not."""
    remaining_axes = iter(axes)
    labels = iter(call.names)
    sizes: dict[str, str] = {}
    inputs = []
    for name, value in _given(call):
        for text, length in collections(name, value):
            with graph.block(f"if len({text}) != {length}:"):
                graph.write(
                    f'raise RuntimeError("`{text}` has {{}} entries; this file takes {length}.".format(len({text})))'
                )
        for text, leaf in leaves(name, value):
            if isinstance(leaf, Tensor):
                inputs.append(
                    _write_tensor_checks(
                        graph, text, next(labels), leaf, next(remaining_axes), sizes
                    )
                )
            else:
                inputs.append(text)
                if leaf is not None:
                    _require(graph, text, constant_text(leaf))
    for condition in conditions:
        _write_condition(graph, condition, sizes)
    return inputs


def _given(call: ExampleCall) -> list[tuple[str, Any]]:
    """The arguments by the names that the function has for them."""
    given = []
    for name, value in call.arguments.items():
        if call.bound.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            given += [(f"{name}_{number}", item) for number, item in enumerate(value)]
        else:
            given.append((name, value))
    return given


def _write_tensor_checks(
    graph: GraphText, text: str, label: str, example: Tensor, axes: Axes, sizes: dict[str, str]
) -> str:
    """The checks of one tensor; `sizes` gets the name of the size of each dynamic axis."""
    tensor = graph.new_name("input")
    dtype = str(example.dtype)
    graph.write(f"{tensor} = {text}")
    with graph.block(f"if {tensor}.dim() != {example.dim()}:"):
        graph.write(
            f'raise RuntimeError("`{label}` has {{}} axes; this file takes {example.dim()}.".format({tensor}.dim()))'
        )
    with graph.block(f'if {tensor}.dtype != {dtype} or {tensor}.device.type != "cpu":'):
        graph.write(
            f'raise RuntimeError("`{label}` must be {dtype.removeprefix("torch.")} on the CPU.")'
        )
    for number, size in enumerate(example.shape):
        axis = axes.get(number)
        actual = f"{tensor}.size({number})"
        if axis is None:
            _limit(graph, label, number, actual, f"!= {size}", f"{size} here")
            continue
        _write_range(graph, label, number, actual, axis)
        if axis.name in sizes:
            first = sizes[axis.name]
            _limit(graph, label, number, actual, f"!= {first}", "{} here", first)
        else:
            sizes[axis.name] = graph.new_name(axis.name)
            graph.write(f"{sizes[axis.name]} = {actual}")
    return graph.assign("input", f"{tensor}.contiguous()")


def _write_range(graph: GraphText, label: str, number: int, actual: str, axis: Axis) -> None:
    if axis.least > 0:
        _limit(graph, label, number, actual, f"< {axis.least}", f"{axis.least} or more")
    if axis.most < NO_LIMIT:
        _limit(graph, label, number, actual, f"> {axis.most}", f"{axis.most} or less")


def _limit(
    graph: GraphText, label: str, number: int, actual: str, refused: str, taken: str, *values: str
) -> None:
    with graph.block(f"if {actual} {refused}:"):
        message = f"axis {number} of `{label}` is {{}}; this file takes {taken}."
        graph.write(f'raise RuntimeError("{message}".format({", ".join([actual, *values])}))')


def _write_condition(graph: GraphText, condition: Condition, sizes: Mapping[str, str]) -> None:
    text = str(condition)
    expression = re.sub(r"[A-Za-z_]\w*", lambda word: sizes.get(word[0], word[0]), text)
    with graph.block(f"if not bool({expression}):"):
        message = constant_text(MESSAGE.format(condition=text))
        graph.write(f"raise RuntimeError({message})")


# Weights.


def _input_name(holder: nn.Module, spec: Any, program: ExportedProgram, inputs: list[str]) -> str:
    """The name of an input of the graph: a weight, or the next argument."""
    if spec.kind is InputKind.USER_INPUT:
        return inputs.pop(0)
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        is_saved = spec.target in program.state_dict
        tensor = program.state_dict[spec.target] if is_saved else program.constants[spec.target]
        name = re.sub(r"\W", "_", spec.target)
        while hasattr(holder, name):
            name += "_"
        holder.register_buffer(name, tensor.detach())
        return f"self.{name}"
    raise ExportError(
        f"the program has a {spec.kind.name.lower()}, which TorchScript does not have."
    )


# What comes out.


def _write_results(
    graph: GraphText, program: ExportedProgram, outputs: Sequence[Any], names: Sequence[str]
) -> None:
    values = []
    inputs_by_target = {
        spec.target or spec.arg.name: name
        for spec, name in zip(program.graph_signature.input_specs, names, strict=True)
    }
    nodes = next(node for node in program.graph.nodes if node.op == "output").args[0]
    for spec, node, text in zip(program.graph_signature.output_specs, nodes, outputs, strict=True):
        if spec.kind is OutputKind.USER_OUTPUT:
            values.append(_result(node, text))
        elif spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
            graph.write(f"{inputs_by_target[spec.target]}.copy_({text})")
        else:
            raise ExportError(
                f"the program has a {spec.kind.name.lower()}, which TorchScript does not have."
            )
    try:
        results = pytree.tree_unflatten(values, program.call_spec.out_spec)
    except Exception:  # a class that is registered with PyTorch may refuse them
        results = tuple(values)
    graph.write(f"return {results_text(results)}")


def _result(node: Any, text: str) -> Any:
    value = getattr(node, "meta", {}).get("val", node)
    if isinstance(value, Tensor):
        return Value(text, "Tensor")
    for types, type_name in (
        ((bool, torch.SymBool), "bool"),
        ((int, torch.SymInt), "int"),
        ((float, torch.SymFloat), "float"),
    ):
        if isinstance(value, types):
            return Value(text, type_name)
    return None if value is None else Value(text, "str")
