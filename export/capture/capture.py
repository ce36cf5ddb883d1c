"""A PyTorch model becomes an ONNX graph in which each recurrent stack is still one node."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from deploy_rnn.any_size import AnySize
from deploy_rnn.checking.example_call import Axes, ExampleCall
from deploy_rnn.conversion import convert_for_inference
from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.nn.loops import LoopSizes, in_step, noted_loops
from deploy_rnn.nn.recurrent import Recurrent
from deploy_rnn.packing.tracing import installed
from deploy_rnn.tensor_spec import axis_names

from ..stack import Stack, fixed_lengths, name_layers, stack_nodes
from ..torch_onnx import AUTO, DYNAMIC, Traced, fix_sizes, fixed_axis, trace
from .loop_code import Place, keep_loops
from .named_sizes import NamedSizes
from .packing import OnnxPacking
from .related_axes import with_multiples
from .squeezing import TRACING, Squeezing
from .symbolic import make_symbolic
from .unchanged import unchanged
from .walking import Walking


class Tracer:
    """Traces a model with one example call, as often as need be, from a single copy of it.

    Args:
        model: any module with recurrent layers; it is copied, converted and put into evaluation mode.
        call: the example.
        opset_version: of the graphs.

    Attributes:
        loops: of the last trace, the sizes of each loop of `deploy_rnn.scan`, and the batch of each cell by itself.
        any_size: of the last trace, which lines take an axis apart (`AnySize.taken_apart`).
        squeezes: of the last trace, what a squeeze would do with other sizes than the example's (`Squeezing.notes`).
        written_out: what is to be said of a loop of Python whose steps are written out; empty if there is none.
        fixed_lengths: of the last trace, lengths that are constants of the graph.

    Raises:
        ConversionError: a recurrent layer that cannot be replaced.
    """

    def __init__(self, model: nn.Module, call: ExampleCall, *, opset_version: int) -> None:
        self.model = convert_for_inference(model)
        self.call = call
        self._opset_version = opset_version
        self.loops: list[LoopSizes] = []
        self.any_size = AnySize(inside=TRACING, model=self.model)
        self.squeezes: list[str] = []
        self.written_out = ""
        self.fixed_lengths: list[list[int]] = []
        self._walking: Walking | None = None

    def keeps_loops(self, places: Collection[Place]) -> bool:
        """Let loops of Python in these places stay loops. Returns: whether the model can be traced so, with any number
        of steps; otherwise it is as it was."""
        as_it_was = [(module, dict(vars(module))) for module in self.model.modules()]
        if keep_loops(self.model, places):
            self._walking = Walking()
            with suppress(ExportError):
                if any(isinstance(loop.steps, torch.SymInt) for loop in self._open_loops()):
                    return True
        self._walking = None
        vars(self).pop("open_graph", None)
        for module, attributes in as_it_was:
            vars(module).clear()
            vars(module).update(attributes)
        return False

    def _open_loops(self) -> Sequence[LoopSizes]:
        """The loops of the model with every axis open."""
        assert self.open_graph is not None
        return self.loops

    def capture(self, axes: Sequence[Axes]) -> Traced:
        """Return the model as ONNX, its stacks as `deploy_rnn::Recurrent` nodes.

        `axes`: what is to be dynamic in each tensor of the call; these axes have the names that they were given.

        Raises:
            DynamicAxisError: an axis that the model itself fixes.
            ExportError: torch.export or torch.onnx cannot take the model; the cause is theirs.
        """
        try:
            return self._capture(axes)
        except DynamicAxisError as error:
            reason = error.reason + self.any_size.why_fixed
            advice = str(error).removeprefix(error.reason)
            raise DynamicAxisError(reason + advice, reason) from error

    def _capture(self, axes: Sequence[Axes]) -> Traced:
        layers = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, Recurrent)
        }
        sizes = NamedSizes(self.call, axes)
        packing = OnnxPacking(sizes.same)
        squeezing = Squeezing()
        self.any_size = AnySize(inside=TRACING, model=self.model)
        noted = sizes.noted(self.model)
        with (
            unchanged(self.model),
            noted,
            installed(packing),
            squeezing,
            self.any_size,
            self.any_size.known.of_buffers(self.model),
            noted_loops() as loops,
            _noted_cells(self.model, loops),
            self._walking or nullcontext(),
        ):
            make_symbolic([*layers.values()], packing)
            captured, limits = trace(
                self.model,
                self.call.bound.args,
                self.call.bound.kwargs,
                self.call.shapes(_without_names(axes)) if any(axes) else None,
                opset_version=self._opset_version,
            )
        self.loops = loops
        self.squeezes = squeezing.notes
        graph = captured.graph
        if len(graph.inputs) != len(axes):
            raise ExportError(
                f"torch.onnx made {len(graph.inputs)} inputs of the example's {len(axes)} tensors "
                f"({', '.join(str(value.name) for value in graph.inputs)})."
            )
        fix_sizes(graph, dict.fromkeys(squeezing.fixed, 1))
        name_layers(graph, layers)
        self.fixed_lengths = packing.fixed_lengths or fixed_lengths(graph)
        names = _name_axes(graph, axes)
        return Traced(captured, limits.renamed(names))

    @cached_property
    def stack_axes(self) -> list[Axes]:
        """The axes of the call's tensors through which the recurrent layers get their batch, called "B", and their
        steps, called "T" ("T1", ... if there are several), and those that are computed from these, or these from them.
        Where a layer's batch is a product, such as that of the batch and the steps of another layer, its factors that
        are no steps are called "B" ("B1", ...).

        The model is traced with every axis open; the axes that then reach a stack are looked up among the inputs.
        """
        graph = self.open_graph
        stacks = [Stack.of(node) for node in stack_nodes(graph)]
        names = {str(stack.batch): "B" for stack in stacks}
        names |= {str(loop.batch): "B" for loop in self.loops if loop.batch is not None}
        all_steps = [str(stack.steps) for stack in stacks]
        all_steps += [str(loop.steps) for loop in self.loops if loop.steps is not None]
        different_steps = dict.fromkeys(size for size in all_steps if not size.isdecimal())
        for number, steps in enumerate(different_steps):
            name = names.setdefault(steps, f"T{number or ''}")
            # A convolution or a slice with a stride computes the steps from an axis of the input.
            for symbol in axis_names(steps):
                names.setdefault(symbol, name)
        factors = _first_symbols(graph, [size for size, name in names.items() if name == "B"])
        if "B" not in {names.get(symbol) for symbol in factors}:
            unnamed = [symbol for symbol in factors if symbol not in names]
            names |= {symbol: f"B{number or ''}" for number, symbol in enumerate(unnamed)}
        return with_multiples(graph, [_named_axes(value, names) for value in graph.inputs])

    @property
    def has_layers(self) -> bool:
        """Whether the model has recurrent layers, loops of `deploy_rnn.scan` or cells."""
        return bool(stack_nodes(self.open_graph)) or bool(self.loops)

    @property
    def has_steps(self) -> bool:
        """Whether the model has steps: that of one step of a cell has none, nor has a loop that feeds itself."""
        has_stacks = bool(stack_nodes(self.open_graph))
        return has_stacks or any(loop.steps is not None for loop in self.loops)

    @cached_property
    def open_graph(self) -> ir.Graph:
        """The model with every axis open.

        torch.export treats an open axis as one of any size but 1, so that it refuses, for example, to broadcast it. If
        it refuses, axes of size 1 are fixed: first those that are not the first of a tensor, then all.
        """
        first_error = None
        for is_open in (_any_axis, _is_first_or_larger, _is_larger):
            axes: list[Axes] = []
            for tensor in self.call.tensors:
                numbers = [axis for axis in range(tensor.dim()) if is_open(tensor, axis)]
                axes.append(dict.fromkeys(numbers, AUTO))
            try:
                return self.capture(axes).model.graph
            except ExportError as error:
                first_error = first_error or error
                has_single_axes = any(1 in tensor.shape for tensor in self.call.tensors)
                if not has_single_axes:
                    break
        assert first_error is not None
        raise first_error


def _first_symbols(graph: ir.Graph, sizes: Sequence[str]) -> list[str]:
    """The symbols in these sizes, in the order in which the inputs have them as axes."""
    symbols = {symbol for size in sizes for symbol in axis_names(size)}
    axes = [str(size) for value in graph.inputs for size in value.shape or ()]
    return [axis for axis in dict.fromkeys(axes) if axis in symbols]


@contextmanager
def _noted_cells(model: nn.Module, loops: list[LoopSizes]) -> Iterator[None]:
    """Add the batch of each cell that is called outside of a loop."""

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        input: Tensor = args[0] if args else kwargs["input"]
        if input.dim() == 2 and not in_step():
            loops.append(LoopSizes(None, tuple(input.shape)))

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, nn.RNNCellBase)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _any_axis(tensor: Tensor, axis: int) -> bool:
    return True


def _is_first_or_larger(tensor: Tensor, axis: int) -> bool:
    return axis == 0 or _is_larger(tensor, axis)


def _is_larger(tensor: Tensor, axis: int) -> bool:
    return tensor.size(axis) != 1


def _without_names(axes: Sequence[Axes]) -> list[Axes]:
    """The same for torch.export, which would take equal names for an order to make the sizes equal."""
    return [
        {axis: DYNAMIC if isinstance(dim, str) else dim for axis, dim in tensor_axes.items()}
        for tensor_axes in axes
    ]


def _named_axes(value: ir.Value, names: Mapping[str, str]) -> Axes:
    """The dynamic axes whose symbol has a name."""
    return {
        axis: names[str(size)]
        for axis, size in enumerate(value.shape or ())
        if isinstance(size, ir.SymbolicDim) and str(size) in names
    }


def _name_axes(graph: ir.Graph, axes: Sequence[Axes]) -> dict[str, str]:
    """Give every dynamic axis its name, everywhere in the graph. Returns: symbol -> name."""
    names: dict[str, str] = {}
    for value, tensor_axes in zip(graph.inputs, axes, strict=True):
        assert value.shape is not None
        for axis, dim in tensor_axes.items():
            size = value.shape[axis]
            if isinstance(size, int):
                # An axis left to `AUTO` may turn out to be fixed, another may not.
                if dim is not AUTO:
                    raise fixed_axis(axis, value.name, size)
            elif isinstance(dim, str):
                names.setdefault(str(size), dim)
            elif hasattr(dim, "__name__"):  # a torch.export.Dim
                names.setdefault(str(size), dim.__name__)
    inner_values = [output for node in graph for output in node.outputs]
    for value in [*graph.inputs, *inner_values]:
        if value.shape is not None:
            value.shape = ir.Shape(_renamed(size, names) for size in value.shape)
    return names


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    """A size with the names of its symbols replaced; it may be an expression of several."""
    if isinstance(size, int):
        return size
    if size.value is None:
        return None
    return re.sub(r"[A-Za-z_]\w*", lambda symbol: names.get(symbol[0], symbol[0]), size.value)
