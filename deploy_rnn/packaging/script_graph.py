"""The graph of torch.export as TorchScript text: a line for each node, `for` and `if` for its loops and branches.

TorchScript has the same operators as the graph, whatever Python they were written in. What it computes with sizes is
arithmetic of whole numbers here.
"""

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from deploy_rnn.errors import ExportError
from deploy_rnn.packaging.script_values import constant_text, typed_text

Text = Any
"""The name of a value in the text, or a list of names: what a node with several outputs gives."""


class GraphText:
    """Writes graphs, one within another, as lines of one function.

    Attributes:
        lines: what was written.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._indent = "    "
        self._numbers = itertools.count()

    def write(self, line: str) -> None:
        self.lines.append(f"{self._indent}{line}")

    def new_name(self, name: str) -> str:
        """A name that no other value has, and no word of Python."""
        return f"{name}_{next(self._numbers)}"

    def assign(self, name: str, expression: str) -> str:
        """Write a new variable: -> its whole name."""
        name = self.new_name(name)
        self.write(f"{name} = {expression}")
        return name

    def write_graph(
        self, module: fx.GraphModule, inputs: Sequence[Text], *, stacked: bool = False
    ) -> list[Text]:
        """Write the nodes of a graph. Returns: its outputs; None for one that is None.

        inputs: a name for each of its inputs.
        stacked: whether its outputs are copied anyway, so that it need not copy them.
        """
        graph = _Graph(self, module, inputs)
        for node in module.graph.nodes:
            graph.write(node)
        output = next(node for node in module.graph.nodes if node.op == "output")
        values = output.args[0]
        if not isinstance(values, (list, tuple)):
            values = [values]
        if stacked:
            values = [_copied(value) for value in values]
        return [graph.text(value) for value in values]

    # Blocks of lines.

    def block(self, line: str) -> "_Block":
        """Indents what is written within `with`, below this line."""
        return _Block(self, line)


class _Block:
    def __init__(self, text: GraphText, line: str) -> None:
        self._text = text
        self._line = line

    def __enter__(self) -> None:
        self._text.write(self._line)
        self._text._indent += "    "

    def __exit__(self, *_: object) -> None:
        self._text._indent = self._text._indent[:-4]


class _Graph:
    """The nodes of one graph, and what their values are called."""

    def __init__(self, text: GraphText, module: fx.GraphModule, inputs: Sequence[Text]) -> None:
        self._text = text
        self._module = module
        self._inputs = iter(inputs)
        self._values: dict[fx.Node, Text] = {}

    def text(self, value: Any) -> Text:
        """A node, or a constant, as text."""
        if isinstance(value, fx.Node):
            return self._values[value]
        if isinstance(value, (list, tuple)):
            return [self.text(item) for item in value]
        return constant_text(value)

    def write(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._values[node] = next(self._inputs)
        elif node.op == "get_attr":
            pass  # the graph of a loop or a branch, which is written where it is called
        elif node.op == "call_function":
            self._call(node)
        elif node.op != "output":
            raise ExportError(f"a graph with `{node.op}` cannot be written as TorchScript.")

    def _call(self, node: fx.Node) -> None:
        target = node.target
        if isinstance(target, HigherOrderOperator):
            self._call_with_graphs(node, target)
        elif target is operator.getitem:
            self._take_item(node)
        elif isinstance(target, OpOverload):
            self._call_operator(node, target)
        elif target in _IGNORED:
            pass
        elif target in _ARITHMETIC:
            arguments = [self.text(argument) for argument in node.args]
            self._assign(node, _whole(node, _ARITHMETIC[target].format(*arguments)))
        else:
            raise ExportError(f"TorchScript has no operator for `{_name_of(target)}`.")

    def _assign(self, node: fx.Node, expression: str) -> None:
        self._values[node] = self._text.assign(node.name, expression)

    def _take_item(self, node: fx.Node) -> None:
        source, number = node.args
        value = self.text(source)
        if isinstance(value, list):
            self._values[node] = value[number]  # type: ignore[index]
        else:
            self._assign(node, f"{value}[{number}]")

    # Operators of aten.

    def _call_operator(self, node: fx.Node, target: OpOverload) -> None:
        if target in _ASSUMPTIONS:
            return
        if target in _ASSERTED:
            condition, message = self.text(node.args[0]), self.text(node.args[-1])
            with self._text.block(f"if not bool({condition}):"):
                self._text.write(f"raise RuntimeError({message})")
        elif target in _SIZES:
            arguments = [self.text(argument) for argument in node.args]
            self._assign(node, _SIZES[target].format(*arguments))
        elif target in _NUMBERS:
            self._assign(node, f"{_number_type(node)}({self.text(node.args[0])})")
        elif target in _SAME:
            self._values[node] = self.text(node.args[0])
        else:
            self._write_operator(node, target)

    def _write_operator(self, node: fx.Node, target: OpOverload) -> None:
        if target.namespace not in _NAMESPACES:
            raise ExportError(f"TorchScript has no operator for `{target}`.")
        schema = target._schema
        types = {argument.name: str(argument.type) for argument in schema.arguments}
        positional = zip(node.args, types.values(), strict=False)
        arguments = [typed_text(value, type_name, self.text) for value, type_name in positional]
        for name, value in node.kwargs.items():
            arguments.append(f"{name}={typed_text(value, types[name], self.text)}")
        call = f"torch.ops.{target.namespace}.{target._opname}({', '.join(arguments)})"
        if schema.returns:
            self._assign(node, call)
        else:
            self._text.write(call)

    # Operators that take graphs.

    def _call_with_graphs(self, node: fx.Node, target: HigherOrderOperator) -> None:
        writer = _HIGHER_ORDER.get(str(target))
        if writer is None:
            raise ExportError(f"TorchScript has no operator for `{target}`.")
        self._values[node] = writer(self, *node.args, **node.kwargs)

    def _graph(self, node: fx.Node) -> fx.GraphModule:
        module = self._module.get_submodule(str(node.target))
        assert isinstance(module, fx.GraphModule)
        return module

    def _write_within(
        self, graph: fx.Node, inputs: Sequence[Text], *, stacked: bool = False
    ) -> list[Text]:
        return self._text.write_graph(self._graph(graph), inputs, stacked=stacked)

    def _scan(
        self,
        body: fx.Node,
        first_states: Sequence[Any],
        sequences: Sequence[Any],
        held: Sequence[Any] = (),
    ) -> list[Text]:
        """A loop over the first axis of `sequences`."""
        text = self._text
        states = self._variables("state", self.text(first_states))
        steps = []
        for sequence in self.text(sequences):
            steps.append(text.assign("steps", f"torch.unbind({sequence}, 0)"))
        outputs = []
        for _ in self._outputs(body)[len(states) :]:
            outputs.append(text.assign("outputs", "torch.jit.annotate(List[Tensor], [])"))
        step = text.new_name("step")
        with text.block(f"for {step} in range(len({steps[0]})):"):
            slices = [f"{name}[{step}]" for name in steps]
            inputs = [*states, *slices, *self.text(held)]
            results = self._write_within(body, inputs, stacked=True)
            for name, result in zip(outputs, results[len(states) :], strict=True):
                text.write(f"{name}.append({result})")
            self._set(states, results[: len(states)])
        stacks = [text.assign("stack", f"torch.stack({name})") for name in outputs]
        return [*states, *stacks]

    def _while(
        self,
        condition: fx.Node,
        body: fx.Node,
        first_states: Sequence[Any],
        held: Sequence[Any] = (),
    ) -> list[Text]:
        text = self._text
        states = self._variables("state", self.text(first_states))
        held_texts = self.text(held)
        (first,) = self._write_within(condition, [*states, *held_texts])
        goes_on = text.assign("goes_on", f"bool({first})")
        with text.block(f"while {goes_on}:"):
            self._set(states, self._write_within(body, [*states, *held_texts]))
            (again,) = self._write_within(condition, [*states, *held_texts])
            text.write(f"{goes_on} = bool({again})")
        return states

    def _cond(
        self, condition: Any, true: fx.Node, false: fx.Node, inputs: Sequence[Any] = ()
    ) -> list[Text]:
        text = self._text
        results = [text.new_name("either") for _ in self._outputs(true)]
        for line, graph in ((f"if bool({self.text(condition)}):", true), ("else:", false)):
            with text.block(line):
                values = self._write_within(graph, self.text(inputs))
                for name, value in zip(results, values, strict=True):
                    text.write(f"{name} = {value}")
        return results

    def _set_grad(self, _: bool, graph: fx.Node, *inputs: Any) -> list[Text]:
        """A file computes no gradients."""
        return self._write_within(graph, self.text(inputs))

    def _autocast(
        self, device: str, _dtype: Any, enabled: bool, _cache: Any, graph: fx.Node, *inputs: Any
    ) -> list[Text]:
        if enabled and device == "cpu":
            raise ExportError("TorchScript has no operator for `torch.autocast`.")
        return self._write_within(graph, self.text(inputs))

    def _outputs(self, graph: fx.Node) -> Sequence[Any]:
        nodes = self._graph(graph).graph.nodes
        values = next(node for node in nodes if node.op == "output").args[0]
        return values if isinstance(values, (list, tuple)) else [values]

    def _variables(self, name: str, values: Sequence[Text]) -> list[Text]:
        """New variables, with these values at first."""
        return [self._text.assign(name, value) for value in values]

    def _set(self, names: Sequence[Text], values: Sequence[Text]) -> None:
        """Give all variables their new values at once: a value may be another of the variables."""
        if set(names) & set(values):
            values = self._variables("new", values)
        for name, value in zip(names, values, strict=True):
            self._text.write(f"{name} = {value}")


def _copied(value: Any) -> Any:
    """What a node copies, if it does nothing else; any other value itself."""
    is_copy = isinstance(value, fx.Node) and value.target is torch.ops.aten.clone.default
    return value.args[0] if is_copy and not value.kwargs else value


def _number_type(node: fx.Node) -> str:
    value = node.meta["val"]
    if isinstance(value, (bool, torch.SymBool)):
        return "bool"
    return "int" if isinstance(value, (int, torch.SymInt)) else "float"


def _whole(node: fx.Node, expression: str) -> str:
    """TorchScript gives a float for some of what is a whole number in Python."""
    is_whole = isinstance(node.meta.get("val"), (int, torch.SymInt))
    return f"int({expression})" if is_whole and node.target in _FLOATS else expression


def _name_of(target: Any) -> str:
    return getattr(target, "__name__", str(target))


_aten = torch.ops.aten

_NAMESPACES = ("aten", "quantized", "mkldnn")
"""Of operators that are in libtorch; those of Python would be missing where the file is loaded."""

_SIZES: Mapping[Any, str] = {
    _aten.sym_size.int: "{0}.size({1})",
    _aten.sym_stride.int: "{0}.stride({1})",
    _aten.sym_numel.default: "{0}.numel()",
    _aten.sym_storage_offset.default: "{0}.storage_offset()",
}

_NUMBERS = (_aten.item.default, _aten._local_scalar_dense.default)
"""They take a number out of a tensor."""

_ASSERTED = (_aten._assert_scalar.default, _aten._assert_async.msg)

_ASSUMPTIONS = (
    _aten._assert_tensor_metadata.default,
    _aten.sym_constrain_range.default,
    _aten.sym_constrain_range_for_size.default,
)
"""What torch.export notes for itself."""

_SAME = (_aten.detach.default, _aten.detach_.default, _aten.alias.default)
"""Without gradients, these give the tensor itself."""

_IGNORED = (torch._C._set_grad_enabled,)

_FLOATS = (operator.pow, round, operator.truediv)

_ARITHMETIC: Mapping[Any, str] = {
    operator.add: "({0} + {1})",
    operator.sub: "({0} - {1})",
    operator.mul: "({0} * {1})",
    operator.floordiv: "({0} // {1})",
    operator.truediv: "({0} / {1})",
    operator.mod: "({0} % {1})",
    operator.pow: "({0} ** {1})",
    operator.neg: "(-{0})",
    operator.pos: "{0}",
    operator.abs: "abs({0})",
    operator.eq: "({0} == {1})",
    operator.ne: "({0} != {1})",
    operator.lt: "({0} < {1})",
    operator.le: "({0} <= {1})",
    operator.gt: "({0} > {1})",
    operator.ge: "({0} >= {1})",
    operator.and_: "({0} and {1})",
    operator.or_: "({0} or {1})",
    abs: "abs({0})",
    round: "round({0})",
    math.ceil: "math.ceil({0})",
    math.floor: "math.floor({0})",
    math.trunc: "int({0})",
    torch.sym_float: "float({0})",
    torch.sym_int: "int({0})",
    torch.sym_max: "max({0}, {1})",
    torch.sym_min: "min({0}, {1})",
    torch.sym_not: "(not {0})",
    torch.sym_ite: "({1} if {0} else {2})",
    torch.sym_sqrt: "math.sqrt({0})",
}
"""What is computed with sizes."""

_HIGHER_ORDER: Mapping[str, Callable[..., list[Text]]] = {
    "scan": _Graph._scan,
    "while_loop": _Graph._while,
    "cond": _Graph._cond,
    "wrap_with_set_grad_enabled": _Graph._set_grad,
    "wrap_with_autocast": _Graph._autocast,
}
