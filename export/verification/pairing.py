"""Which input of a file is which tensor of the example, and which output is which result of the model."""

from collections.abc import Sequence
from dataclasses import replace

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import ExportError
from deploy_rnn.tensor_spec import TensorSpec

from ..onnx_file import OnnxFile


def paired(
    file: OnnxFile,
    call: ExampleCall,
    *,
    input_names: Sequence[str | None] | None,
    output_names: Sequence[str] | None,
    own_input_names: Sequence[str],
    own_output_names: Sequence[str],
) -> OnnxFile:
    """Return the file with its inputs in the order of the tensors of `call`, its outputs in that of the model.

    1. The names that the caller gives.
    2. In a file of others, the names of the model's own arguments and results, if the file has all of them.
    3. Otherwise both are in order already.

    A tensor that the file does not take gets an entry, too, each axis of which is called "mask.0" and so on.

    Args:
        file: what the file is.
        call: the example call.
        input_names: the file's name for each tensor of `call`; None for one that the file does not take.
        output_names: the file's name for each tensor that the model returns.
        own_input_names: the model's own name for each tensor of `call`.
        own_output_names: the model's own name for each tensor that it returns.

    Raises:
        ExportError: a name that the file lacks, another number of names than of tensors, or a name given twice.
    """
    inputs: tuple[TensorSpec, ...] = file.inputs
    outputs: tuple[TensorSpec, ...] = file.outputs
    is_foreign = file.form is None
    if input_names is not None:
        _check("input_names", input_names, own_input_names, inputs)
        inputs = _in_order(inputs, input_names, own_input_names, call)
    elif is_foreign and _all_known(inputs, own_input_names):
        present = {spec.name for spec in inputs}
        names = [name if name in present else None for name in own_input_names]
        inputs = _in_order(inputs, names, own_input_names, call)
    if output_names is not None:
        _check("output_names", output_names, own_output_names, outputs)
        outputs = _in_order(outputs, output_names, own_output_names, call)
    elif is_foreign and {spec.name for spec in outputs} == set(own_output_names):
        outputs = _in_order(outputs, own_output_names, own_output_names, call)
    return replace(file, inputs=inputs, outputs=outputs)


def _all_known(specs: Sequence[TensorSpec], own_names: Sequence[str]) -> bool:
    return bool(specs) and {spec.name for spec in specs} <= set(own_names)


def _check(
    argument: str,
    names: Sequence[str | None],
    own_names: Sequence[str],
    specs: Sequence[TensorSpec],
) -> None:
    present = [spec.name for spec in specs]
    wanted = ", ".join(own_names)
    if isinstance(names, str) or len(names) != len(own_names):
        raise ExportError(
            f"`{argument}` (={names!r}) must be a list of {len(own_names)} names of the file, for {wanted}."
        )
    for name in names:
        if name is not None and name not in present:
            raise ExportError(
                f"`{argument}` has {name!r}, which is not in the file: it has {', '.join(present)}."
            )
    given = [name for name in names if name is not None]
    repeated = [name for name in dict.fromkeys(given) if given.count(name) > 1]
    if repeated:
        raise ExportError(f"`{argument}` has {repeated[0]!r} twice; give each name once.")


def _in_order(
    specs: Sequence[TensorSpec],
    names: Sequence[str | None],
    own_names: Sequence[str],
    call: ExampleCall,
) -> tuple[TensorSpec, ...]:
    """The specs of `names`, then those that are left: the states of a streaming file, or a mistake."""
    by_name = {spec.name: spec for spec in specs}
    ordered = []
    for number, name in enumerate(names):
        if name is None:
            tensor = call.tensors[number]
            own_name = own_names[number]
            dtype = str(tensor.dtype).removeprefix("torch.")
            ordered.append(TensorSpec.of(own_name, dtype, [None] * tensor.dim()))
        else:
            ordered.append(by_name.pop(name))
    return (*ordered, *by_name.values())
