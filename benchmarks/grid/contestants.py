"""What a user would pick to run a recurrent layer, each behind the same two calls.

A contestant that is not available raises an exception that says why, which the table shows: a package that is not
installed, a graph that its exporter does not write in time.
"""

import copy
import importlib.util
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import deploy_rnn
from deploy_rnn.runtime import CPU, CUDA, open_session
from deploy_rnn.serving import Engine
from deploy_rnn.timing import Timing, compare

NATIVE = "native"
EAGER = "torch.nn"
STOCK = "torch.onnx.export"
LEGACY = "torch.onnx.export, legacy"


class Missing(Exception):
    """A contestant that is not available here, and why."""


@dataclass(frozen=True)
class Contestant:
    """A recurrent layer on one input, ready to run.

    Attributes:
        run: returns when the work is done.
        output: runs too, and returns the output (T, B, D*H) in float32 on the CPU, to be compared.
        tolerance: the largest difference from torch.nn that counts as right.
        costs: what the JSON says next to its times: seconds to load, bytes of the file.
    """

    run: Callable[[], object]
    output: Callable[[], Tensor]
    tolerance: float = 1e-4
    costs: dict[str, float] = field(default_factory=dict)


# In PyTorch


def torch_modules(layer: nn.RNNBase, *, compile: bool) -> dict[str, Callable[..., Any]]:
    """The layer itself, and our modules; each serves every T and B."""
    modules: dict[str, Callable[..., Any]] = {EAGER: layer, "deploy_rnn": deploy_rnn.convert(layer)}
    if compile:
        modules["deploy_rnn, compiled"] = deploy_rnn.compile(layer)
    return modules


def torch_contestant(module: Callable[..., Any], x: Tensor, tolerance: float = 1e-4) -> Contestant:
    def run() -> Any:
        outputs = module(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        return outputs

    def output() -> Tensor:
        result: Tensor = run()[0]
        return result.float().cpu()

    return Contestant(run, output, tolerance)


def traced_contestant(layer: nn.RNNBase, x: Tensor) -> Contestant:
    """torch.jit.trace of a layer of torch.nn: torch.jit.script takes such a layer only within another module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and says so
        module = torch.jit.trace(layer, (x,), check_trace=False)
        return torch_contestant(module, x)


def compiled_contestant(layer: nn.RNNBase, x: Tensor) -> Contestant:
    """torch.compile of a layer of torch.nn: PyTorch must be told to allow it, and unrolls the loop."""
    with torch._dynamo.config.patch(allow_rnn=True):
        module = torch.compile(layer, dynamic=False)
        module(x)
    return torch_contestant(module, x)


def reduced_overhead_contestant(
    layer: nn.RNNBase, x: Tensor, tolerance: float = 1e-4
) -> Contestant:
    """Our module, with its launches recorded once by torch.compile."""
    module = torch.compile(deploy_rnn.convert(layer), mode="reduce-overhead", dynamic=False)
    return torch_contestant(module, x, tolerance)


def cudnn_precisions(layer: nn.RNNBase, x: Tensor) -> dict[str, Callable[[], Contestant]]:
    """cuDNN in the precisions that it offers besides float32; a CPU has no such choice."""

    def call_with_tf32(*args: Any) -> Any:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            return layer(*args)

    def open_half(dtype: torch.dtype) -> Contestant:
        half_layer = copy.deepcopy(layer).to(dtype)
        half_layer.flatten_parameters()  # cuDNN would copy all weights at every call
        return torch_contestant(half_layer, x.to(dtype), tolerance=1e-1)

    return {
        f"{EAGER}, tf32": partial(torch_contestant, call_with_tf32, x, tolerance=1e-2),
        f"{EAGER}, fp16": partial(open_half, torch.float16),
        f"{EAGER}, bf16": partial(open_half, torch.bfloat16),
    }


# From a file


def onnx_contestant(path: Path, x: Tensor, threads: int | None = None) -> Contestant:
    """A graph in onnxruntime. On CUDA its tensors stay on the GPU, and a run returns when it is done."""
    started = time.perf_counter()
    session = open_session(path, _provider(x), threads=threads)
    load = time.perf_counter() - started
    size = sum(file.stat().st_size for file in graph_files(path))
    costs = {"load": load, "bytes": size}
    if x.is_cuda:
        return replace(bound_contestant(session, x), costs=costs)
    feeds = {"input": x.numpy()}

    def run() -> Any:
        return session.run(None, feeds)

    def output() -> Tensor:
        return torch.from_numpy(session.run(["output"], feeds)[0])

    return Contestant(run, output, costs=costs)


def graph_files(path: Path) -> list[Path]:
    """A graph, and the weights that PyTorch's exporter puts next to it."""
    weights = path.with_name(path.name + ".data")
    return [file for file in (path, weights) if file.exists()]


def engine_contestant(folder: Path, x: Tensor, threads: int) -> Contestant:
    """A bundle in our engine, which picks the form and shares out the rows among the cores."""
    started = time.perf_counter()
    engine = Engine(folder, threads=threads)
    engine.warm_up()
    load = time.perf_counter() - started
    batch_first = np.ascontiguousarray(x.numpy().swapaxes(0, 1))  # (B, T, I)
    run = partial(engine.run, {"input": batch_first})

    def output() -> Tensor:
        return torch.from_numpy(run()["output"].swapaxes(0, 1))  # (T, B, D*H)

    return Contestant(run, output, costs={"load": load})


def cuda_graph_contestant(path: Path, x: Tensor) -> Contestant:
    """A graph whose launches onnxruntime records once, on a GPU; every node has to be there."""
    return bound_contestant(open_session(path, _provider(x), capture_runs=True), x)


def bound_contestant(session: onnxruntime.InferenceSession, x: Tensor) -> Contestant:
    """A session whose input and output stay in tensors where they are."""
    binding = session.io_binding()
    device = x.device.type
    binding.bind_input("input", device, 0, "float32", list(x.shape), x.data_ptr())
    output_spec = session.get_outputs()[0]
    buffer = torch.empty(x.size(0), x.size(1), output_spec.shape[2], device=x.device)
    binding.bind_output(
        output_spec.name, device, 0, "float32", list(buffer.shape), buffer.data_ptr()
    )

    def run() -> None:
        session.run_with_iobinding(binding)

    def output() -> Tensor:
        run()
        return buffer.cpu()

    return Contestant(run, output)


def _provider(x: Tensor) -> str:
    return CUDA if x.is_cuda else CPU


def openvino_contestant(path: Path, x: Tensor, threads: int) -> Contestant:
    """A graph in OpenVINO, compiled for the shape of `x`."""
    if importlib.util.find_spec("openvino") is None:
        raise Missing("openvino is not installed")
    import openvino

    core = openvino.Core()
    started = time.perf_counter()
    model = core.read_model(path)
    model.reshape({"input": list(x.shape)})
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",  # unless told, OpenVINO takes bfloat16 on a processor that has it
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    load = time.perf_counter() - started
    run = partial(request.infer, {"input": x.numpy()}, share_inputs=True, share_outputs=True)

    def output() -> Tensor:
        return torch.from_numpy(run()["output"].copy())

    return Contestant(run, output, costs={"load": load})


# Measuring


def measure_side_by_side(contestants: dict[str, Contestant], **blocks: float) -> dict[str, Any]:
    """Each contestant's row in the JSON: its difference from the first, and milliseconds.

    Args:
        blocks: how long and how often each runs, as for `deploy_rnn.timing.compare`.

    Raises:
        AssertionError: a contestant is wrong.
    """
    expected = next(iter(contestants.values())).output()
    differences: dict[str, float] = {}
    for name, contestant in contestants.items():
        difference = float((contestant.output() - expected).abs().max())
        assert difference < contestant.tolerance, f"{name} is wrong by {difference}"
        differences[name] = difference
    runs = {name: contestant.run for name, contestant in contestants.items()}
    timings = compare(runs, **blocks)  # type: ignore[arg-type]
    return {
        name: contestant_row(contestants[name], differences[name], timings[name])
        for name in contestants
    }


def contestant_row(contestant: Contestant, difference: float, timing: Timing) -> dict[str, float]:
    return {"difference": difference, **milliseconds(timing), **contestant.costs}


def milliseconds(timing: Timing) -> dict[str, float]:
    return {name: 1e3 * seconds for name, seconds in asdict(timing).items()}
