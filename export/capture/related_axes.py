"""Axes of the inputs that belong to the batch or the steps though they do not reach a recurrent layer as such.

They are looked up in a graph in which every axis is open, so that each axis that may differ from the others has a
symbol of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from deploy_rnn.checking.example_call import Axes, ExampleCall
from deploy_rnn.tensor_spec import axis_names


class Place(NamedTuple):
    """An axis of an input."""

    input: int
    axis: int


def with_multiples(graph: ir.Graph, axes: Sequence[Axes]) -> list[Axes]:
    """Return `axes` with each name also on the axes whose size follows from its own, such as T and 4*T."""
    names: dict[str, str] = {}
    for place, size in _sizes(graph):
        name = axes[place.input].get(place.axis)
        if name is not None:
            for symbol in axis_names(size):
                names[symbol] = name
    related = [dict(tensor_axes) for tensor_axes in axes]
    for place, size in _sizes(graph):
        for symbol in axis_names(size) & names.keys():
            related[place.input].setdefault(place.axis, names[symbol])
    return related


def with_free_axes(graph: ir.Graph, call: ExampleCall, axes: Sequence[Axes]) -> list[Axes]:
    """Return `axes` with the axes that have the size of a named one in the example, and depend on nothing.

    1. Of an input that is unused, or goes to an output by itself: it gets that name.
    2. Of an input that goes into something of another shape, such as a sum: it may have any size, and gets a name of
       its own.
    3. An axis that meets the named one in one tensor, as a table of as many entries as there are rows does, is another
       axis that has its size by chance: it gets no name here.
    """
    free = [dict(tensor_axes) for tensor_axes in axes]
    symbols_of: dict[str, set[str]] = {}
    sizes_of: dict[str, int] = {}
    for place, size in _sizes(graph):
        name = axes[place.input].get(place.axis)
        if name is not None:
            symbols_of.setdefault(name, set()).update(axis_names(size))
            sizes_of.setdefault(name, call.tensors[place.input].size(place.axis))
    named_symbols = set().union(*symbols_of.values())
    own_names: dict[str, str] = {}
    for place, size in _sizes(graph):
        tensor_axes = free[place.input]
        if place.axis in tensor_axes or not size.isidentifier() or size in named_symbols:
            continue
        names = [
            name
            for name, example_size in sizes_of.items()
            if example_size == call.tensors[place.input].size(place.axis)
            and name not in tensor_axes.values()
        ]
        # Case 3.
        names = [name for name in names if not _meet(graph, size, symbols_of[name])]
        if not names:
            continue
        # Case 1.
        if not graph.inputs[place.input].uses() or _reaches_an_output(graph, size):
            tensor_axes[place.axis] = _most_alike(names, place, axes)
        # Case 2.
        else:
            own_names.setdefault(size, call.axis_name(*place))
            tensor_axes[place.axis] = own_names[size]
    return free


def with_other_axes(
    graph: ir.Graph,
    call: ExampleCall,
    axes: Sequence[Axes],
    takes: Callable[[Sequence[Place]], bool],
) -> list[Axes]:
    """Return `axes` with a name of its own on each further size that may differ, such as that of a decoder's memory.

    An axis of size 1 stays fixed: the model may broadcast it.

    Args:
        takes: whether the model takes these axes in other sizes.
    """
    named = [dict(tensor_axes) for tensor_axes in axes]
    symbols: set[str] = set()
    others: dict[str, list[Place]] = {}
    for place, size in _sizes(graph):
        if place.axis in named[place.input]:
            symbols |= axis_names(size)
        elif size.isidentifier() and call.tensors[place.input].size(place.axis) > 1:
            others.setdefault(size, []).append(place)
    for symbol, places in others.items():
        if symbol not in symbols and takes(places):
            for place in places:
                named[place.input][place.axis] = call.axis_name(*places[0])
    return named


def open_axes(graph: ir.Graph, call: ExampleCall) -> list[Axes]:
    """The axes that may have any size, of a model without recurrent layers: each size has the name of its first place.

    Such a name is that of the tensor, and the number of the axis: "x_1".
    """
    axes: list[Axes] = [{} for _ in call.tensors]
    names: dict[str, str] = {}
    for place, size in _sizes(graph):
        if size.isidentifier():
            axes[place.input][place.axis] = names.setdefault(size, call.axis_name(*place))
    return axes


def _sizes(graph: ir.Graph) -> Iterator[tuple[Place, str]]:
    """The dynamic axes of the inputs."""
    for number, value in enumerate(graph.inputs):
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                yield Place(number, axis), str(size)


def _meet(graph: ir.Graph, symbol: str, others: set[str]) -> bool:
    """Whether one tensor has an axis of this size and another of one of these."""
    for node in graph:
        for value in node.outputs:
            sizes = [axis_names(str(size)) for size in value.shape or ()]
            has_symbol = any(symbol in symbols for symbols in sizes)
            if has_symbol and any(symbols & others for symbols in sizes):
                return True
    return False


def _reaches_an_output(graph: ir.Graph, symbol: str) -> bool:
    return any(
        symbol in axis_names(str(size)) for value in graph.outputs for size in value.shape or ()
    )


def _most_alike(names: Sequence[str], place: Place, axes: Sequence[Mapping[int, str]]) -> str:
    """Of these names, the one that another input has on the axis of that number; else the first."""
    for name in names:
        if any(tensor_axes.get(place.axis) == name for tensor_axes in axes):
            return name
    return names[0]
