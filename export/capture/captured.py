"""A model captured for every form: one graph, whose inputs and outputs have their names."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from torch import nn

import deploy_rnn
from deploy_rnn.checking.branches import Condition
from deploy_rnn.checking.example_call import Axes, ExampleCall, on_cpu
from deploy_rnn.checking.structure import output_names_of
from deploy_rnn.checking.two_calls import check_two_calls
from deploy_rnn.errors import DynamicAxisError, ExportError, VerificationError
from deploy_rnn.json_fields import MOST
from deploy_rnn.metadata import FileMetadata
from deploy_rnn.model_errors import warn_user
from deploy_rnn.packing.packing import refuse_packed
from deploy_rnn.tensor_spec import IndexRange, SizeRange, axis_names

from ..bare_layer import is_layer, layer_axes, layer_names, with_lengths, with_zero_states
from ..forms.float16_weights import store_in_float16
from ..forms.lower import lower
from ..forms.portable import make_portable
from ..opset import WRITTEN, lowest_ir_version, to_opset
from ..options import ExportOptions
from ..precision.float16 import round_weights
from ..precision.layers import round_layers
from ..precision.names import FLOAT16, INT8, ROUNDED
from ..precision.scope import ALL
from ..precision.weights import NO_CELLS, cell_keys
from ..size_limits import size_range
from ..stack import Stack, loop_nodes, loop_steps, row_lengths, stack_nodes
from .capture import Tracer
from .dtypes import check_inputs, check_layers
from .indices import index_ranges, refuse_below_zero
from .io_names import name_inputs_and_outputs
from .kept_loops import keep_loops_or_warn
from .open_axes import FixedAxes, capture_with, find_axes
from .result import check_result, return_tensors
from .streaming import check_can_stream, open_states, refuse_lengths, time_axes
from .symbolic import symbolic_linear


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
        fixed: FixedAxes | None = None,
    ) -> "CapturedModel":
        """Capture a model; arguments and errors are those of `export_onnx`.

        `dynamic_time`: whether the time axis is open where `dynamic_shapes` is None.
        `fixed`: which of the axes that are found are not open.
        """
        model = with_lengths(model, kwargs)
        model, call = on_cpu(model, ExampleCall.of(model, args, kwargs))
        refuse_packed(call.arguments)
        check_inputs(call)
        # First of all: what does not run cannot be exported either, and the model's own error says why.
        result = check_two_calls(model, call)
        check_result(result)
        tracer = _tracer(model, call, result, options, dynamic_time=dynamic_time)
        # Tensors of the states have come to the example if it had none.
        call = tracer.call
        fixed = fixed or FixedAxes()
        axes = find_axes(model, tracer, options, time=dynamic_time, fixed=fixed)
        onnx, limits = capture_with(model, tracer, axes, options)
        _name(onnx.graph, model, call, result, options)
        metadata = FileMetadata(
            lengths=row_lengths(onnx.graph),
            ranges=limits.ranges,
            index_ranges=index_ranges(onnx.graph),
            int8_layers=tuple(options.int8_layers),
            int8_products=options.int8_products if options.int8_products != ALL else None,
        )
        if options.streaming:
            metadata = _with_states(metadata, onnx.graph, model, tracer)
        refuse_below_zero(onnx.graph, _checked_before_runs(metadata))
        onnx.producer_name = "deploy-rnn"
        onnx.producer_version = deploy_rnn.__version__
        captured = cls(
            model=model,
            call=call,
            onnx=onnx,
            metadata=metadata,
            squeezes=tuple(tracer.squeezes),
            fixed_lengths=tuple(tracer.fixed_lengths),
            axes=axes,
            conditions=limits.conditions,
            opset_version=options.opset_version,
            ir_version=options.ir_version or lowest_ir_version(options.opset_version),
            row_ends=options.row_ends_written,
            portable=options.portable,
            precision=options.precision,
        )
        if options.portable:
            captured._check_portable()
        return captured

    def _check_portable(self) -> None:
        if self.batch_names:
            names = ", ".join(sorted(self.batch_names))
            raise DynamicAxisError(
                f"portable=True writes the batch as a number, and `dynamic_shapes` asks for {names}; leave it out."
            )

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
        lower(
            onnx,
            form,
            max_nodes=max_nodes,
            row_ends=self.row_ends,
            precision=self.precision,
            cells=cell_keys(self.model) if self.precision == INT8 else NO_CELLS,
            rounds_inputs=self.metadata.int8_products in (None, ALL),
        )
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


def _tracer(
    model: nn.Module, call: ExampleCall, result: Any, options: ExportOptions, *, dynamic_time: bool
) -> Tracer:
    """What traces the model, which has been changed so that it can be traced.

    Args:
        result: what the model returned on the example.
    """
    has_layers = check_layers(model)
    if has_layers and options.streaming:
        check_can_stream(model)
    tracer = Tracer(model, call, opset_version=max(options.opset_version, WRITTEN))
    if options.precision == FLOAT16:
        round_weights(tracer.model)
    round_layers(tracer.model, options.int8_layers, symbolic_linear)
    tracer.written_out = keep_loops_or_warn(
        model, tracer, options, has_layers=has_layers, is_fixed=not dynamic_time
    )
    return_tensors(tracer.model, result)
    if options.streaming:
        check_can_stream(model)
        tracer.call = with_zero_states(model, call)
    return tracer


def _name(
    graph: ir.Graph, model: nn.Module, call: ExampleCall, result: Any, options: ExportOptions
) -> None:
    """Give the inputs and outputs of a graph the names that were asked for, or else those that callers expect."""
    input_names, output_names = layer_names(model, call) if is_layer(model) else (None, None)
    name_inputs_and_outputs(
        graph,
        options.input_names or input_names,
        options.output_names or output_names,
        output_names_of(result),
    )


def _with_states(
    metadata: FileMetadata, graph: ir.Graph, model: nn.Module, tracer: Tracer
) -> FileMetadata:
    """Make the states inputs and outputs of the graph. Returns: the metadata that says which they are.

    Raises:
        ExportError: rows have lengths, or no input has steps.
    """
    refuse_lengths(metadata.lengths)
    is_bare = is_layer(model)
    axes = layer_axes(model, tracer.call, None, time=True) if is_bare else tracer.stack_axes
    time = time_axes(graph, axes)
    if not time:
        raise ExportError(
            "no input has the steps of a recurrent layer as an axis, so that none can come in chunks; "
            "export without `streaming`."
        )
    return replace(metadata, states=open_states(graph), time=time)


def _checked_before_runs(metadata: FileMetadata) -> dict[str, IndexRange]:
    """What the engine checks of inputs of whole numbers: indices, and lengths, which are 1 or more."""
    lengths = dict.fromkeys(metadata.lengths, IndexRange(1, MOST))
    return {**lengths, **metadata.index_ranges}


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
