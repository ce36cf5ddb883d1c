"""A captured stack: the contract between `capture`, which writes one node for each, and `forms`, which replace it.

`torch.export` would unroll the time loop, freeze the time axis silently, and take half a minute for T=100. So each
stack of layers is captured as one node `deploy_rnn::Recurrent`, with T and B open, and a form replaces it by real ONNX
operators. The node has

    inputs: input, lengths (absent for T), every state (absent for zeros), `layer.ordered_weights()`
    outputs: output, every state after the last step
    attribute: layer, its number among the layers of the model

`name_layers` notes on each node which layer wrote it, and `Stack.of` reads both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from deploy_rnn.nn.cells import Cell
from deploy_rnn.nn.recurrent import Recurrent

DOMAIN = "deploy_rnn"
OP_TYPE = "Recurrent"

LINEAR_TYPE = "Linear"
"""A linear layer that is to be of eight bits is captured as `deploy_rnn::Linear`: input (..., K), weight (M, K), and
bias (M,), which may be absent -> (..., M)."""

FIRST_STATE = 2
"""The input of a captured node that is its first state."""

FIRST_FINAL = 1
"""The output of a captured node that is its first state after the last step."""

# What a model does to lengths without changing which rows they belong to, other than by sorting them.
_SAME_LENGTHS = frozenset({"Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "TopK"})


def stack_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The captured stacks of a graph, in its order."""
    return [node for node in graph if node.domain == DOMAIN and node.op_type == OP_TYPE]


def linear_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The captured linear layers of a graph, in its order."""
    return [node for node in graph if node.domain == DOMAIN and node.op_type == LINEAR_TYPE]


def loop_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The loops of `deploy_rnn.scan` in a captured graph: each is a `Scan` node."""
    return [node for node in graph if node.op_type == "Scan" and node.domain == ""]


def loop_states(node: ir.Node) -> int:
    """How many states a loop has: they are its first inputs, and the sequences that it walks over the others."""
    return len(node.inputs) - node.attributes["num_scan_inputs"].as_int()


def loop_steps(node: ir.Node) -> int | ir.SymbolicDim:
    """T of a loop: a number where it is fixed, else a symbol."""
    sequence = node.inputs[loop_states(node)]
    assert sequence is not None
    assert sequence.shape is not None
    return sequence.shape[0]


def name_layers(graph: ir.Graph, layers: Mapping[str, Recurrent]) -> None:
    """Note on each captured stack which of `layers` it is, and its path in the model."""
    items = list(layers.items())
    for node in stack_nodes(graph):
        path, layer = items[node.attributes["layer"].as_int()]
        node.meta["path"] = path
        node.meta["layer"] = layer


def layer_path(node: ir.Node) -> str:
    """The path of a captured stack in its model, such as "encoder.rnn"; empty for a bare layer."""
    path: str = node.meta["path"]
    return path


@dataclass(frozen=True)
class DirectionWeights:
    """The weights of one direction of one layer; None for those that it does not have.

    weight_ih (G*H, I or D*P), weight_hh (G*H, P) or (G*H,), biases (G*H,), weight_hr (P, H); `own`: the cell's own
    parameters, in its order.
    """

    weight_ih: ir.Value
    weight_hh: ir.Value
    bias_ih: ir.Value | None
    bias_hh: ir.Value | None
    weight_hr: ir.Value | None
    own: tuple[ir.Value, ...]

    @classmethod
    def of(
        cls, weights: Mapping[str, ir.Value | None], suffix: str, own_names: Iterable[str]
    ) -> "DirectionWeights":
        """Pick from the weights of a stack, by name, those that end in `suffix`, such as "_l0_reverse"."""
        weight_ih = weights[f"weight_ih{suffix}"]
        weight_hh = weights[f"weight_hh{suffix}"]
        assert weight_ih is not None
        assert weight_hh is not None
        own_weights = [weights[f"{name}{suffix}"] for name in own_names]
        return cls(
            weight_ih=weight_ih,
            weight_hh=weight_hh,
            bias_ih=weights.get(f"bias_ih{suffix}"),
            bias_hh=weights.get(f"bias_hh{suffix}"),
            weight_hr=weights.get(f"weight_hr{suffix}"),
            own=tuple(weight for weight in own_weights if weight is not None),
        )


@dataclass(frozen=True)
class Stack:
    """What one captured node says.

    Attributes:
        input: (T, B, I).
        lengths: (B,), or None where every row has T steps.
        states: (L*D, B, P), (L*D, B, H) ..., each None for zeros.
        layers: L layers of D directions each.
        cell: what one step does.
        input_size: I, which the graph may not know for a number.
        sizes: P, H ...: the last axis of each state.
        kept: how many states, from the first, are needed after every step if rows differ in length: 1 if at most h_n of
            the final states is read, else all.
    """

    input: ir.Value
    lengths: ir.Value | None
    states: tuple[ir.Value | None, ...]
    layers: tuple[tuple[DirectionWeights, ...], ...]
    cell: Cell
    input_size: int
    sizes: tuple[int, ...]
    kept: int

    @classmethod
    def of(cls, node: ir.Node) -> "Stack":
        """Read a node that `name_layers` has seen."""
        layer: Recurrent = node.meta["layer"]
        source, lengths, *states_and_weights = node.inputs
        assert source is not None
        count = layer.cell.states
        weights = dict(zip(layer.weight_shapes(), states_and_weights[count:], strict=True))
        suffixes = ("", "_reverse") if layer.bidirectional else ("",)
        layers = []
        for number in range(layer.num_layers):
            directions = [
                DirectionWeights.of(weights, f"_l{number}{suffix}", layer.cell.parameters)
                for suffix in suffixes
            ]
            layers.append(tuple(directions))
        finals_after_h = node.outputs[FIRST_FINAL + 1 :]
        reads_all = any(value.uses() or value.is_graph_output() for value in finals_after_h)
        return cls(
            input=source,
            lengths=lengths,
            states=tuple(states_and_weights[:count]),
            layers=tuple(layers),
            cell=layer.cell,
            input_size=layer.input_size,
            sizes=tuple(layer.state_sizes()),
            kept=count if reads_all else 1,
        )

    @property
    def state_names(self) -> list[str]:
        """h, c, and s2, s3 ... for further states."""
        numbered = [f"s{index}" for index in range(2, len(self.sizes))]
        return ["h", "c", *numbered][: len(self.sizes)]

    @property
    def computes_lengths(self) -> bool:
        """Whether the model computes its lengths, so that no caller can check them: a row may then be empty."""
        if self.lengths is None:
            return False
        source = _source(self.lengths)
        producer = source.producer()
        is_constant = source.const_value is not None or (
            producer is not None and producer.op_type == "Constant"
        )
        return not source.is_graph_input() and not is_constant

    @property
    def steps(self) -> int | ir.SymbolicDim:
        """T: a number where the time axis is fixed, else a symbol."""
        assert self.input.shape is not None
        return self.input.shape[0]

    @property
    def batch(self) -> int | ir.SymbolicDim:
        """B: a number where the batch axis is fixed, else a symbol."""
        assert self.input.shape is not None
        return self.input.shape[1]


def fixed(value: ir.Value, axis: int) -> int:
    """The size of an axis that is never dynamic."""
    assert value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int)
    return size


def row_lengths(graph: ir.Graph) -> dict[str, int | str]:
    """The inputs of a graph that are the lengths of its rows, sorted or not -> T, their upper limit."""
    limits: dict[str, int | str] = {}
    input_axes = {str(size) for value in graph.inputs for size in value.shape or ()}
    for node in stack_nodes(graph):
        stack = Stack.of(node)
        source = None if stack.lengths is None else _source(stack.lengths)
        if source is not None and source.is_graph_input():
            steps = stack.steps if isinstance(stack.steps, int) else str(stack.steps)
            name = str(source.name)
            # A later stack may have the steps that an earlier one was trimmed to, which no input tells.
            if name not in limits or str(limits[name]) not in input_axes:
                limits[name] = steps
    return limits


def fixed_lengths(graph: ir.Graph) -> list[list[int]]:
    """The lengths of stacks that are constants of a graph."""
    found = []
    for node in stack_nodes(graph):
        lengths = Stack.of(node).lengths
        numbers = None if lengths is None else ir.convenience.get_const_tensor(_source(lengths))
        if numbers is not None:
            found.append(numbers.numpy().tolist())
    return found


def _source(lengths: ir.Value) -> ir.Value:
    """What lengths come from: an input of the graph, a constant, or what the model computes."""
    value = lengths
    while not value.is_graph_input():
        producer = value.producer()
        if producer is None or producer.op_type not in _SAME_LENGTHS:
            break
        source = producer.inputs[0]
        assert source is not None
        value = source
    return value
