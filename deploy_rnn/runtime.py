"""onnxruntime sessions, opened the same way by export and serving: one provider, and no silent fallback."""

import ctypes
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from json import loads
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from deploy_rnn.errors import LoadError, ProviderError
from deploy_rnn.tensor_spec import DTYPES
from deploy_rnn.tensor_spec import TensorSpec as TensorSpec

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

# float32 means float32: TensorFloat-32 would round every product to ten bits.
_OPTIONS: dict[str, dict[str, Any]] = {CUDA: {"use_tf32": 0}}


def open_session(
    model: str | Path,
    provider: str = CPU,
    *,
    optimize: bool = True,
    threads: int | None = None,
    profile_to: Path | None = None,
    serving: bool = False,
    cuda_graph: bool = False,
) -> onnxruntime.InferenceSession:
    """Open an .onnx file on one execution provider; what that provider lacks runs on the CPU.

    Args:
        model: the file.
        provider: an onnxruntime execution provider.
        optimize: False runs the graph node by node as it is written.
        threads: cores of one node; None for all.
        profile_to: a folder for onnxruntime's profile of every node.
        serving: for a process that waits for requests of any size: idle threads sleep, and no plan of memory is kept
            for each shape that was ever seen.
        cuda_graph: let the CUDA provider capture runs, one for each "gpu_graph_id" of the run options.

    Raises:
        ValueError: `threads` below 1.
        LoadError: the file is no model, or has operators that the provider lacks.
        ProviderError: the provider is not in this onnxruntime, or did not start (onnxruntime would fall back to the
            CPU without an error).
    """
    if threads is not None and threads < 1:
        raise ValueError(f"`threads` (={threads}) must be 1 or more, or None for all cores.")
    if provider not in onnxruntime.get_available_providers():
        raise ProviderError(
            f"this onnxruntime (={onnxruntime.__version__}) has no {provider}; "
            f"it has {', '.join(onnxruntime.get_available_providers())}."
        )
    if provider == CUDA:
        onnxruntime.preload_dlls()  # the CUDA libraries that torch or the nvidia wheels brought
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_to / "profile")
    if serving:
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen = [(provider, _OPTIONS.get(provider, {}) | ({"enable_cuda_graph": 1} if cuda_graph else {}))]
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=chosen)
    except Exception as error:  # onnxruntime has a dozen types, with no base of their own
        raise LoadError(f"onnxruntime cannot open {str(model)!r}: {error}") from error
    session.disable_fallback()
    if provider not in session.get_providers():
        raise ProviderError(f"{provider} did not start; onnxruntime's log on stderr has the reason.")
    return session


def usable_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def specs(session: onnxruntime.InferenceSession) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What the graph takes, and what it gives."""
    return tuple(map(_spec, session.get_inputs())), tuple(map(_spec, session.get_outputs()))


def _spec(arg: onnxruntime.NodeArg) -> TensorSpec:
    matched = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    element = matched[1] if matched else arg.type
    return TensorSpec.of(arg.name, DTYPES.get(element, element), arg.shape)


def has_cuda_device() -> bool:
    """Whether the CUDA driver is there and sees a GPU; asked of the driver, since PyTorch may be a CPU build."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


@dataclass(frozen=True)
class RanNode:
    """One node of the graph that onnxruntime made of a file.

    Attributes:
        name: as in the file, unless onnxruntime put the node there.
        op_type: its operator.
        provider: what ran it.
        only_sizes: whether it took and gave whole numbers and booleans of at most one axis only, as nodes do that
            compute shapes; onnxruntime leaves these on the CPU on purpose.
    """

    name: str
    op_type: str
    provider: str
    only_sizes: bool

    @property
    def copies(self) -> bool:
        """Whether onnxruntime put it there to copy a tensor between devices."""
        return self.op_type.startswith("Memcpy")


def ran_nodes(session: onnxruntime.InferenceSession) -> list[RanNode]:
    """The nodes that have run so far, each once however often.

    `session` was opened with `profile_to`; its profile ends here, later runs are not in it.
    """
    events = loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ran: dict[tuple[str, ...], RanNode] = {}
    for event in events:
        name, args = event["name"].removesuffix("_kernel_time"), event["args"]
        if name != event["name"] and args.get("provider"):
            node = RanNode(name, args["op_name"], args["provider"], _only_sizes(args))
            ran.setdefault((name, node.op_type, node.provider, args["node_index"]), node)
    return list(ran.values())


def _only_sizes(args: Mapping[str, Any]) -> bool:
    """`args` of an event of the profile; a tensor is {its type: its shape}."""
    tensors = [*args.get("input_type_shape", ()), *args.get("output_type_shape", ())]
    kinds = [(kind, shape) for tensor in tensors for kind, shape in tensor.items()]
    return all(kind in ("int64", "int32", "bool") and len(shape) <= 1 for kind, shape in kinds)


def placement(model: str | Path, provider: str, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many nodes each provider really ran, from onnxruntime's own profile of one run."""
    with TemporaryDirectory() as folder:
        session = open_session(model, provider, profile_to=Path(folder))
        session.run(None, dict(feeds))
        return dict(Counter(node.provider for node in ran_nodes(session)))
