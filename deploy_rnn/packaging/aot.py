"""A `.pt2` file: the model compiled ahead of time by AOTInductor, with checks that refuse other inputs.

AOTInductor's code assumes that every input has the sizes, dtype and strides of the example: a smaller batch is read
beyond its end, and a slice as if it were contiguous, without an error (its own checks need an environment variable
where the file is used, and do not cover dynamic strides). So each input first goes through an operator of ours,
`checked`, whose C++ text is compiled into the file: it refuses, or passes on a contiguous copy.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch._inductor
from torch import Tensor, nn
from torch._inductor.exc import InductorError
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deploy_rnn.checking.branches import Condition
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import ExportError
from deploy_rnn.inductor import loop_options
from deploy_rnn.nn.torch_version import CPP_WRAPPER
from deploy_rnn.packaging.axes import Axes, Axis
from deploy_rnn.packaging.size_checks import CPP_FUNCTION, cpp_checks
from deploy_rnn.packaging.tracing import explained_errors, trace


@torch.library.custom_op("deploy_rnn::checked", mutates_args=())
def checked(
    input: Tensor,
    name: str,
    dtype: torch.dtype,
    dtype_name: str,
    sizes: list[int],
    least: list[int],
    most: list[int],
    all_sizes: list[int],
) -> Tensor:
    """A contiguous copy of `input`, or an error if the file was not made for it: see `CHECKED`.

    all_sizes: of every dynamic axis, once; empty for all tensors but the last, when they are known to be as they must.
    """
    raise NotImplementedError("`checked` is compiled into a package, and has no other code.")


@checked.register_fake
def _(input: Tensor, *_: object) -> Tensor:
    return torch.empty(list(input.shape), dtype=input.dtype, device=input.device)


# In the compiled file, `sizes` of a dynamic axis is its size in the first input that has it, so that the comparison
# with `sizes` refuses another input in which it differs.
CHECKED = """
inline AOTITorchError aoti_torch_cpu_checked(
    AtenTensorHandle input, const char* name, int32_t dtype, const char* dtype_name,
    const int64_t* sizes, int64_t rank, const int64_t* least, int64_t, const int64_t* most, int64_t,
    const int64_t* all_sizes, int64_t axes, AtenTensorHandle* copy) {
  int64_t dim, *actual;
  int32_t actual_dtype, device, index;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(input, &dim));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(input, &actual));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(input, &actual_dtype));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(input, &device));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(input, &index));
  const std::string quoted = std::string("`") + name + "`";
  if (dim != rank)
    throw std::runtime_error(
        quoted + " has " + std::to_string(dim) + " axes; this package takes " + std::to_string(rank) + ".");
  if (actual_dtype != dtype || device != aoti_torch_device_type_cpu())
    throw std::runtime_error(quoted + " must be " + dtype_name + " on the CPU.");
  for (int64_t axis = 0; axis < rank; ++axis) {
    const std::string size =
        "axis " + std::to_string(axis) + " of " + quoted + " is " + std::to_string(actual[axis]);
    if (actual[axis] < least[axis])
      throw std::runtime_error(size + "; this package takes " + std::to_string(least[axis]) + " or more.");
    if (actual[axis] > most[axis])
      throw std::runtime_error(size + "; this package takes " + std::to_string(most[axis]) + " or less.");
    if (actual[axis] != sizes[axis])
      throw std::runtime_error(size + "; this package takes " + std::to_string(sizes[axis]) + " here.");
  }
  if (axes > 0) {
    CONDITIONS
  }
  std::vector<int64_t> strides(rank, 1);
  for (int64_t axis = rank - 1; axis > 0; --axis) strides[axis - 1] = strides[axis] * sizes[axis];
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes, strides.data(), dtype, device, index, copy));
  return aoti_torch_copy_(*copy, input, 0);
}"""


def compile_file(
    model: nn.Module,
    call: ExampleCall,
    axes: Sequence[Axes],
    conditions: Sequence[Condition],
    path: Path,
) -> None:
    """Compile `model` to a `.pt2` file for the CPU, with `axes` open.

    Args:
        model: a converted copy, in evaluation mode.
        call: an example call in which no dynamic axis has the size 1, which PyTorch would take for fixed.
        axes: the dynamic axes of each tensor of the call.
        conditions: what the file requires of their sizes.

    Raises:
        DynamicAxisError: the model fixes an axis, or does not take all of its sizes.
        ExportError: PyTorch cannot export or compile the model; the cause is PyTorch's.
    """
    if not CPP_WRAPPER:
        raise ExportError(
            f"a .pt2 file needs torch >= 2.13, this is {torch.__version__}; write a .pt file instead."
        )
    _refuse_constants(call)
    names = _axis_names(axes) if conditions else []
    sizes = {name: f"all_sizes[{number}]" for number, name in enumerate(names)}
    checks = cpp_checks(conditions, sizes)
    hook = _checks(call, axes, names)
    model.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
    traced = trace(model, call, axes)
    with TemporaryDirectory() as folder:
        with explained_errors():
            package_path = _compile(traced.program, checks, Path(folder) / "model.pt2")
        shutil.copyfile(package_path, path)


def load_file(path: Path) -> Callable[..., Any]:
    """Load the function in a `.pt2` file."""
    return torch._inductor.aoti_load_package(str(path))


def _refuse_constants(call: ExampleCall) -> None:
    """AOTInductor compiles a number or string in, and its loader ignores the value that a caller gives."""
    for name, value in call.arguments.items():
        for leaf in pytree.tree_leaves(value):
            if not isinstance(leaf, (Tensor, type(None))):
                raise ExportError(
                    f"`{name}` has {leaf!r}, which is not a tensor: a .pt2 file would silently ignore any other value. "
                    "Let the model hold it, or write a .pt file."
                )


def _axis_names(axes: Sequence[Axes]) -> list[str]:
    return list(dict.fromkeys(axis.name for tensor_axes in axes for axis in tensor_axes.values()))


def _checks(call: ExampleCall, axes: Sequence[Axes], names: Sequence[str]) -> Callable[..., Any]:
    """A hook that sends every tensor of a call through `checked`; `names`: axes whose sizes the last of them gets."""

    def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
        names_and_axes = zip(call.names, axes, strict=True)
        sizes: dict[str, Any] = {}
        remaining = len(axes)

        def check(tensor: Tensor) -> Tensor:
            nonlocal remaining
            name, tensor_axes = next(names_and_axes)
            for number, axis in tensor_axes.items():
                sizes.setdefault(axis.name, tensor.size(number))
            remaining -= 1
            all_sizes = [] if remaining else [sizes[name] for name in names]
            return _checked(tensor, name, tensor_axes, all_sizes)

        return pytree.tree_map_only(Tensor, check, (args, kwargs))

    return hook


def _checked(tensor: Tensor, name: str, axes: Axes, all_sizes: list[Any]) -> Tensor:
    ranges = [axes.get(number, Axis("")) for number in range(tensor.dim())]
    dtype_name = str(tensor.dtype).removeprefix("torch.")
    copy: Tensor = checked(
        tensor, name, tensor.dtype, dtype_name, list(tensor.shape),
        [axis.least for axis in ranges], [axis.most for axis in ranges], all_sizes,
    )  # fmt: skip
    return copy


def _compile(program: ExportedProgram, checks: str, path: Path) -> str:
    """Compile a traced model with AOTInductor: -> the path of the package."""
    shim = CPP_FUNCTION + CHECKED.replace("CONDITIONS", checks)
    options = loop_options()
    options["aot_inductor.custom_ops_to_c_shims"][torch.ops.deploy_rnn.checked.default] = [shim]
    try:
        return torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=options
        )
    except InductorError as error:
        # The C++ declares a name twice where the output of a loop is overwritten in place, as by `2 * rnn(x)[0]`
        # (torch 2.13). Where no buffer is used again, it does not.
        if "CppCompileError" not in str(error):
            raise
    return torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(path),
        inductor_configs=options | {"allow_buffer_reuse": False, "inplace_buffers": False},
    )
