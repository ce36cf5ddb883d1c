"""The floor: the matrix products of a recurrent layer alone. What calls the same library for them cannot be faster."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from deploy_rnn.runtime import open_session


def pairs(layer: nn.RNNBase) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """W_ih and W_hh of each layer, one a direction, detached."""
    named: dict[str, Tensor] = {name: weight.detach() for name, weight in layer.named_parameters()}
    sides = ("", "_reverse") if layer.bidirectional else ("",)
    for number in range(layer.num_layers):
        ih, hh = ([named[f"weight_{kind}_l{number}{side}"] for side in sides] for kind in ("ih", "hh"))
        yield ih, hh


def products(layer: Any, x: Tensor) -> Callable[[], None]:
    """By PyTorch, in as few calls as can be: a step is one call for all directions."""
    steps, batch, _ = x.shape
    plan: list[tuple[Tensor, list[Tensor], Tensor, Tensor]] = []
    for ih, hh in pairs(layer):
        sequence = torch.randn(steps * batch, ih[0].size(1), device=x.device)
        state = torch.randn(len(hh), batch, hh[0].size(1), device=x.device)
        plan.append((sequence, [weight.t() for weight in ih], state, torch.stack(hh).transpose(1, 2)))

    def run() -> None:
        for sequence, weights_ih, state, weights_hh in plan:
            for weight in weights_ih:
                torch.mm(sequence, weight)
            for _ in range(steps):
                torch.bmm(state, weights_hh)
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def onnx_products(layer: nn.RNNBase, x: Tensor, path: Path, threads: int) -> Callable[[], None]:
    """By onnxruntime: a graph of MatMul alone, written to `path`; its outputs stay where they are."""
    onnx.save(_graph(layer, x.size(0)), path)
    session = open_session(path, threads=threads)
    binding = session.io_binding()
    for each in session.get_inputs():
        rows = x.size(0) * x.size(1) if each.name.endswith("sequence") else x.size(1)
        binding.bind_cpu_input(each.name, torch.randn(rows, each.shape[1]).numpy())
    for each in session.get_outputs():
        binding.bind_output(each.name)
    return lambda: session.run_with_iobinding(binding)


def rows_apart(layer: nn.RNNBase, x: Tensor, path: Path, threads: int) -> Callable[[], None]:
    """By onnxruntime, each core with rows of its own."""
    runs = [onnx_products(layer, rows, path, 1) for rows in x.chunk(threads, 1)]
    pool = ThreadPoolExecutor(len(runs))

    def run() -> None:
        wait([pool.submit(each) for each in runs])

    return run


def _graph(layer: nn.RNNBase, steps: int) -> onnx.ModelProto:
    """Every step has an input of its own: onnxruntime computes equal products once."""
    nodes, inputs, outputs, weights = [], [], [], []

    def product(name: str, source: str, weight: str) -> None:
        nodes.append(helper.make_node("MatMul", [source, weight], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def tensor(name: str, columns: int) -> None:
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, columns]))

    for number, (ih, hh) in enumerate(pairs(layer)):
        tensor(f"{number}.sequence", ih[0].size(1))
        for step in range(steps):
            tensor(f"{number}.state{step}", hh[0].size(1))
        for side, (w_ih, w_hh) in enumerate(zip(ih, hh, strict=True)):
            for kind, weight in (("ih", w_ih), ("hh", w_hh)):
                weights.append(numpy_helper.from_array(weight.t().contiguous().numpy(), f"{number}.{side}.{kind}"))
            product(f"{number}.{side}.projected", f"{number}.sequence", f"{number}.{side}.ih")
            for step in range(steps):
                product(f"{number}.{side}.step{step}", f"{number}.state{step}", f"{number}.{side}.hh")
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
