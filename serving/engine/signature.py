"""`Signature`: the inputs and outputs of a model, in the layout of its graphs and in that of its clients."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

from deploy_rnn.bundle import Manifest, Tensor
from deploy_rnn.metadata import FileMetadata
from deploy_rnn.tensor_spec import IndexRange, IndexRanges, TensorSpec


@dataclass(frozen=True)
class Signature:
    """The tensors of a model as its graphs have them, and what their axes mean.

    Clients see every tensor that has a batch axis batch-first: batch, then time, then the other axes in the graph's
    order. A tensor without a batch axis stays as it is.

    Attributes:
        inputs, outputs: the same for every graph of the model.
        lengths: inputs that hold the lengths of the rows -> the time axis that limits them, by its name or size.
        states: inputs that carry a state from chunk to chunk -> the outputs that give it.
        least_sizes: dynamic axes that may not have every size -> one that the graphs take.
        index_ranges: inputs that are indices into a table -> what they may be.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    lengths: Mapping[str, int | str]
    states: Mapping[str, str]
    least_sizes: Mapping[str, int] = field(default_factory=dict)
    index_ranges: IndexRanges = field(default_factory=dict)

    @classmethod
    def of_manifest(cls, manifest: Manifest, index_ranges: IndexRanges) -> Self:
        """The signature of a bundle.

        Args:
            manifest: of the bundle.
            index_ranges: which its graphs have in their metadata.
        """
        return cls(
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            lengths=manifest.lengths,
            states=manifest.states,
            index_ranges=_of_whole_numbers(index_ranges, manifest.inputs),
        )

    @classmethod
    def of_file(
        cls,
        inputs: Iterable[TensorSpec],
        outputs: Iterable[TensorSpec],
        metadata: FileMetadata,
    ) -> Self:
        """The signature of a single .onnx file, whose tensors keep their layout: batch and time stay unknown."""
        input_tensors = _without_axes(inputs)
        output_tensors = _without_axes(outputs)
        # Another tool may have renamed or removed what the metadata names.
        input_names = {tensor.name for tensor in input_tensors}
        output_names = {tensor.name for tensor in output_tensors}
        lengths = {name: axis for name, axis in metadata.lengths.items() if name in input_names}
        states = {}
        for state_input, state_output in metadata.states.items():
            if state_input in input_names and state_output in output_names:
                states[state_input] = state_output
        index_ranges = _of_whole_numbers(metadata.index_ranges, input_tensors)
        return cls(input_tensors, output_tensors, lengths, states, index_ranges=index_ranges)

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs and the outputs."""
        return (*self.inputs, *self.outputs)

    @cached_property
    def client_inputs(self) -> tuple[Tensor, ...]:
        """The inputs in the layout of clients."""
        return tuple(batch_first(tensor) for tensor in self.inputs)

    @cached_property
    def client_outputs(self) -> tuple[Tensor, ...]:
        """The outputs in the layout of clients."""
        return tuple(batch_first(tensor) for tensor in self.outputs)

    @cached_property
    def optional(self) -> frozenset[str]:
        """Inputs that a client may leave out: lengths (then every step counts) and states (then zeros)."""
        return frozenset(self.lengths) | frozenset(self.states)

    @cached_property
    def layouts(self) -> "Mapping[str, Layout]":
        """Tensor -> the order of its axes."""
        return {tensor.name: Layout.of(tensor) for tensor in self.tensors}

    @cached_property
    def trimmed_axes(self) -> Mapping[str, int]:
        """Outputs with an axis whose size no input tells -> that axis, in the layout of clients.

        `pad_packed_sequence` without `total_length` makes one: it has as many steps as the longest row of the run.
        """
        known_names = {name for tensor in self.inputs for name in _axis_names(tensor)}
        axes: dict[str, int] = {}
        for tensor in self.client_outputs:
            for axis, size in enumerate(tensor.shape):
                if not _names_in(size) <= known_names:
                    axes.setdefault(tensor.name, axis)
        return axes

    @cached_property
    def batch_axis(self) -> str | None:
        """The name of the batch axis, if every tensor has it; None if requests cannot share a run."""
        names = set()
        for tensor in self.tensors:
            size = None if tensor.batch is None else tensor.shape[tensor.batch]
            # A tensor without the axis, or with a fixed size, is for one request.
            if not isinstance(size, str):
                return None
            names.add(size)
        return names.pop() if len(names) == 1 else None

    @cached_property
    def padded_axes(self) -> Mapping[str, tuple[str, int, int]]:
        """Inputs with steps that may be padding -> the input of their lengths, the axis of the rows, and that of the
        steps, in the layout of clients."""
        axes: dict[str, tuple[str, int, int]] = {}
        for tensor in self.client_inputs:
            for lengths in self.client_inputs:
                limit = self.lengths.get(lengths.name)
                if limit is None or len(lengths.shape) != 1:
                    continue
                row_axis = _only_axis(tensor, lengths.shape[0])
                time_axis = _only_axis(tensor, limit)
                if row_axis is not None and time_axis is not None and row_axis != time_axis:
                    axes[tensor.name] = lengths.name, row_axis, time_axis
        return axes

    def nearest(self, name: str, number: int) -> int:
        """The number that an input takes: the same, or for indices the next one in the table."""
        limits = self.index_ranges.get(name)
        return number if limits is None else limits.nearest(number)

    @cached_property
    def time_axes(self) -> frozenset[str]:
        """The names of the time axes."""
        names = set()
        for tensor in self.tensors:
            size = None if tensor.time is None else tensor.shape[tensor.time]
            if isinstance(size, str):
                names.add(size)
        return frozenset(names)

    @cached_property
    def lengths_cover_time(self) -> bool:
        """Whether there are lengths for the one time axis, without which no row can be padded."""
        if self.batch_axis is None or len(self.time_axes) != 1:
            return False
        return self.time_axes.issubset(self.lengths.values())

    @cached_property
    def outputs_over_time(self) -> frozenset[str]:
        """Outputs with a value for every step."""
        names = [tensor.name for tensor in self.outputs if tensor.time is not None]
        return frozenset(names)


@dataclass(frozen=True)
class Layout:
    """The order of the axes of a tensor.

    Attributes:
        to_client: the graph's axes in the order in which clients see them.
        to_graph: the axes of clients in the order of the graph.
    """

    to_client: tuple[int, ...]
    to_graph: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        to_client = axis_order(tensor)
        return cls(to_client, tuple(map(to_client.index, range(len(to_client)))))

    @property
    def is_kept(self) -> bool:
        """Whether clients see the tensor as the graph has it."""
        return self.to_client == tuple(range(len(self.to_client)))


def axis_order(tensor: Tensor) -> tuple[int, ...]:
    """Return the axes of a graph's tensor in the order in which clients see them."""
    axes = range(len(tensor.shape))
    if tensor.batch is None:
        return tuple(axes)
    # (B, T, ...), or (B, ...) for states and lengths.
    leading = [tensor.batch]
    if tensor.time is not None:
        leading.append(tensor.time)
    trailing = [axis for axis in axes if axis not in leading]
    return (*leading, *trailing)


def batch_first(tensor: Tensor) -> Tensor:
    """Return a graph's tensor as clients see it."""
    axes = axis_order(tensor)
    shape = [tensor.shape[axis] for axis in axes]
    batch = None if tensor.batch is None else axes.index(tensor.batch)
    time = None if tensor.time is None else axes.index(tensor.time)
    return replace(tensor, shape=tuple(shape), batch=batch, time=time)


def _only_axis(tensor: Tensor, size: int | str) -> int | None:
    """Return the axis of this size; None if there is none, or several."""
    return tensor.shape.index(size) if tensor.shape.count(size) == 1 else None


def _of_whole_numbers(index_ranges: IndexRanges, inputs: Iterable[Tensor]) -> dict[str, IndexRange]:
    """Leave out what is not an input of whole numbers: another tool may have changed the file."""
    names = {tensor.name for tensor in inputs if tensor.dtype.startswith(("int", "uint"))}
    return {name: limits for name, limits in index_ranges.items() if name in names}


def _axis_names(tensor: Tensor) -> frozenset[str]:
    """The names in the sizes of a tensor."""
    names: frozenset[str] = frozenset()
    return names.union(*(_names_in(size) for size in tensor.shape))


def _names_in(size: int | str) -> frozenset[str]:
    """The names in a size: one, or those of an expression such as "Max(1, T//2)"."""
    if isinstance(size, int):
        return frozenset()
    return frozenset(re.findall(r"\b[^\W\d][\w.]*\b(?!\()", size))


def _without_axes(specs: Iterable[TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(Tensor(spec.name, spec.dtype, spec.shape) for spec in specs)
