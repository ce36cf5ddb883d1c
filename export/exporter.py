"""`export_onnx`: from a model to a verified ONNX file in one call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from torch import nn

from deploy_rnn.checking.module import check_module
from deploy_rnn.errors import DynamicAxisError, ExportError
from deploy_rnn.files import replace_file, target

from .auto import choose_form
from .capture.captured import CapturedModel
from .capture.open_axes import FixedAxes, with_fixed_axes
from .forms import FIXED_TIME, FORMS
from .options import DEFAULTS, FIXED_STEPS, ExportOptions
from .precision.metric import ErrorMetric
from .precision.reference import reference_of
from .saving import check_weights, save
from .verification.check import CheckOptions, check
from .verification.report import Report

AUTO: Final = "auto"


def export_onnx(
    model: nn.Module,
    args: Any,
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    form: Literal["auto", "unrolled", "scan", "native"] = AUTO,
    precision: str | None = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int = DEFAULTS.opset_version,
    ir_version: int | None = DEFAULTS.ir_version,
    streaming: bool = DEFAULTS.streaming,
    max_nodes: int = DEFAULTS.max_nodes,
    row_ends: Literal["sequence_lens", "held"] | None = DEFAULTS.row_ends,
    runtime: str = DEFAULTS.runtime,
    portable: bool = DEFAULTS.portable,
    atol: float | None = None,
    rtol: float | None = None,
    max_error: float | ErrorMetric | None = None,
    int8_layers: Sequence[Literal["linear", "embedding"]] = DEFAULTS.int8_layers,
    int8_products: Literal["all", "state"] = DEFAULTS.int8_products,
    sizes: Sequence[int] = DEFAULTS.sizes,
    require_provider: str | None = None,
) -> Report:
    """Export a model with recurrent layers to one self-contained ONNX file, and verify it before it appears.

    The model is exported as it computes in evaluation mode. Every `torch.nn.RNN`, `GRU`, `LSTM` and
    `deploy_rnn.Recurrent` in it, at any depth, is written in `form`; the rest goes through `torch.onnx.export`. The
    file is written under a temporary name and compared with `model` as `verify` does. It is moved to `path` only if
    everything agrees; until then, the previous file at `path` stays.

    Args:
        model: a recurrent layer of `torch.nn`, a `deploy_rnn.Recurrent`, or any module that contains some, on any
            device. It is not changed.
        args: example arguments, as for `torch.onnx.export`: a tuple, or one tensor.
        path: the file to write; its folder must exist.
        kwargs: example keyword arguments. A bare layer of `torch.nn` takes `lengths` (B,) here, as the layers of
            `deploy_rnn` do, and computes what it would for `pack_padded_sequence(..., enforce_sorted=False)`.
        form: how the recurrence is written (docs/forms.md).
            "auto": the fastest of the following that keep dynamic what is dynamic, measured on this machine with the
                example; the report's `forms` has the figures. It fixes no axis: "unrolled" is among them only where
                the number of steps is fixed by `dynamic_shapes` or by the model.
            "scan": a loop over the steps; their number and the batch may be dynamic.
            "native": ONNX's RNN, GRU and LSTM operators; both may be dynamic.
            "unrolled": every step written out; the number of steps is the example's, the batch may be dynamic.
        precision: in which the file computes. "float32" or "float64", which must be that of the model's weights, None
            for that one. For a model in float32 also "int8": the products of recurrent layers and cells, and those
            in the steps of loops, multiply numbers of eight bits, in forms "scan" and "unrolled", everything else stays
            as it is; or "float16": the weights are stored in 16 bits, and everything is computed in float32. Such a
            file is compared with a simulation of it, and the report's `rounding` says how far that is from the model
            (docs/precision.md).
        max_error: with "int8" or "float16", the largest absolute difference from the model in float64 that rounding may
            cost at any output, over everything that is run; or an `ErrorMetric`, a bound in a measure of yours, on the
            example; None for any.
        int8_layers: with "int8", which layers around the recurrent ones are of eight bits, too: "linear", "embedding".
            Those of torch.nn itself. In the step of a loop, a linear layer is of eight bits anyway.
        int8_products: with "int8", which products are of eight bits: "all"; or "state", those of the states and
            projections. Inputs are then multiplied in float32, which rounds less and takes longer (docs/precision.md).
        dynamic_shapes: as for `torch.onnx.export`, such as {"input": {1: "B"}}. None: the batch axis of the recurrent
            layers, called "B", and, except in form "unrolled", also their time axis, called "T", and every other axis
            that the model takes in other sizes, called "x_0" and so on. The report's `inputs`
            show what is fixed. Another mapping, be it {}, opens exactly the axes that it names. An axis
            may have the sizes of its `torch.export.Dim` for which the model does not branch: the report's `ranges`.
        input_names: names of the graph's inputs. Default: `input`, `h0` and `c0` for a bare layer, else the names of
            the arguments.
        output_names: names of the graph's outputs. Default: `output`, `h_n` and `c_n` for a bare layer; for other
            models the keys and fields of their results, such as `logits`, or for a tuple `output_0`, `output_1`, ...,
            and for a single tensor `output`. A number among the results is a tensor of no axes.
        opset_version: 13 to 25. Below 18, an operator that the older opset lacks is refused, with the lowest that does.
        ir_version: version of the format of the file; None for the lowest in which the opset may be used.
        streaming: make every state an input and an output, so that a sequence can come in chunks: `h0` and `h_n` of
            a bare layer, "encoder.rnn.h0" and so on for a layer within a model. Feed zeros to the first chunk. The
            file is then also run on a sequence in random chunks, and compared with PyTorch on the whole sequence.
        max_nodes: form "unrolled" is refused if the file would have more nodes.
        row_ends: how form "native" writes rows of different length; the other forms have one way. None: the first of
            the following for a runtime that reads it, else the second.
            "sequence_lens": the input of that name of ONNX's operators, which onnxruntime reads and other runtimes
                ignore; the fastest there.
            "held": gates that hold the state beyond a row's end, without that input; right wherever the operators are.
        runtime: where the file will run, as for `verify`. It is checked in onnxruntime, and there too; form="auto" and
            `row_ends` choose what is right and fast there.
        portable: write what runtimes of fewer operators take, such as tract, TVM and ncnn: the batch is a number, that
            of the example; no shape is computed; and no `Gemm` adds what the graph computes.
        atol, rtol, sizes, require_provider: as for `verify`.

    Returns:
        The report of the verification.

    Raises:
        ValueError, TypeError: a `model`, `atol`, `rtol`, `sizes`, `precision` or `args` that cannot be used.
        DynamicAxisError: an axis was asked to be dynamic that the form or the model fixes.
        ConversionError: a recurrent layer that cannot be exported, such as one that is scripted; or a
            TorchScript module.
        RuntimeMissingError, RunError: `runtime` is not installed, or does not start.
        ProviderError: `require_provider` is missing, does not start, or left nodes to another; no file is left.
        VerificationError: the file's numbers differ from the model's, or cost more than `max_error`; no file is left.
        ExportError: the model fails on the example, draws random numbers, or keeps a state between its calls; PyTorch
            cannot export it, the form cannot express it, it cannot stream, the file would have more than `max_nodes`
            nodes, it has no layers and walks over an axis in a loop of Python that cannot be kept (docs/loops.md), its
            weights are more than 2 GB, which `export_bundle` takes, or an argument is out of range.

    Warns:
        UserWarning: every axis is fixed although the recurrent layers have a batch; a loop of Python is written out; an
            axis is fixed that the model takes in other sizes, or, but for the batch, takes in no other size; an axis
            may have only some sizes, since the model branches on its size; or see `verify`.
    """
    checked = check_module(model)
    check_weights(checked)
    file_path = target(path, "model.onnx")
    if form not in (*FORMS, AUTO):
        offered = " or ".join(map(repr, (*FORMS, AUTO)))
        raise ExportError(f"`form` (={form!r}) is unknown; use {offered}.")
    options = ExportOptions(
        dynamic_shapes=dynamic_shapes,
        input_names=input_names,
        output_names=output_names,
        opset_version=opset_version,
        ir_version=ir_version,
        precision=precision,
        streaming=streaming,
        max_nodes=max_nodes,
        row_ends=row_ends,
        runtime=runtime,
        portable=portable,
        atol=atol,
        rtol=rtol,
        max_error=max_error,
        int8_layers=int8_layers,
        int8_products=int8_products,
        sizes=sizes,
    )
    checks = CheckOptions(
        options.tolerance_for(checked),
        sizes,
        require_provider=require_provider,
        runtimes=options.runtimes,
        max_error=max_error,
    )

    def attempt(fixed: FixedAxes) -> Report:
        return _export(checked, args, kwargs, file_path, form, options, checks, fixed)

    return with_fixed_axes(attempt, options)


def _export(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    path: Path,
    form: str,
    options: ExportOptions,
    checks: CheckOptions,
    fixed: FixedAxes,
) -> Report:
    """Export with these axes fixed, of those that are found; the others are those of `export_onnx`."""
    dynamic_time = form not in FIXED_TIME
    try:
        captured = CapturedModel.of(
            model, args, kwargs, options, dynamic_time=dynamic_time, fixed=fixed
        )
    except DynamicAxisError as error:
        if options.dynamic_shapes is None and dynamic_time:
            raise DynamicAxisError(f"{error} {FIXED_STEPS}") from error
        raise
    captured.warn_of_limits()
    measured_forms: dict[str, float | str] = {}
    written_form = form
    if form == AUTO:
        written_form, measured_forms = choose_form(
            captured, max_nodes=options.max_nodes, runtime=options.runtime
        )
    graph = captured.written(written_form, max_nodes=options.max_nodes)
    precision = checks.tolerance.precision
    reference = reference_of(captured.model, precision, options.int8_scope)

    def save_and_check(temporary: Path) -> Report:
        save(graph, temporary)
        with captured.naming_squeezes():
            return check(
                temporary,
                reference,
                captured.call,
                checks,
                shown_as=path,
                forms=measured_forms,
                axis_advice=options.axis_advice(fixed_steps=True),
                conditions=captured.conditions,
            )

    return replace_file(path, save_and_check)
