"""The names of a graph's inputs and outputs: what callers rely on."""

from collections.abc import Sequence

import onnx_ir as ir

from deploy_rnn.errors import ExportError


def name_inputs_and_outputs(graph: ir.Graph, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> None:
    """Give the graph's inputs and outputs these names; whatever inside has one of them gets another.

    Without `inputs` their names stay; without `outputs`: `output`, or `output_0`, `output_1`, ... if there are several.

    Raises:
        ExportError: not as many names as there are tensors, or the same name twice.
    """
    ins = _checked("input_names", inputs, graph.inputs) or [_own(graph, str(value.name)) for value in graph.inputs]
    outs = _checked("output_names", outputs, graph.outputs) or _default(len(graph.outputs), taken=ins)
    if twice := [name for name in {*ins, *outs} if [*ins, *outs].count(name) > 1]:
        raise ExportError(f"the name `{twice[0]}` would stand for two of the graph's inputs and outputs; change one.")
    ends = [*graph.inputs, *graph.outputs]
    inside = [value for node in graph for value in node.outputs if value not in ends]
    for value in [*inside, *graph.initializers.values()]:
        while value.name in (*ins, *outs):
            _rename(graph, value, f"{value.name}_")
    for value in ends:
        value.name = None
    for value, name in zip(ends, [*ins, *outs], strict=True):
        value.name = name


def _checked(what: str, names: Sequence[str] | None, values: Sequence[ir.Value]) -> list[str]:
    if names is None:
        return []
    if isinstance(names, str) or len(names) != len(values):
        found = ", ".join(str(value.name) for value in values)
        raise ExportError(f"`{what}` (={names!r}) must be a list of {len(values)} names: the graph has {found}.")
    return list(names)


def _own(graph: ir.Graph, name: str) -> str:
    """Without the ending that torch.onnx gives an input which is an output too."""
    plain = name.removesuffix("_orig")
    return plain if plain in [value.name for value in graph.outputs] else name


def _default(count: int, taken: Sequence[str]) -> list[str]:
    names = ["output"] if count == 1 else [f"output_{number}" for number in range(count)]
    while set(names) & set(taken):
        names = [f"{name}_" for name in names]
    return names


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if value.is_initializer():
        del graph.initializers[str(value.name)]
        value.name = name
        graph.register_initializer(value)
    else:
        value.name = name
