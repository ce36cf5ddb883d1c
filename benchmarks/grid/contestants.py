"""What a user would pick to run a recurrent layer, each behind the same two calls.

A contestant that cannot be had says why by an exception, which the table shows: a package that is not installed, a
graph that its exporter does not write in time.
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
    """A contestant that cannot be had here, and why."""


@dataclass(frozen=True)
class Contestant:
    """A recurrent layer on one input, ready to run.

    Attributes:
        run: returns when the work is done.
        output: runs too, and gives the output (T, B, D*H) in float32 on the CPU, to be compared.
        tolerance: the largest difference from torch.nn that is right.
        costs: what stands beside its times in the JSON: seconds to load, bytes of the file.
    """

    run: Callable[[], object]
    output: Callable[[], Tensor]
    tolerance: float = 1e-4
    costs: dict[str, float] = field(default_factory=dict)


def torch_contestant(module: Callable[..., Any], x: Tensor, tolerance: float = 1e-4) -> Contestant:
    def run() -> Any:
        outputs = module(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        return outputs

    return Contestant(run, lambda: run()[0].float().cpu(), tolerance)


def traced(layer: nn.RNNBase, x: Tensor) -> Contestant:
    """torch.jit of a layer of torch.nn, which it scripts only within another module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and says so
        return torch_contestant(torch.jit.trace(layer, (x,), check_trace=False), x)


def compiled(layer: nn.RNNBase, x: Tensor) -> Contestant:
    """torch.compile of a layer of torch.nn, which PyTorch has to be told to allow: it unrolls the loop."""
    with torch._dynamo.config.patch(allow_rnn=True):
        module = torch.compile(layer, dynamic=False)
        module(x)
    return torch_contestant(module, x)


def reduced_overhead(layer: nn.RNNBase, x: Tensor) -> Contestant:
    """Ours, with its launches recorded once by torch.compile."""
    return torch_contestant(torch.compile(deploy_rnn.convert(layer), mode="reduce-overhead", dynamic=False), x)


def onnx_contestant(path: Path, x: Tensor, threads: int | None = None) -> Contestant:
    """A graph in onnxruntime; on CUDA its tensors are bound where they are, and a run returns when it is done."""
    started = time.perf_counter()
    session = open_session(path, CUDA if x.is_cuda else CPU, threads=threads)
    costs = {"load": time.perf_counter() - started, "bytes": sum(part.stat().st_size for part in parts(path))}
    if x.is_cuda:
        return replace(bound(session, x), costs=costs)
    feeds = {"input": x.numpy()}

    def output() -> Tensor:
        return torch.from_numpy(session.run(["output"], feeds)[0])

    return Contestant(lambda: session.run(None, feeds), output, costs=costs)


def engine_contestant(folder: Path, x: Tensor, threads: int) -> Contestant:
    """A bundle in our engine, which picks the form and shares out the rows among the cores."""
    started = time.perf_counter()
    engine = Engine(folder, threads=threads)
    engine.warm_up()
    load = time.perf_counter() - started
    call = partial(engine.run, {"input": np.ascontiguousarray(x.numpy().swapaxes(0, 1))})
    return Contestant(call, lambda: torch.from_numpy(call()["output"].swapaxes(0, 1)), costs={"load": load})


def cuda_graph_contestant(path: Path, x: Tensor) -> Contestant:
    """A graph whose launches onnxruntime records once; every node has to be on the GPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    provider = (CUDA, {"use_tf32": 0, "enable_cuda_graph": 1})
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    return bound(session, x)


def bound(session: onnxruntime.InferenceSession, x: Tensor) -> Contestant:
    """Inputs and outputs stay in tensors on the GPU."""
    binding = session.io_binding()
    binding.bind_input("input", "cuda", 0, "float32", list(x.shape), x.data_ptr())
    output = session.get_outputs()[0]
    held = torch.empty(x.size(0), x.size(1), output.shape[2], device=x.device)
    binding.bind_output(output.name, "cuda", 0, "float32", list(held.shape), held.data_ptr())

    def run() -> None:
        session.run_with_iobinding(binding)

    def result() -> Tensor:
        run()
        return held.cpu()

    return Contestant(run, result)


def openvino_contestant(path: Path, x: Tensor, threads: int) -> Contestant:
    """A graph in OpenVINO, for the shape of `x`, in float32: by itself it takes bfloat16 where the processor has it."""
    if importlib.util.find_spec("openvino") is None:
        raise Missing("openvino is not installed")
    import openvino

    core = openvino.Core()
    started = time.perf_counter()
    model = core.read_model(path)
    model.reshape({"input": list(x.shape)})
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    load = time.perf_counter() - started
    call = partial(request.infer, {"input": x.numpy()}, share_inputs=True, share_outputs=True)
    return Contestant(call, lambda: torch.from_numpy(call()["output"].copy()), costs={"load": load})


def side_by_side(runs: dict[str, Contestant], **blocks: float) -> dict[str, Any]:
    """For each contestant, the largest difference from the first, and milliseconds; `blocks` as for `compare`."""
    expected = next(iter(runs.values())).output()
    differences = {name: float((each.output() - expected).abs().max()) for name, each in runs.items()}
    for name, difference in differences.items():
        assert difference < runs[name].tolerance, f"{name} is wrong by {difference}"
    times = compare({name: each.run for name, each in runs.items()}, **blocks)  # type: ignore[arg-type]
    return {name: {"difference": differences[name], **milliseconds(times[name]), **runs[name].costs} for name in runs}


def milliseconds(timing: Timing) -> dict[str, float]:
    return {at: 1e3 * value for at, value in asdict(timing).items()}


def parts(path: Path) -> list[Path]:
    """A graph, and the weights that PyTorch puts beside it."""
    return [part for part in (path, path.with_name(path.name + ".data")) if part.exists()]


def modules(layer: nn.RNNBase, *, compile: bool) -> dict[str, Callable[..., Any]]:
    """The layer, and ours that run in PyTorch: one of each serves every T and B."""
    found: dict[str, Callable[..., Any]] = {EAGER: layer, "deploy_rnn": deploy_rnn.convert(layer)}
    if compile:
        found["deploy_rnn, compiled"] = deploy_rnn.compile(layer)
    return found


def precisions(layer: nn.RNNBase, x: Tensor) -> dict[str, Callable[[], Contestant]]:
    """cuDNN in what it offers besides float32; on a CPU there is nothing to choose."""

    def tf32(*args: Any) -> Any:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            return layer(*args)

    def low(dtype: torch.dtype) -> Contestant:
        return torch_contestant(copy.deepcopy(layer).to(dtype), x.to(dtype), 1e-1)

    return {
        f"{EAGER}, tf32": lambda: torch_contestant(tf32, x, 1e-2),
        f"{EAGER}, fp16": lambda: low(torch.float16),
        f"{EAGER}, bf16": lambda: low(torch.bfloat16),
    }
