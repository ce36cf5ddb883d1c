"""What is known of runtimes and files: combinations that give wrong numbers without a message, or are refused.

Every one of them was seen in a file of ours; docs/upstream has a small file for each wrong result, and `make runtimes`
looks whether it is still there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deploy_rnn.errors import ExportError

from ..onnx_file import OnnxFile
from .table import ONNXRUNTIME, RUNTIMES, runtime_named

HELD = "use row_ends='held', form='scan' or form='unrolled'"
LOOPS = "use form='unrolled'"
HELD_OR_UNROLLED = "use row_ends='held' or form='unrolled'"
SCAN = "use form='scan' or form='unrolled'"
NAMED = "use portable=True, which names every output of such an operator, or form='unrolled'"
CASTS = (
    "its Scan reads no weight that is cast before it",
    "use form='native' or form='unrolled', or leave precision='float16' out",
)
BATCH = ("it needs the batch as a number in the file", "use portable=True")


@dataclass(frozen=True)
class Fault:
    """What a runtime does with some files.

    Attributes:
        runtime: its name.
        reason: what it does.
        instead: what to use.
        fits: whether a file is one of them.
        shown_by: of one that gives wrong numbers, the script in docs/upstream that shows it.
    """

    runtime: str
    reason: str
    instead: str
    fits: Callable[[OnnxFile], bool]
    shown_by: str | None = None

    @property
    def wrong(self) -> bool:
        """Whether it gives wrong numbers; otherwise it refuses the file itself."""
        return self.shown_by is not None

    def __str__(self) -> str:
        return f"{self.reason}; {self.instead}."


def _reads_lengths(file: OnnxFile) -> bool:
    return bool(file.recurrent.sequence_lens)


def _has_relu(file: OnnxFile) -> bool:
    return "RNN" in file.node_types and "relu" in file.recurrent.activations


def _has_loop(file: OnnxFile) -> bool:
    return bool({"Scan", "Loop"} & file.node_types.keys())


def _has_dynamic_batch(file: OnnxFile) -> bool:
    return "B" in file.dynamic_inputs


def _has_batch_tract_refuses(file: OnnxFile) -> bool:
    """Its Split refuses a dynamic axis, operators need first states, and lengths compute with the batch."""
    if not _has_dynamic_batch(file):
        return False
    if _has_operators(file):
        return bool(file.recurrent.without_states)
    if _has_loop(file):
        return bool(file.lengths)
    return "Split" in file.node_types


def _casts_for_loop(file: OnnxFile) -> bool:
    return file.precision == "float16" and _has_loop(file)


def _has_operators(file: OnnxFile) -> bool:
    return bool({"RNN", "GRU", "LSTM"} & file.node_types.keys())


WRONG = (
    Fault(
        "openvino",
        "it ignores `sequence_lens` where shapes are dynamic, and takes every row for one of T steps",
        f"{HELD}, or runtime='openvino-static', where the model is reshaped to the sizes of a run first",
        lambda file: bool(file.recurrent.sequence_lens and file.dynamic_inputs),
        "openvino_sequence_lens.py",
    ),
    Fault(
        "mnn",
        "it ignores `sequence_lens`, and takes every row for one of T steps",
        HELD_OR_UNROLLED,
        _reads_lengths,
        "mnn_sequence_lens.py",
    ),
    Fault("mnn", "it computes a relu RNN as tanh", LOOPS, _has_relu, "mnn_relu.py"),
    Fault(
        "mnn",
        "its converter takes a dynamic first axis of an input for 1, and the GRU, or LSTM with first states, that "
        "walks over it for one of a single step",
        "use form='unrolled', or a model whose inputs have the batch first",
        lambda file: bool(file.recurrent.single_step),
        "mnn_single_step.py",
    ),
    Fault(
        "mnn",
        "it returns the output of every step for the final state where only that is an output",
        NAMED,
        lambda file: bool({"RNN", "GRU"} & file.recurrent.final_only),
        "mnn_final_state.py",
    ),
    Fault(
        "opencv",
        "it ignores the `sequence_lens` of a GRU, and takes every row for one of T steps",
        HELD_OR_UNROLLED,
        lambda file: "GRU" in file.recurrent.sequence_lens,
        "opencv_gru_sequence_lens.py",
    ),
    Fault("tract", "it computes a relu RNN as tanh", SCAN, _has_relu, "tract_relu.py"),
    Fault(
        "tract",
        "its sigmoid is not exactly 0 or 1 where a gate is held, and states drift with every step beyond a row's end",
        SCAN,
        # An RNN has no gates, and its rows are reversed instead.
        lambda file: file.row_ends == "held" and bool({"GRU", "LSTM"} & file.node_types.keys()),
        "tract_sigmoid.py",
    ),
    Fault(
        "ncnn",
        "its GRU and LSTM have no batch, and return one row in place of a batch of rows",
        LOOPS,
        lambda file: bool({"GRU", "LSTM"} & file.node_types.keys()),
        "ncnn_batch.py",
    ),
)
"""What gives wrong numbers without a message."""

REFUSED = (
    Fault(
        "opencv",
        "its LSTM has no `sequence_lens`",
        HELD_OR_UNROLLED,
        lambda file: "LSTM" in file.recurrent.sequence_lens,
    ),
    Fault(
        "opencv",
        "it needs the final state of a GRU to be among its outputs",
        NAMED,
        lambda file: "GRU" in file.recurrent.unlisted_outputs,
    ),
    Fault("opencv", "it has no RNN", LOOPS, lambda file: "RNN" in file.node_types),
    Fault("openvino", *CASTS, _casts_for_loop),
    Fault("openvino-static", *CASTS, _casts_for_loop),
    Fault("opencv", "it has no Scan", LOOPS, _has_loop),
    Fault("mnn", "it has no Scan", LOOPS, _has_loop),
    Fault(
        "mnn",
        "its converter writes beyond its memory, and mostly dies, for an LSTM whose final c is not among its outputs",
        NAMED,
        lambda file: "LSTM" in file.recurrent.unlisted_outputs,
    ),
    Fault("tract", "it needs constant `sequence_lens`", HELD, _reads_lengths),
    Fault("tract", *BATCH, _has_batch_tract_refuses),
    Fault("tvm", *BATCH, lambda file: _has_dynamic_batch(file) and bool(file.lengths)),
    Fault(
        "ncnn",
        "its converter takes a Gemm with a constant bias only",
        "use portable=True",
        _has_dynamic_batch,
    ),
    Fault(
        "ncnn",
        "it has no comparison and no Where, which lengths need",
        "use another runtime, or leave the lengths out",
        lambda file: bool(file.lengths),
    ),
    Fault("tvm", "it has no RNN, GRU, LSTM", LOOPS, _has_operators),
    Fault("tvm", "it has no Scan", LOOPS, _has_loop),
    Fault("ncnn", "it has no RNN with a batch", LOOPS, lambda file: "RNN" in file.node_types),
    Fault("ncnn", "it has no Scan", LOOPS, _has_loop),
)
"""What a runtime does not take, and says so."""

FAULTS = (*WRONG, *REFUSED)
"""The facts."""


def faults_of(file: OnnxFile, runtime: str | None = None) -> list[Fault]:
    """Return what is known of a file, in one runtime or in all of them."""
    return [fault for fault in FAULTS if runtime in (None, fault.runtime) and fault.fits(file)]


def runtimes_without_faults(file: OnnxFile) -> list[str]:
    """Return the runtimes that nothing is known of which would speak against a file."""
    faulty = {fault.runtime for fault in faults_of(file)}
    return [name for name in (ONNXRUNTIME, *RUNTIMES) if name not in faulty]


def described(file: OnnxFile) -> list[str]:
    """Return a line for each fault of a file, and one for the runtimes without any."""
    lines = [f"  no fault known in {', '.join(runtimes_without_faults(file))}"]
    for fault in faults_of(file):
        kind = "wrong in  " if fault.wrong else "refused by"
        lines.append(f"  {kind} {fault.runtime}: {fault}")
    return lines


def to_dict(file: OnnxFile) -> dict[str, Any]:
    """For JSON: the same."""
    faults = [
        {
            "runtime": fault.runtime,
            "verdict": "wrong" if fault.wrong else "refused",
            "reason": fault.reason,
            "instead": fault.instead,
        }
        for fault in faults_of(file)
    ]
    return {"no_fault_known": runtimes_without_faults(file), "faults": faults}


def refuse_wrong(file: OnnxFile, runtime: str) -> None:
    """Raises: ExportError: the runtime is known to give wrong numbers for the file, with what to use instead."""
    for fault in faults_of(file, runtime):
        if fault.wrong:
            title = runtime_named(runtime).title
            raise ExportError(f"{file.name} would be wrong in {title}, without a message: {fault}")
