"""onnxruntime sessions, opened the same way by export and serving: one execution provider, and no silent fallback."""

import ctypes
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from json import loads
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from deploy_rnn.errors import LoadError, ProviderError
from deploy_rnn.onnx_bytes import OnnxBytes
from deploy_rnn.tensor_spec import DTYPES
from deploy_rnn.tensor_spec import TensorSpec as TensorSpec

Specs = tuple[TensorSpec, ...]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"

MOST_THREADS = 1024
"""Each is one of the system's, in each graph that is open."""

_KERNEL_EVENT = "_kernel_time"
"""The end of an event's name in onnxruntime's profile, if the event is a run of one node."""


def has_cuda_device() -> bool:
    """Return whether the CUDA driver is installed and sees a GPU.

    The driver itself is asked, since PyTorch may be a CPU build.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    if driver.cuInit(0) != 0:  # any number but 0 is an error
        return False
    count = ctypes.c_int(0)
    return driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _load_cuda_libraries() -> None:
    """Load the CUDA libraries that torch or the nvidia wheels brought."""
    onnxruntime.preload_dlls()


def _always_present() -> bool:
    return True


def _nothing_to_prepare() -> None:
    return None


@dataclass(frozen=True)
class Provider:
    """What an onnxruntime execution provider needs that others do not; `PROVIDERS` is the table of all such facts.

    Attributes:
        name: as onnxruntime spells it.
        device: what it runs on, for messages.
        options: its options in every session.
        capture_options: more of them, for a session that captures its runs and replays them; empty if it cannot.
        threads_option: its option for the number of threads; None if it uses the threads of the session.
        arenas: the memory that it keeps between runs, as "memory.enable_memory_arena_shrinkage" names it.
        uses_cores: whether a run is computed by the cores of this machine, so that they can divide its rows.
        reads_lengths: whether its RNN, GRU and LSTM read `sequence_lens`; one that does not gives wrong numbers.
        checks_exports: whether every export is checked on it, where it is there.
        shares_weights: whether its sessions can read the same weights in the memory of this process.
        present: whether the device exists; onnxruntime can have the provider without it.
        prepare: what to do before a session is opened.
    """

    name: str
    device: str = "device"
    options: Mapping[str, Any] = field(default_factory=dict)
    capture_options: Mapping[str, Any] = field(default_factory=dict)
    threads_option: str | None = None
    arenas: str = "cpu:0"
    uses_cores: bool = False
    reads_lengths: bool = True
    checks_exports: bool = False
    shares_weights: bool = False
    present: Callable[[], bool] = _always_present
    prepare: Callable[[], None] = _nothing_to_prepare

    def session_options(self, threads: int | None, capture_runs: bool) -> dict[str, Any]:
        """Return the options of the provider for one session."""
        options = dict(self.options)
        if capture_runs:
            options |= self.capture_options
        if self.threads_option is not None and threads is not None:
            options[self.threads_option] = threads
        return options


PROVIDERS: Mapping[str, Provider] = {
    CPU: Provider(CPU, device="CPU", uses_cores=True, checks_exports=True, shares_weights=True),
    CUDA: Provider(
        CUDA,
        device="CUDA device",
        # float32 means float32: TensorFloat-32 would round every product to ten bits.
        options={"use_tf32": 0},
        capture_options={"enable_cuda_graph": 1},
        arenas="cpu:0;gpu:0",
        checks_exports=True,
        present=has_cuda_device,
        prepare=_load_cuda_libraries,
    ),
    OPENVINO: Provider(
        OPENVINO,
        # Where the processor has AMX, it would compute in bfloat16 by itself.
        options={"device_type": "CPU", "precision": "FP32"},
        threads_option="num_of_threads",
        reads_lengths=False,
    ),
}
"""The providers that need more than their name."""


def provider_named(name: str) -> Provider:
    """Return the entry of the table, or the defaults for a provider that has no entry."""
    return PROVIDERS.get(name, Provider(name))


def check_threads(threads: int | None) -> None:
    """Raises: ValueError: not a number of cores."""
    if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS):
        raise ValueError(
            f"`threads` (={threads!r}) must be a whole number from 1 to {MOST_THREADS}, or None for all cores."
        )


def open_session(
    model: str | Path | OnnxBytes,
    provider: str = CPU,
    *,
    optimize: bool = True,
    threads: int | None = None,
    profile_to: Path | None = None,
    serving: bool = False,
    capture_runs: bool = False,
) -> onnxruntime.InferenceSession:
    """Open an .onnx file on one execution provider; nodes that the provider lacks run on the CPU.

    Args:
        model: the file; or one that has been read, which is then not looked at again.
        provider: an onnxruntime execution provider.
        optimize: False runs the graph node by node, as it is written.
        threads: cores for one node; None for all.
        profile_to: a folder for onnxruntime's profile of every node.
        serving: for a process that waits for requests of any size: idle threads sleep, and no memory plan is kept
            for each shape that was ever seen.
        capture_runs: let the provider capture runs, one for each "gpu_graph_id" of the run options.

    Raises:
        ValueError: `threads` below 1.
        LoadError: the file is not a model, or has operators that the provider lacks.
        ProviderError: the provider is not in this onnxruntime, or did not start (onnxruntime would fall back to the
            CPU without an error).
    """
    check_threads(threads)
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ProviderError(
            f"this onnxruntime (={onnxruntime.__version__}) has no {provider}; it has {', '.join(available)}."
        )
    entry = provider_named(provider)
    entry.prepare()
    options = _session_options(optimize, profile_to, serving)
    if threads is not None and entry.threads_option is None:
        options.intra_op_num_threads = threads
    providers = [(provider, entry.session_options(threads, capture_runs))]
    shown_as = str(model)
    source: str | bytes = shown_as
    weights = []
    if isinstance(model, OnnxBytes):
        shown_as = model.shown_as
        source = model.graph
    try:
        if isinstance(model, OnnxBytes):
            weights = _give_weights(options, model, shared=entry.shares_weights)
        session = onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime has a dozen exception types without a common base
        raise LoadError(f"onnxruntime cannot open {shown_as!r}: {error}") from error
    # onnxruntime reads them in every run, and does not keep them.
    session.shared_weights = weights
    session.disable_fallback()
    # A provider that does not start is left out without an error, and the CPU would run everything.
    if provider not in session.get_providers():
        raise ProviderError(
            f"{provider} did not start; onnxruntime's log on stderr has the reason."
        )
    return session


def _give_weights(
    options: onnxruntime.SessionOptions, model: OnnxBytes, *, shared: bool
) -> list[onnxruntime.OrtValue]:
    """Let a session take its external weights from memory; return those that must live as long as it does."""
    if not model.files:
        return []
    names = list(model.files)
    buffers = list(model.files.values())
    options.add_external_initializers_from_files_in_memory(
        names, buffers, [buffer.nbytes for buffer in buffers]
    )
    # With these alone, each session would have a copy of the weights.
    values = []
    for name, array in model.shared_weights().items() if shared else ():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        options.add_initializer(name, value)
        values.append(value)
    return values


def _session_options(
    optimize: bool, profile_to: Path | None, serving: bool
) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_to / "profile")
    if serving:
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """Return the name of the processor; empty if the system does not tell it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def specs(session: onnxruntime.InferenceSession) -> tuple[Specs, Specs]:
    """Return the inputs and the outputs of the graph."""
    inputs = tuple(_spec(arg) for arg in session.get_inputs())
    outputs = tuple(_spec(arg) for arg in session.get_outputs())
    return inputs, outputs


def properties(session: onnxruntime.InferenceSession) -> Mapping[str, str]:
    """Return the metadata properties of the file."""
    metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    return metadata


def _spec(arg: onnxruntime.NodeArg) -> TensorSpec:
    match = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    onnx_type = match[1] if match else arg.type
    return TensorSpec.of(arg.name, DTYPES.get(onnx_type, onnx_type), arg.shape)


@dataclass(frozen=True)
class RanNode:
    """One node that ran, of the graph that onnxruntime made from a file.

    Attributes:
        name: as in the file, unless onnxruntime added the node.
        op_type: its operator.
        provider: what ran it.
        only_sizes: whether all it took and gave were whole numbers and booleans with at most one axis, as in nodes
            that compute shapes; onnxruntime leaves these on the CPU on purpose.
    """

    name: str
    op_type: str
    provider: str
    only_sizes: bool

    @property
    def copies(self) -> bool:
        """Whether onnxruntime added it to copy a tensor between devices."""
        return self.op_type.startswith("Memcpy")


def ran_nodes(session: onnxruntime.InferenceSession) -> list[RanNode]:
    """Return the nodes that have run so far, each once however often it ran.

    `session` was opened with `profile_to`; its profile ends here, and later runs are not in it.
    """
    profile = Path(session.end_profiling()).read_text(encoding="utf-8")
    nodes: dict[tuple[str, ...], RanNode] = {}
    for event in loads(profile):
        args = event["args"]
        if event["name"].endswith(_KERNEL_EVENT) and args.get("provider"):
            name = event["name"].removesuffix(_KERNEL_EVENT)
            node = RanNode(name, args["op_name"], args["provider"], _only_sizes(args))
            # Nodes of a graph and of its bodies may share a name; the index tells them apart.
            nodes.setdefault((name, node.op_type, node.provider, args["node_index"]), node)
    return list(nodes.values())


def _only_sizes(args: Mapping[str, Any]) -> bool:
    """Return whether a node handled nothing but sizes, from the profile, where a tensor is {its type: its shape}."""
    for tensor in (*args.get("input_type_shape", ()), *args.get("output_type_shape", ())):
        for dtype, shape in tensor.items():
            if dtype not in ("int64", "int32", "bool") or len(shape) > 1:
                return False
    return True


def placement(model: str | Path, provider: str, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Count the nodes that each provider ran, from onnxruntime's own profile of one run."""
    with TemporaryDirectory() as folder:
        session = open_session(model, provider, profile_to=Path(folder))
        session.run(None, dict(feeds))
        return dict(Counter(node.provider for node in ran_nodes(session)))
