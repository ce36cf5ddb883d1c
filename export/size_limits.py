"""For which sizes a traced graph holds: torch.export follows one side of each branch on a size."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from deploy_rnn.checking.branches import Condition, conditions_on, renamed
from deploy_rnn.tensor_spec import ANY_SIZE, Ranges, SizeRange

NO_LIMIT = 2**30
"""Sizes from which on a limit is none: PyTorch's own, such as that of an index, and not one of the model."""


@dataclass(frozen=True)
class SizeLimits:
    """For which sizes of its dynamic axes a graph holds.

    Attributes:
        ranges: axes that may not have every size -> those that they may have.
        conditions: what else must be true of the sizes.
    """

    ranges: Ranges = field(default_factory=dict)
    conditions: Sequence[Condition] = ()

    @classmethod
    def of(cls, program: torch.onnx.ONNXProgram, examples: Sequence[torch.Tensor]) -> "SizeLimits":
        """From a traced program; an axis is called as in the inputs of its graph.

        examples: the tensors that it was traced with.
        """
        assert program.exported_program is not None
        known_ranges = program.exported_program.range_constraints
        ranges: dict[str, SizeRange] = {}
        sizes = {}
        example_sizes = {}
        for name, size, example_size in _input_sizes(program, examples):
            if name.isdecimal():
                continue  # the model fixes it, and the graph has a number there
            sizes[name] = size
            example_sizes[name] = example_size
            bounds = known_ranges.get(size.node.expr)
            if bounds is None:
                continue
            limits = size_range(bounds.lower, bounds.upper)
            # With an example of size 1, torch.export may note a range of 1 to 2, where it need only know that the size
            # may be 1. If that is a branch after all, the check finds it at other sizes.
            is_by_example = example_size == 1 and limits.most == 2
            if limits.is_limited and limits.takes(example_size) and not is_by_example:
                ranges[name] = limits
        conditions = conditions_on(sizes)
        # What PyTorch does not resolve, as after a convolution with a stride.
        for condition in conditions:
            for name in condition.names:
                found = condition.size_range(example_sizes[name])
                if found is not None:
                    ranges[name] = found.within(ranges.get(name, ANY_SIZE))
        return cls(ranges, conditions)

    def renamed(self, names: Mapping[str, str]) -> "SizeLimits":
        """The same with other names of the axes; axes that get one name have one range."""
        ranges: dict[str, SizeRange] = {}
        for axis, limits in self.ranges.items():
            name = renamed(axis, names)
            ranges[name] = limits.within(ranges.get(name, ANY_SIZE))
        conditions = [condition.renamed(names) for condition in self.conditions]
        return SizeLimits(ranges, conditions)


def size_range(least: Any, most: Any) -> SizeRange:
    """The range that torch.export writes with these ends, which may be sympy's numbers."""
    is_open = bool(most >= NO_LIMIT)
    return SizeRange(max(1, int(least)), None if is_open else int(most))


def _input_sizes(
    program: torch.onnx.ONNXProgram, examples: Sequence[torch.Tensor]
) -> Iterator[tuple[str, torch.SymInt, int]]:
    """The dynamic sizes of the inputs: as the graph calls them, as torch.export has them, and of the example."""
    assert program.exported_program is not None
    names = program.exported_program.graph_signature.user_inputs
    values = [
        node.meta["val"] for node in program.exported_program.graph.nodes if node.name in names
    ]
    # A number among the arguments is no input of the graph.
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    inputs = program.model.graph.inputs
    for graph_input, tensor, example in zip(inputs, tensors, examples, strict=False):
        if graph_input.shape is None:
            continue
        for name, size, example_size in zip(
            graph_input.shape, tensor.shape, example.shape, strict=True
        ):
            # A size that is known is an int, whatever its type says.
            if isinstance(size, torch.SymInt):
                yield str(name), size, example_size
