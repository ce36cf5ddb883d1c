"""The version of ONNX's operators: a graph is written with those of opset 18 or above, and rewritten for older ones."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from deploy_rnn.errors import ExportError

OLDEST = 13
"""Before it, operators take as attributes what a model may compute, such as the axes of Squeeze."""

NEWEST = 25
NEWEST_IR = int(onnx.IR_VERSION)

WRITTEN = 18
"""The lowest opset that torch.onnx and the forms write."""


def lowest_ir_version(opset_version: int) -> int:
    """The lowest version of the format of a file in which an opset may be used."""
    entry = onnx.helper.make_opsetid("", opset_version)
    version: int = onnx.helper.find_min_ir_version_for([entry])
    return version


def to_opset(model: ir.Model, version: int) -> None:
    """Rewrite a graph of opset 18 for an older one, in place; one of a newer opset stays as it is.

    Raises:
        ExportError: the older opset lacks an operator; says which one, and the lowest opset that will do.
    """
    written = model.graph.opset_imports[""]
    if version < WRITTEN <= written:
        _check_operators(model.graph, written, version)
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in list(graph):
                _rewrite(graph, node, version)
        model.graph.opset_imports[""] = version
    elif written != version:
        raise ExportError(
            f"torch.onnx wrote opset {written} where {version} was asked for; use `opset_version={written}`."
        )


def _check_operators(graph: ir.Graph, written: int, version: int) -> None:
    lacking = []
    for inner in (graph, *graph.subgraphs()):
        for node in inner:
            if node.domain == "" and not _is_expressible(node, version):
                lacking.append(node)
    if not lacking:
        return
    enough = version + 1
    while not all(_is_expressible(node, enough) for node in lacking):
        enough += 1
    names = ", ".join(dict.fromkeys(node.op_type for node in lacking))
    raise ExportError(
        f"the model needs {names}, which ONNX's opset {version} lacks, or has in a lesser version; use "
        f"`opset_version={enough}` or above."
    )


def _is_expressible(node: ir.Node, version: int) -> bool:
    """Whether an opset has a node's operator with its attributes, inputs and types, or `_rewrite` can do without."""
    if version >= WRITTEN:
        return True
    if _rewriter(node, version) is not None:
        return True
    try:
        schema = onnx.defs.get_schema(node.op_type, version)
    except onnx.defs.SchemaError:
        return False
    known = [name in schema.attributes or _is_default(node, name) for name in node.attributes]
    return all(known) and len(node.inputs) <= schema.max_input and _takes_types(schema, node)


def _is_default(node: ir.Node, name: str) -> bool:
    """Whether an attribute has the value that it would have if it were left out."""
    schema = onnx.defs.get_schema(node.op_type, WRITTEN)
    default = schema.attributes[name].default_value
    if not default.name:
        return False
    value: object = node.attributes[name].value
    expected = onnx.helper.get_attribute_value(default)
    if isinstance(expected, bytes):
        expected = expected.decode()
    return bool(value == expected)


def _takes_types(schema: onnx.defs.OpSchema, node: ir.Node) -> bool:
    for position, value in enumerate(node.inputs):
        # The last input may stand for any number of them.
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        if value is None or value.dtype is None:
            continue
        if f"tensor({value.dtype.name.lower()})" not in formal.types:
            return False
    return True


Rewriter = Callable[[ir.Graph, ir.Node], None]


def _rewrite(graph: ir.Graph, node: ir.Node, version: int) -> None:
    """Let a node be one, or several, of an older opset."""
    if node.domain != "":
        return
    rewriter = _rewriter(node, version)
    if rewriter is not None:
        rewriter(graph, node)
        return
    schema = onnx.defs.get_schema(node.op_type, version)
    for name in [name for name in node.attributes if name not in schema.attributes]:
        del node.attributes[name]


def _rewriter(node: ir.Node, version: int) -> Rewriter | None:
    """The function that writes a node for an older opset; None where there is none, or it needs none."""
    since, rewriter = REWRITERS.get(node.op_type, (0, None))
    if version >= since or rewriter is None:
        return None
    if node.op_type.startswith("Reduce") and _constant_axes(node) is None:
        return None
    if node.op_type == "LayerNormalization" and _normalized_axes(node) is None:
        return None
    return rewriter


def _split(graph: ir.Graph, node: ir.Node) -> None:
    """Parts of equal size are as many as there are outputs."""
    node.attributes.pop("num_outputs", None)


def _reshape(graph: ir.Graph, node: ir.Node) -> None:
    """A size of 0, which `allowzero` is about, is one of an empty tensor: no file takes one."""
    node.attributes.pop("allowzero", None)


def _reduce(graph: ir.Graph, node: ir.Node) -> None:
    """Axes were an attribute."""
    axes = _constant_axes(node)
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)
    if axes:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)


def _constant_axes(node: ir.Node) -> list[int] | None:
    """The axes of a reduction, none for all of them; None if the model computes them."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    empty_means_none = node.attributes.get("noop_with_empty_axes")
    if value is None:
        return None if empty_means_none is not None and empty_means_none.as_int() else []
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(axis) for axis in tensor.numpy().reshape(-1)]


def _shape(graph: ir.Graph, node: ir.Node) -> None:
    """`Shape` had all sizes; those that are wanted are cut out."""
    start = node.attributes.pop("start", None)
    end = node.attributes.pop("end", None)
    if start is None and end is None:
        return
    source = node.inputs[0]
    output = node.outputs[0]
    writer = _Writer(graph, node)
    sizes = writer.op("Shape", "all", source)
    first = writer.constant("start", [start.as_int() if start else 0])
    last = writer.constant("end", [end.as_int() if end else np.iinfo(np.int64).max])
    writer.finish(writer.op("Slice", "part", sizes, first, last), output)


def _layer_normalization(graph: ir.Graph, node: ir.Node) -> None:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias"""
    axes = _normalized_axes(node)
    source, scale, *rest = node.inputs
    assert source is not None
    assert source.dtype is not None
    epsilon = node.attributes.get("epsilon")
    dtype = source.dtype.numpy()
    writer = _Writer(graph, node)
    eps = writer.constant("epsilon", 1e-5 if epsilon is None else epsilon.as_float(), dtype)
    mean = writer.op("ReduceMean", "mean", source, axes=axes, keepdims=1)
    centered = writer.op("Sub", "centered", source, mean)
    square = writer.op("Mul", "square", centered, centered)
    variance = writer.op("ReduceMean", "variance", square, axes=axes, keepdims=1)
    deviation = writer.op("Sqrt", "deviation", writer.op("Add", "shifted", variance, eps))
    result = writer.op("Mul", "scaled", writer.op("Div", "normalized", centered, deviation), scale)
    if rest and rest[0] is not None:
        result = writer.op("Add", "result", result, rest[0])
    writer.finish(result, node.outputs[0])


def _normalized_axes(node: ir.Node) -> list[int] | None:
    """The axes from the end; None where the rank is unknown, a type is not float, or more than one output is read."""
    source = node.inputs[0]
    if source is None or source.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if axis >= 0:
        if source.shape is None:
            return None
        axis -= len(source.shape)
    return list(range(axis, 0))


REWRITERS: Mapping[str, tuple[int, Rewriter]] = {
    "Split": (18, _split),
    "Reshape": (14, _reshape),
    "Shape": (15, _shape),
    "LayerNormalization": (17, _layer_normalization),
    "ReduceL1": (18, _reduce),
    "ReduceL2": (18, _reduce),
    "ReduceLogSum": (18, _reduce),
    "ReduceLogSumExp": (18, _reduce),
    "ReduceMax": (18, _reduce),
    "ReduceMean": (18, _reduce),
    "ReduceMin": (18, _reduce),
    "ReduceProd": (18, _reduce),
    "ReduceSumSquare": (18, _reduce),
}
"""Operator -> the opset in which it became what the forms and torch.onnx write, and how it is written before."""


class _Writer:
    """Writes nodes in the place of one, named after its first output."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph = graph
        self._node = node
        self._name = str(node.outputs[0].name)

    def op(
        self, op_type: str, name: str, *inputs: ir.Value | None, **attributes: object
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)  # type: ignore[arg-type]
        node.outputs[0].name = f"{self._name}.{name}"
        self._graph.insert_before(self._node, node)
        return node.outputs[0]

    def constant(self, name: str, numbers: object, dtype: npt.DTypeLike = np.int64) -> ir.Value:
        """A node, since the graph may be the body of a loop."""
        tensor = ir.tensor(np.array(numbers, dtype), name=f"{self._name}.{name}")
        return self.op("Constant", name, value=tensor)

    def finish(self, result: ir.Value, output: ir.Value) -> None:
        """Let `result` be what `output` was, and remove the node."""
        name = output.name
        result.shape = output.shape
        result.type = output.type
        output.name = None
        result.name = name
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)
