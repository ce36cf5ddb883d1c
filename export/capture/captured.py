"""A model captured for every form: one graph, whose inputs and outputs have their names."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree

import deploy_rnn
from deploy_rnn.checking.branches import Condition
from deploy_rnn.checking.cell_calls import CellCalls, count_cell_calls
from deploy_rnn.checking.example_call import Axes, ExampleCall, on_cpu
from deploy_rnn.checking.model_state import fresh_copy
from deploy_rnn.checking.python_loops import python_loop
from deploy_rnn.checking.structure import output_names_of, without_numbers
from deploy_rnn.checking.two_calls import check_two_calls
from deploy_rnn.errors import DynamicAxisError, ExportError, VerificationError
from deploy_rnn.metadata import FileMetadata
from deploy_rnn.model_errors import warn_user
from deploy_rnn.nn.loops import noted_loops
from deploy_rnn.nn.recurrent import is_recurrent
from deploy_rnn.tensor_spec import SizeRange, axis_names

from ..bare_layer import is_layer, layer_axes, layer_names, with_lengths, with_zero_states
from ..forms.float16_weights import store_in_float16
from ..forms.lower import lower
from ..forms.portable import make_portable
from ..opset import WRITTEN, lowest_ir_version, to_opset
from ..options import ExportOptions
from ..precision.float16 import round_weights
from ..precision.layers import round_layers
from ..precision.names import FLOAT16, ROUNDED
from ..size_limits import size_range
from ..stack import Stack, loop_nodes, loop_steps, row_lengths, stack_nodes
from ..torch_onnx import Traced
from .capture import Tracer
from .indices import table_rows
from .io_names import name_inputs_and_outputs
from .packing import refuse_packed
from .related_axes import open_axes, with_free_axes
from .result import check_result
from .streaming import check_can_stream, open_states, refuse_lengths
from .symbolic import symbolic_linear
from .tied_axes import fixed_axes, with_tied_axes

Result = TypeVar("Result")


@dataclass(frozen=True)
class CapturedModel:
    """A model, an example call of it, and its graph in which each recurrent stack is still one node.

    Attributes:
        model: on the CPU; a layer of `torch.nn` with lengths is wrapped, so that it takes them.
        call: the example, on the CPU.
        onnx: the model, as `Tracer.capture` makes it.
        metadata: of the file, except for its form.
        squeezes: what a squeeze of the model would do with other sizes than the example's; a sentence for each.
        fixed_lengths: lengths that the model gave as numbers to `pack_padded_sequence`.
        axes: what was asked to be dynamic in each tensor of the call.
        conditions: what else than the ranges must be true of the sizes, or the graph may not hold.
        opset_version: of the files; `onnx` itself has 18 or above.
        ir_version: of the files.
        row_ends: how form "native" writes rows of different length.
        portable: whether the files are for runtimes of fewer operators.
        precision: one of `ROUNDED`; or that of the weights, which may also be None.
    """

    model: nn.Module
    call: ExampleCall
    onnx: ir.Model
    metadata: FileMetadata
    squeezes: Sequence[str]
    fixed_lengths: Sequence[Sequence[int]]
    axes: Sequence[Axes]
    conditions: Sequence[Condition]
    opset_version: int
    ir_version: int
    row_ends: str
    portable: bool
    precision: str | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        args: Any,
        kwargs: Mapping[str, Any] | None,
        options: ExportOptions,
        *,
        dynamic_time: bool,
        fixed: Collection[str] = (),
    ) -> "CapturedModel":
        """Capture a model; arguments and errors are those of `export_onnx`.

        `dynamic_time`: whether the time axis is open where `dynamic_shapes` is None.
        `fixed`: names of axes that are then not open, of those that are found.
        """
        model = with_lengths(model, kwargs)
        model, call = on_cpu(model, ExampleCall.of(model, args, kwargs))
        refuse_packed(call.arguments)
        _refuse_bfloat16(call)
        # First of all: what does not run cannot be exported either, and the model's own error says why.
        result = check_two_calls(model, call)
        check_result(result)
        has_layers = _check_layers(model)
        if has_layers and options.streaming:
            check_can_stream(model)
        tracer = Tracer(model, call, opset_version=max(options.opset_version, WRITTEN))
        if options.precision == FLOAT16:
            round_weights(tracer.model)
        round_layers(tracer.model, options.int8_layers, symbolic_linear)
        if not has_layers:
            _keep_loops(model, tracer, options, is_fixed=not dynamic_time)
        if options.streaming:
            check_can_stream(model)
        _return_tensors(tracer.model, result)
        if options.streaming:
            call = with_zero_states(model, call)
            tracer.call = call
        if is_layer(model):
            axes = layer_axes(model, call, options.dynamic_shapes, time=dynamic_time)
            input_names, output_names = layer_names(model, call)
        else:
            axes = _model_axes(tracer, call, options.dynamic_shapes, time=dynamic_time)
            for name in fixed:
                axes = [_without(tensor_axes, name) for tensor_axes in axes]
            input_names, output_names = None, None
        if options.portable:
            axes = _without_batch(axes, options.dynamic_shapes, has_layers=has_layers)
        own_output_names = output_names_of(result)
        if is_layer(model) or options.dynamic_shapes is not None:
            onnx, limits = tracer.capture(axes)
        else:
            onnx, limits = _capture_found(tracer, axes)
        graph = onnx.graph
        name_inputs_and_outputs(
            graph,
            options.input_names or input_names,
            options.output_names or output_names,
            own_output_names,
        )
        metadata = FileMetadata(
            lengths=row_lengths(graph),
            ranges=limits.ranges,
            table_rows=table_rows(graph),
            int8_layers=tuple(options.int8_layers),
        )
        if options.streaming:
            refuse_lengths(metadata.lengths)
            stack_axes = (
                layer_axes(model, call, None, time=True) if is_layer(model) else tracer.stack_axes
            )
            time = _time_axes(graph, stack_axes)
            if not time:
                raise ExportError(
                    "no input has the steps of a recurrent layer as an axis, so that none can come in chunks; "
                    "export without `streaming`."
                )
            states = open_states(graph)
            metadata = replace(metadata, states=states, time=time)
        onnx.producer_name = "deploy-rnn"
        onnx.producer_version = deploy_rnn.__version__
        captured = cls(
            model,
            call,
            onnx,
            metadata,
            tuple(tracer.squeezes),
            tuple(tracer.fixed_lengths),
            axes,
            limits.conditions,
            options.opset_version,
            options.ir_version or lowest_ir_version(options.opset_version),
            options.row_ends_written,
            options.portable,
            options.precision,
        )
        if options.portable and captured.batch_names:
            names = ", ".join(sorted(captured.batch_names))
            raise DynamicAxisError(
                f"portable=True writes the batch as a number, and `dynamic_shapes` asks for {names}; leave it out."
            )
        return captured

    @property
    def example_steps(self) -> int:
        """T of the example, or the size of the axis that it is computed from; the largest where stacks differ."""
        sizes: dict[str, int] = {}
        for value, tensor in zip(self.onnx.graph.inputs, self.call.tensors, strict=False):
            for axis, size in enumerate(value.shape or ()):
                sizes.setdefault(str(size), tensor.size(axis))
        steps = [sizes[name] for name in self.input_time_names]
        steps += [size for size in self._steps if isinstance(size, int)]
        if not steps:
            raise ExportError("the model computes its number of steps; export it for any number.")
        return max(steps)

    @property
    def time_names(self) -> frozenset[str]:
        """The dynamic axes that are the steps of a stack, or axes of the inputs that its steps are computed from.

        A strided convolution, for example, computes fewer steps than its input has.
        """
        input_names = self._input_names
        names: set[str] = set()
        for size in self._steps:
            if isinstance(size, int):
                continue
            steps = str(size)
            sources = (axis_names(steps) & input_names) - self.batch_names - {steps}
            names |= sources
            # Of T and 4*T, if both are sizes of inputs, T counts the steps.
            if not sources or steps not in input_names:
                names.add(steps)
        return frozenset(names)

    @property
    def input_time_names(self) -> frozenset[str]:
        """Those of `time_names` that are axes of the inputs: their sizes tell every number of steps."""
        return self.time_names & self._input_names

    @property
    def batch_names(self) -> frozenset[str]:
        """The dynamic axes that are the batch of a stack."""
        return frozenset(
            str(stack.batch) for stack in self._stacks if not isinstance(stack.batch, int)
        )

    @property
    def _input_names(self) -> frozenset[str]:
        sizes = [size for value in self.onnx.graph.inputs for size in value.shape or ()]
        return frozenset(str(size) for size in sizes if not isinstance(size, int))

    @property
    def _steps(self) -> list[int | ir.SymbolicDim]:
        """T of every stack and of every loop."""
        steps = [stack.steps for stack in self._stacks]
        return steps + [loop_steps(node) for node in loop_nodes(self.onnx.graph)]

    @property
    def _stacks(self) -> list[Stack]:
        return [Stack.of(node) for node in stack_nodes(self.onnx.graph)]

    @contextmanager
    def naming_squeezes(self) -> Iterator[None]:
        """Let an error of the check say which squeeze drops an axis, unless the example itself shows the error."""
        try:
            yield
        except ExportError as error:
            report = error.report if isinstance(error, VerificationError) else None
            failed_cases = [comparison.case for comparison in report.failures] if report else []
            if not self.squeezes or "example" in failed_cases:
                raise
            message = " ".join([str(error), *dict.fromkeys(self.squeezes)])
            if isinstance(error, VerificationError):
                raise VerificationError(message, report) from error
            raise ExportError(message) from error

    def warn_of_limits(self) -> None:
        """Warn of lengths that are constants, and of each axis that may not have every size.

        Not of a range that was asked for.
        """
        for lengths in dict.fromkeys(map(tuple, self.fixed_lengths)):
            warn_user(
                f"the lengths {list(lengths)} are a list of numbers, which is fixed in the file; a tensor among the "
                "arguments would stay an input."
            )
        asked = _asked_ranges(self.axes)
        for name, sizes in self.metadata.ranges.items():
            if sizes == asked.get(name):
                continue
            warn_user(
                f"{self._place(name)} can have a size of {sizes} only: with others the model computes something else, "
                "or fails, and the engine of deploy-rnn refuses them, while another runtime may not."
            )

    def _place(self, name: str) -> str:
        """Where an axis stands first, such as "axis 1 of `x`, T,"."""
        for value in self.onnx.graph.inputs:
            sizes = [str(size) for size in value.shape or ()]
            if name in sizes:
                return f"axis {sizes.index(name)} of `{value.name}`, {name},"
        return name

    def written(self, form: str, *, max_nodes: int) -> ir.Model:
        """Return a copy in one form, which shares the weights.

        Raises:
            ExportError: see `lower` and `to_opset`.
        """
        onnx = self.onnx.clone()
        lower(onnx, form, max_nodes=max_nodes, row_ends=self.row_ends, precision=self.precision)
        if self.portable:
            make_portable(onnx)
        if self.precision == FLOAT16:
            store_in_float16(onnx)
        to_opset(onnx, self.opset_version)
        onnx.ir_version = self.ir_version
        metadata = replace(
            self.metadata,
            form=form,
            row_ends=self._row_ends_in(form),
            precision=self.precision if self.precision in ROUNDED else None,
        )
        onnx.metadata_props.update(metadata.to_properties())
        return onnx

    def _row_ends_in(self, form: str) -> str | None:
        """How a file of this form writes rows of different length, for its metadata.

        None for another form, for none of different length, and for `sequence_lens` where an input has the lengths.
        """
        has_lengths = any(stack.lengths is not None for stack in self._stacks)
        if form != "native" or not has_lengths:
            return None
        is_seen = self.row_ends == "sequence_lens" and bool(self.metadata.lengths)
        return None if is_seen else self.row_ends


def with_fixed_axes(attempt: Callable[[Collection[str]], Result], options: ExportOptions) -> Result:
    """Call `attempt` with the names of the axes to fix: those that the model takes in the size of the example only.

    These are found when the file is checked. Of axes that nobody has asked for, each but the batch is fixed then, with
    a warning, and the export begins again.
    """
    fixed: list[str] = []
    while True:
        try:
            return attempt(fixed)
        except DynamicAxisError as error:
            if error.axis in (None, "B", *fixed) or options.dynamic_shapes is not None:
                raise
            fixed.append(str(error.axis))
            warn_user(f"{error.axis}: fixed at the size in the example, since {error.reason}.")


def _refuse_bfloat16(call: ExampleCall) -> None:
    for name, tensor in zip(call.names, call.tensors, strict=True):
        if tensor.dtype is torch.bfloat16:
            raise ExportError(
                f"`{name}` is bfloat16, which numpy lacks, and so onnxruntime in Python: export the model by its "
                "`.float()`, or let `forward` take float32."
            )


def _return_tensors(model: nn.Module, result: Any) -> None:
    """Let a model return tensors in place of the numbers in its result, if there are any."""
    leaves = pytree.tree_leaves(result)
    if any(isinstance(leaf, (int, float)) for leaf in leaves):
        model.register_forward_hook(lambda _, args, output: without_numbers(output))


def _check_layers(model: nn.Module) -> bool:
    """Check the dtypes of the recurrent layers. Returns: whether there are any."""
    layers = {name: module for name, module in model.named_modules() if is_recurrent(module)}
    for name, layer in layers.items():
        dtype = next(layer.parameters()).dtype
        if dtype not in (torch.float32, torch.float64):
            raise ExportError(
                f"`{name or 'model'}` has {dtype} weights; onnxruntime multiplies float32 and float64 on every "
                "provider: convert the model by its `.float()`, and the tensors that it takes."
            )
    return bool(layers)


def _keep_loops(
    model: nn.Module, tracer: Tracer, options: ExportOptions, *, is_fixed: bool
) -> None:
    """A model without layers has loops of `deploy_rnn.scan`, takes one step, or has no steps at all.

    A loop of Python stays a loop if its number of steps is to be dynamic; otherwise it is written with the steps of the
    example, which has a warning.

    Args:
        is_fixed: whether the form fixes the number of steps.

    Raises:
        ExportError: the number is to be dynamic, and the loop cannot be kept.
    """
    call = tracer.call
    # In training mode, a call would change the batch statistics.
    copied = fresh_copy(model)
    with count_cell_calls(copied, CALLER) as cells, noted_loops() as loops:
        call.run(copied)
    if loops:
        return
    loop = python_loop(fresh_copy(model), call)
    in_loop = _described_cells(cells)
    if loop and not in_loop:
        in_loop = f"{loop}: {WRITTEN_OUT} {loop.advice}"
    if not in_loop:
        return
    axes_asked = None if options.dynamic_shapes is None else call.axes(options.dynamic_shapes)
    is_asked = axes_asked is None or (loop is not None and loop.axis in axes_asked[loop.tensor])
    can_be_kept = loop is not None and is_asked and not is_fixed and not options.streaming
    if can_be_kept and loop is not None and tracer.keeps_loops(loop.places):
        return
    if axes_asked is None and not is_fixed:
        raise ExportError(
            f"{type(model).__name__} has no recurrent layer: {in_loop} Or use form='unrolled', for the steps of the "
            "example."
        )
    warn_user(in_loop)


WRITTEN_OUT = "PyTorch writes out the loop, with the number of steps of the example."


CALLER = "deploy_rnn.checking.example_call"
"""The module whose code calls a model."""


def _described_cells(cells: Sequence[CellCalls]) -> str:
    """What a cell of torch.nn in a loop of Python means for an export; empty if there is none."""
    for cell in cells:
        if cell.number > 1:
            return f"{cell}: {WRITTEN_OUT} {cell.advice}"
    return ""


def _model_axes(
    tracer: Tracer, call: ExampleCall, dynamic_shapes: Any, *, time: bool
) -> list[Axes]:
    """For a whole model: `dynamic_shapes`, or the axes that are the batch (and steps) of its recurrent layers."""
    if dynamic_shapes is not None:
        return call.axes(dynamic_shapes)
    stack_axes = tracer.stack_axes
    if not any(stack_axes) and not tracer.has_layers:
        axes = open_axes(tracer.open_graph, call)
        _warn_of_fixed_axes(tracer.model, call, axes)
        return axes
    if not time:
        stack_axes = [_batch_only(tensor_axes) for tensor_axes in stack_axes]
    axes = with_tied_axes(tracer.model, call, stack_axes)
    axes = with_free_axes(tracer.open_graph, call, axes)
    names = {name for tensor_axes in axes for name in tensor_axes.values()}
    missing = []
    if "B" not in names:
        missing.append("a batch")
    if time and "T" not in names and tracer.has_steps:
        missing.append("steps")
    if missing:
        why_fixed = tracer.any_size.why_fixed
        with count_cell_calls(tracer.model, CALLER) as cells:
            call.run(tracer.model)
        in_loop = _described_cells(cells)
        loop = None if in_loop or "steps" not in missing else python_loop(tracer.model, call)
        if loop is not None:
            in_loop = f"{loop}: {WRITTEN_OUT} {loop.advice}"
        warn_user(
            f"{'an' if names else 'every'} axis is fixed: the recurrent layers have {' and '.join(missing)}, but no "
            f"axis of the inputs is that by itself{why_fixed}; give `dynamic_shapes` if one should be dynamic. "
            f"{in_loop}".rstrip()
        )
    return axes


def _warn_of_fixed_axes(model: nn.Module, call: ExampleCall, axes: Sequence[Axes]) -> None:
    """Name what a model without layers takes in other sizes, and its file does not."""
    for number, axis in fixed_axes(model, call, axes):
        warn_user(
            f"axis {axis} of `{call.names[number]}` is fixed at {call.tensors[number].size(axis)}, the size in the "
            "example: PyTorch traces the model for this size only."
        )


def _not_open(error: DynamicAxisError) -> DynamicAxisError:
    """The error for a batch axis that nobody has named: it is that of the recurrent layers, or goes with it."""
    return DynamicAxisError(
        f"{error.reason}, although it is the batch or the steps of the recurrent layers, or goes with them. "
        "Is it taken apart, as by .tolist() or a loop over its rows? Compute with the tensor itself, or name the axes "
        "that can be dynamic in `dynamic_shapes`."
    )


def _asked_ranges(axes: Sequence[Axes]) -> dict[str, SizeRange]:
    """The range of each `torch.export.Dim`, by its name."""
    ranges = {}
    for tensor_axes in axes:
        for dim in tensor_axes.values():
            least = getattr(dim, "min", None)
            most = getattr(dim, "max", None)
            name = getattr(dim, "__name__", None)
            if name is not None and least is not None and most is not None:
                ranges[name] = size_range(least, most)
    return ranges


def _capture_found(tracer: Tracer, axes: Sequence[Axes]) -> Traced:
    """Capture with axes that were found, not asked for: steps that the model fixes are fixed, with a warning.

    Raises:
        DynamicAxisError: the model fixes the batch.
    """
    try:
        return tracer.capture(axes)
    except DynamicAxisError as error:
        first_error = error
    names = {name for tensor_axes in axes for name in tensor_axes.values()}
    fixed = []
    for name in sorted(names - {"B"}):
        fixed.append(name)
        axes = [_without(tensor_axes, name) for tensor_axes in axes]
        with suppress(DynamicAxisError):
            traced = tracer.capture(axes)
            warn_user(
                f"{', '.join(fixed)}: fixed at the size in the example, since {first_error.reason}."
            )
            return traced
    raise _not_open(first_error) from first_error


def _without(axes: Axes, name: str) -> Axes:
    return {axis: axis_name for axis, axis_name in axes.items() if axis_name != name}


def _without_batch(axes: list[Axes], dynamic_shapes: Any, *, has_layers: bool) -> list[Axes]:
    """The axes of a portable file, whose batch is a number; of a model without layers, all sizes are."""
    if dynamic_shapes is not None:
        return axes
    if not has_layers:
        return [{} for _ in axes]
    return [_without(tensor_axes, "B") for tensor_axes in axes]


def _batch_only(axes: Axes) -> Axes:
    return {axis: name for axis, name in axes.items() if name == "B"}


def _time_axes(graph: ir.Graph, axes: Sequence[Axes]) -> dict[str, int]:
    """The inputs of the graph -> which of their axes is the steps."""
    time: dict[str, int] = {}
    for value, tensor_axes in zip(graph.inputs, axes, strict=True):
        for axis, name in tensor_axes.items():
            if name.startswith("T"):
                time.setdefault(str(value.name), axis)
    return time
