"""The names of a graph's inputs and outputs: what callers rely on."""

from collections.abc import Sequence

import onnx_ir as ir

from deploy_rnn.errors import ExportError


def name_inputs_and_outputs(
    graph: ir.Graph,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
    own_output_names: Sequence[str] = (),
) -> None:
    """Give the graph's inputs and outputs these names; an inner value that has one of them gets another.

    Without `inputs` their names stay. Without `outputs`, they get `own_output_names`, those of the model's results,
    each with "_" behind it where an input has it; or, without these, `output`, or `output_0`, `output_1`, ...

    Raises:
        ExportError: another number of names than of tensors, or the same name twice.
    """
    _copy_constant_outputs(graph)
    input_names = _checked("input_names", inputs, graph.inputs)
    if not input_names:
        input_names = [_plain_name(graph, str(value.name)) for value in graph.inputs]
    output_names = _checked("output_names", outputs, graph.outputs)
    if not output_names and len(own_output_names) == len(graph.outputs):
        output_names = _distinct_names(own_output_names, used_names=input_names)
    if not output_names:
        output_names = _default_names(len(graph.outputs), used_names=input_names)
    names = [*input_names, *output_names]
    repeated_names = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated_names:
        raise ExportError(
            f"the name `{repeated_names[0]}` would stand for two inputs or outputs of the graph; change one."
        )
    values = [*graph.inputs, *graph.outputs]
    inner_values = [value for node in graph for value in node.outputs if value not in values]
    for value in [*inner_values, *graph.initializers.values()]:
        while value.name in names:
            _rename(graph, value, f"{value.name}_")
    # In two rounds: a new name may be the old one of another value.
    for value in values:
        value.name = None
    for value, name in zip(values, names, strict=True):
        value.name = name


def _checked(argument: str, names: Sequence[str] | None, values: Sequence[ir.Value]) -> list[str]:
    if names is None:
        return []
    if isinstance(names, str) or len(names) != len(values):
        current_names = ", ".join(str(value.name) for value in values)
        raise ExportError(
            f"`{argument}` (={names!r}) must be a list of {len(values)} names: the graph has {current_names}."
        )
    return list(names)


def _plain_name(graph: ir.Graph, name: str) -> str:
    """`name` without the ending that torch.onnx gives an input which is also an output."""
    plain_name = name.removesuffix("_orig")
    output_names = [value.name for value in graph.outputs]
    return plain_name if plain_name in output_names else name


def _default_names(count: int, used_names: Sequence[str]) -> list[str]:
    names = ["output"] if count == 1 else [f"output_{number}" for number in range(count)]
    while set(names) & set(used_names):
        names = [f"{name}_" for name in names]
    return names


def _distinct_names(names: Sequence[str], used_names: Sequence[str]) -> list[str]:
    distinct: list[str] = []
    for name in names:
        while name in (*used_names, *distinct):
            name += "_"
        distinct.append(name)
    return distinct


def _copy_constant_outputs(graph: ir.Graph) -> None:
    """Let a node write each output that is a constant, such as a parameter: its name is then its own."""
    for number, output in enumerate(graph.outputs):
        if output.is_initializer():
            node = ir.Node("", "Identity", [output])
            graph.append(node)
            copied = node.outputs[0]
            copied.type = output.type
            copied.shape = output.shape
            graph.outputs[number] = copied


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if value.is_initializer():
        del graph.initializers[str(value.name)]
        value.name = name
        graph.register_initializer(value)
    else:
        value.name = name
