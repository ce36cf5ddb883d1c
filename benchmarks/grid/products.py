"""The matrix products of a recurrent layer alone, to compare with the whole layer.

They show how much of a layer's time its products take. Code that multiplies in another way can take less.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from deploy_rnn.runtime import open_session


def weight_pairs(layer: nn.RNNBase) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """For each layer, its W_ih and its W_hh, one of each for a direction, detached."""
    weights: dict[str, Tensor] = {
        name: weight.detach() for name, weight in layer.named_parameters()
    }
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    for number in range(layer.num_layers):
        w_ih = [weights[f"weight_ih_l{number}{suffix}"] for suffix in suffixes]
        w_hh = [weights[f"weight_hh_l{number}{suffix}"] for suffix in suffixes]
        yield w_ih, w_hh


@dataclass(frozen=True)
class LayerProducts:
    """The operands of one layer's products in PyTorch."""

    sequence: Tensor  # (T*B, I)
    w_ih: list[Tensor]  # (I, G*H), one for a direction
    state: Tensor  # (D, B, H)
    w_hh: Tensor  # (D, H, G*H)


def torch_products(layer: Any, x: Tensor) -> Callable[[], None]:
    """The products in PyTorch, in as few calls as possible: a step is one call for all directions."""
    steps, batch, _ = x.shape
    layers: list[LayerProducts] = []
    for w_ih, w_hh in weight_pairs(layer):
        sequence = torch.randn(steps * batch, w_ih[0].size(1), device=x.device)
        state = torch.randn(len(w_hh), batch, w_hh[0].size(1), device=x.device)
        stacked = torch.stack(w_hh).transpose(1, 2)  # (D, H, G*H)
        layers.append(LayerProducts(sequence, [weight.t() for weight in w_ih], state, stacked))

    def run() -> None:
        for operands in layers:
            for weight in operands.w_ih:
                torch.mm(operands.sequence, weight)
            for _ in range(steps):
                torch.bmm(operands.state, operands.w_hh)
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def onnx_products(layer: nn.RNNBase, x: Tensor, path: Path, threads: int) -> Callable[[], None]:
    """The products in onnxruntime: a graph of MatMul alone, written to `path`, whose outputs are not copied."""
    steps, batch, _ = x.shape
    onnx.save(_products_model(layer, steps), path)
    session = open_session(path, threads=threads)
    binding = session.io_binding()
    for spec in session.get_inputs():
        rows = steps * batch if spec.name.endswith("sequence") else batch
        binding.bind_cpu_input(spec.name, torch.randn(rows, spec.shape[1]).numpy())
    for spec in session.get_outputs():
        binding.bind_output(spec.name)
    return lambda: session.run_with_iobinding(binding)


def onnx_products_by_core(
    layer: nn.RNNBase, x: Tensor, path: Path, threads: int
) -> Callable[[], None]:
    """The products in onnxruntime, each core with some of the rows."""
    runs = [onnx_products(layer, rows, path, threads=1) for rows in x.chunk(threads, dim=1)]
    pool = ThreadPoolExecutor(len(runs))

    def run() -> None:
        wait([pool.submit(run_core) for run_core in runs])

    return run


@dataclass
class _ProductsGraph:
    """A graph of MatMul under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def add_input(self, name: str, columns: int) -> None:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, columns]))

    def add_weight(self, name: str, weight: Tensor) -> None:
        self.weights.append(numpy_helper.from_array(weight.t().contiguous().numpy(), name))

    def add_product(self, name: str, input_name: str, weight_name: str) -> None:
        self.nodes.append(helper.make_node("MatMul", [input_name, weight_name], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _products_model(layer: nn.RNNBase, steps: int) -> onnx.ModelProto:
    """The products as a graph. Every step has its own input, because onnxruntime computes equal products only once."""
    graph = _ProductsGraph()
    for number, (w_ih, w_hh) in enumerate(weight_pairs(layer)):
        graph.add_input(f"{number}.sequence", w_ih[0].size(1))
        for step in range(steps):
            graph.add_input(f"{number}.state{step}", w_hh[0].size(1))
        for direction in range(len(w_ih)):
            prefix = f"{number}.{direction}"
            graph.add_weight(f"{prefix}.ih", w_ih[direction])
            graph.add_weight(f"{prefix}.hh", w_hh[direction])
            graph.add_product(f"{prefix}.projected", f"{number}.sequence", f"{prefix}.ih")
            for step in range(steps):
                graph.add_product(f"{prefix}.step{step}", f"{number}.state{step}", f"{prefix}.hh")
    graph_proto = helper.make_graph(
        graph.nodes, "products", graph.inputs, graph.outputs, graph.weights
    )
    return helper.make_model(graph_proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
