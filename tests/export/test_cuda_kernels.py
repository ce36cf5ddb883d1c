"""Every node of every form of every family has a kernel in onnxruntime's CUDA provider. No GPU is needed.

The kernels are facts from onnxruntime's docs/OperatorKernels.md (commit 001d12d), for the operators that the forms
write, with the types that matter here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.forms import FIXED_TIME
from deploy_rnn.export.forms.node_count import MAX_NODES
from deploy_rnn.export.options import ExportOptions

FLOATS = frozenset({"float", "double", "float16"})
NUMBERS = FLOATS | {"int32", "int64"}
ANY = NUMBERS | {"bool"}
INDICES = frozenset({"int32", "int64"})
BOOL = frozenset({"bool"})


@dataclass(frozen=True)
class Kernel:
    """A kernel of the CUDA provider.

    Attributes:
        first, last: the versions of the operator that it is for; without an end if `last` is None.
        types: of each input; the last one also of those that follow.
    """

    first: int
    last: int | None
    types: tuple[frozenset[str], ...]


RECURRENT = (FLOATS, FLOATS, FLOATS, FLOATS, frozenset({"int32"}), FLOATS)
KERNELS = {
    "Add": [Kernel(14, None, (NUMBERS,)), Kernel(13, 13, (NUMBERS,))],
    "Cast": [Kernel(13, 18, (ANY,)), Kernel(19, 20, (ANY,)), Kernel(21, 22, (ANY,)), Kernel(23, None, (ANY,))],
    "Concat": [Kernel(13, None, (ANY,))],
    "ConstantOfShape": [Kernel(9, None, (INDICES,))],
    "Expand": [Kernel(13, None, (ANY, INDICES))],
    "GRU": [Kernel(14, None, RECURRENT)],
    "Gather": [Kernel(13, None, (ANY, INDICES))],
    "Gemm": [Kernel(13, None, (FLOATS,))],
    "Greater": [Kernel(13, None, (NUMBERS,))],
    "Identity": [Kernel(14, 18, (ANY,)), Kernel(19, None, (ANY,))],
    "LSTM": [Kernel(14, None, RECURRENT)],
    "Less": [Kernel(13, None, (NUMBERS,))],
    "MatMul": [Kernel(13, None, (FLOATS,))],
    "Max": [Kernel(13, None, (NUMBERS,))],
    "Mul": [Kernel(14, None, (NUMBERS,))],
    "Not": [Kernel(1, None, (BOOL,))],
    "RNN": [Kernel(14, None, RECURRENT)],
    "Range": [Kernel(11, None, (NUMBERS - {"float16"},))],
    "ReduceSum": [Kernel(13, None, (NUMBERS,))],
    "Relu": [Kernel(14, None, (FLOATS,))],
    "Reshape": [Kernel(14, 18, (ANY, INDICES)), Kernel(19, 20, (ANY, INDICES)), Kernel(21, None, (ANY, INDICES))],
    "Scan": [Kernel(16, 18, (ANY,)), Kernel(19, None, (ANY,))],
    "Shape": [Kernel(15, 18, (ANY,)), Kernel(19, 20, (ANY,)), Kernel(21, None, (ANY,))],
    "Sigmoid": [Kernel(13, None, (FLOATS,))],
    "Slice": [Kernel(13, None, (ANY, INDICES))],
    "Split": [Kernel(18, None, (ANY, INDICES))],
    "Squeeze": [Kernel(13, 20, (ANY, INDICES)), Kernel(21, None, (ANY, INDICES))],
    "Sub": [Kernel(14, None, (NUMBERS,))],
    "Tanh": [Kernel(13, None, (FLOATS,))],
    "Transpose": [Kernel(13, 20, (ANY,)), Kernel(21, None, (ANY,))],
    "Unsqueeze": [Kernel(13, 20, (ANY, INDICES)), Kernel(21, None, (ANY, INDICES))],
    "Where": [Kernel(16, None, (BOOL, NUMBERS))],
}  # fmt: skip
"""Operator -> its kernels."""

WAYS: dict[str, dict[str, Any]] = {
    "unrolled": {},
    "scan": {},
    "native": {},
    "native, held": {"row_ends": "held"},
    "unrolled, portable": {"portable": True},
}


class Families(nn.Module):
    """All of them, with lengths, states and both directions: every node that a form writes."""

    def __init__(self) -> None:
        super().__init__()
        self.tanh = nn.RNN(3, 4, 2, bidirectional=True)
        self.relu = nn.RNN(3, 4, nonlinearity="relu")
        self.gru = nn.GRU(3, 4, 2, bidirectional=True)
        self.lstm = nn.LSTM(3, 4, 2, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor, h: Tensor) -> list[Tensor]:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        results: list[Tensor] = []
        for layer, state in (
            (self.tanh, h), (self.relu, None), (self.gru, h), (self.lstm, (h, h)), (self.lstm, None),
        ):  # fmt: skip
            output, final = layer(packed, state)
            results.append(pad_packed_sequence(output, total_length=x.size(0))[0])
            results += final if isinstance(final, tuple) else [final]
        return results


@cache
def captured(dynamic_time: bool) -> CapturedModel:
    args = (torch.randn(3, 2, 3), torch.tensor([3, 1]), torch.randn(4, 2, 4))
    return CapturedModel.of(Families(), args, None, ExportOptions(), dynamic_time=dynamic_time)


def nodes_with_types(
    graph: onnx.GraphProto, outer: dict[str, str]
) -> Iterator[tuple[onnx.NodeProto, list[str]]]:
    """Each node of a graph and of those in it, and the types of its inputs; "" where one is left out."""
    types = dict(outer)
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = type_name(value.type.tensor_type.elem_type)
    for tensor in graph.initializer:
        types[tensor.name] = type_name(tensor.data_type)
    for node in graph.node:
        yield node, [types[name] if name else "" for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_with_types(attribute.g, types)


def type_name(number: int) -> str:
    return str(onnx.TensorProto.DataType.Name(number)).lower()


def has_kernel(node: onnx.NodeProto, types: list[str], opset: int) -> bool:
    version = onnx.defs.get_schema(node.op_type, opset, node.domain).since_version
    for kernel in KERNELS.get(node.op_type, []):
        fits = kernel.first <= version and (kernel.last is None or version <= kernel.last)
        allowed = [kernel.types[min(number, len(kernel.types) - 1)] for number in range(len(types))]
        if fits and all(
            not given or given in taken for given, taken in zip(types, allowed, strict=True)
        ):
            return True
    return False


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("way", WAYS)
def test_every_node_has_a_cuda_kernel(way: str, opset: int) -> None:
    form = way.partition(",")[0]
    source = replace(captured(form not in FIXED_TIME), **WAYS[way])
    model = source.written(form, max_nodes=MAX_NODES)
    # Every operator in the files is the same in opset 18 and 20; only the versions of the kernels differ.
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    lacking = set()
    seen = set()
    for node, types in nodes_with_types(proto.graph, {}):
        seen.add(node.op_type)
        if not has_kernel(node, types, opset):
            lacking.add((node.op_type, tuple(types)))
    assert not lacking
    assert {"Gemm", "Tanh"} <= seen or {"RNN", "GRU", "LSTM"} <= seen


def test_a_node_without_a_kernel_would_be_found() -> None:
    whole = onnx.helper.make_node("Gemm", ["a", "b"], ["c"])
    assert has_kernel(whole, ["float", "float"], 18)
    assert not has_kernel(whole, ["int64", "int64"], 18)
    assert not has_kernel(onnx.helper.make_node("Scatter", ["a"], ["b"]), ["float"], 10)
