"""`verify`: an ONNX file against the PyTorch model that it came from, output by output."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from deploy_rnn.checking.example_call import ExampleCall, on_cpu
from deploy_rnn.checking.program import runnable
from deploy_rnn.checking.tolerance import Tolerance, model_precision
from deploy_rnn.checking.trials import SIZES, Reference
from deploy_rnn.checking.two_calls import check_two_calls
from deploy_rnn.errors import LoadError

from ..bare_layer import is_layer, layer_names, with_lengths
from ..onnx_file import OnnxFile
from ..precision.reference import reference_of
from ..precision.scope import ALL, EVERY_PRODUCT, Int8Scope
from ..runtimes.table import ONNXRUNTIME
from .check import LONG_STEPS, CheckOptions, check
from .pairing import paired
from .report import Report
from .valid_file import read_valid


def verify(
    path: str | Path,
    model: nn.Module | ExportedProgram,
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    input_names: Sequence[str | None] | None = None,
    output_names: Sequence[str] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    sizes: Sequence[int] = SIZES,
    long_steps: int | None = LONG_STEPS,
    require_provider: str | None = None,
    runtime: str = ONNXRUNTIME,
) -> Report:
    """Check an ONNX file against `model` in onnxruntime, or in another runtime.

    The file must pass `onnx.checker` with full check. It then runs on the CPU, and on a CUDA device if there is one,
    with onnxruntime's graph optimisations off and on:

    1. on the example itself;
    2. for every size of the dynamic axes, within the range of each, and at its ends, on inputs drawn at random from the
       example's values (a constant float tensor gets normal noise instead);
    3. a bare recurrent layer with states also on zeros, against PyTorch without them;
    4. a streaming file also on sequences in chunks, against PyTorch on the whole.

    Args:
        path: the .onnx file.
        model: the original, on any device; it is run on the CPU, in evaluation mode, and left as it was. It may be a
            TorchScript module or an `ExportedProgram`, too: at sizes that this refuses, the file is not checked, and
            where it names float32, so that it cannot run in float64, PyTorch's rounding is taken to be 0. The report's
            `left_out` says both.
        args: example arguments, as for `torch.onnx.export`.
        kwargs: example keyword arguments, `lengths` too, as for `export_onnx`.
        input_names: the file's name for each tensor of the example, in the order of the parameters of `forward`; None
            for a tensor that the file does not take. Default: a file of others whose inputs have the names of the
            parameters (of a bare layer: input, h0, c0, lengths) is paired by these, any other in order.
        output_names: the file's name for each tensor that the model returns. Default: the same.
        atol: allowed absolute difference. If neither it nor `rtol` is given: 1e-5 if the model has any weights in
            float32, 1e-9 if all are float64, of an element's magnitude where that is above 1, and at least ten times
            PyTorch's own distance from float64 on the same inputs; 2e-2 if parts of it compute in float16, 5e-2 in
            bfloat16. Whole numbers and booleans must be equal.
        rtol: allowed difference as a share of the element's magnitude, in addition to `atol`.
        sizes: the sizes that each dynamic axis is checked with, besides its size in the example; whole numbers from 1.
            For one that the model refuses, another is tried; the report's `left_out` says so.
        long_steps: the steps of one more case, if the time axis is dynamic and the model takes that many; None for no
            such case.
        require_provider: an onnxruntime execution provider that must run every node; without it, nodes that a provider
            lacks run on the CPU. Nodes that only compute sizes are left to onnxruntime, which prefers the CPU.
        runtime: where the file runs: "onnxruntime", "openvino", "openvino-static", "onnxruntime-web" (in node),
            "onnxruntime-web-chromium", "opencv", "mnn", "tract", "tvm" or "ncnn" (docs/providers.md). All but the first
            run the same cases in their own process;
            a file that one of them is known to get wrong is refused without a run.

    Returns:
        What was run and how far it differed.

    Raises:
        VerificationError: an output differs; `report` has everything that was run.
        ExportError: the file is not a valid model, or its inputs or outputs are not the model's; or the model fails on
            the example, or gives other numbers when it is called again.
        LoadError: onnxruntime cannot open it, or deploy-rnn's metadata in it is damaged.
        RuntimeMissingError: `runtime` is not installed; the error says what to install.
        RunError: `runtime` does not start.
        ProviderError: `require_provider` is missing, does not start, or left nodes to another.
        ValueError: an `atol`, `rtol`, `sizes` or `long_steps` that is out of range, or an unknown `runtime`.
        FileNotFoundError: `path` is not a file.

    Warns:
        UserWarning: an example of whole numbers or booleans has one value only, so that no other was checked.
    """
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(
            f"`path` (={str(path)!r}) is a folder; give an .onnx file, such as one of a bundle."
        )
    if not path.is_file():
        raise FileNotFoundError(f"`path` (={str(path)!r}) is not a file.")
    model = runnable(model)
    file = read_valid(path, path)
    precision = file.precision or model_precision(model)
    options = CheckOptions(
        Tolerance(atol, rtol, precision), sizes, long_steps, require_provider, (runtime,)
    )
    reference, call = prepared(model, args, kwargs, precision, int8_scope_of(file))

    def pair(file: OnnxFile) -> OnnxFile:
        own_input_names, own_output_names = _own_names(reference.model, call)
        return paired(
            file,
            call,
            input_names=input_names,
            output_names=output_names,
            own_input_names=own_input_names,
            own_output_names=own_output_names,
        )

    return check(path, reference, call, options, shown_as=path, read_file=file, pair=pair)


def prepared(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    precision: str,
    int8: Int8Scope = EVERY_PRODUCT,
) -> tuple[Reference, ExampleCall]:
    """Return the model and its example call as files in a precision are compared with them, on the CPU.

    Raises:
        ExportError: the model fails on the example, or gives other numbers when it is called again.
    """
    model = with_lengths(model, kwargs)
    model, call = on_cpu(model, ExampleCall.of(model, args, kwargs))
    reference = reference_of(model, precision, int8)
    check_two_calls(reference.model, call)
    return reference, call


def int8_scope_of(file: OnnxFile) -> Int8Scope:
    """What of a file is of eight bits, as its metadata says.

    Raises:
        LoadError: it says what no file has.
    """
    try:
        return Int8Scope(file.int8_layers, file.int8_products or ALL)
    except ValueError as error:
        raise LoadError(f"{file.name} has damaged metadata of deploy-rnn: {error}") from None


def _own_names(model: nn.Module, call: ExampleCall) -> tuple[list[str], list[str]]:
    """The names of the tensors that the model takes and returns, such as a file of deploy-rnn would have them."""
    if is_layer(model):
        return layer_names(model, call)
    return call.input_names, call.output_names(model)
