"""`compile_graph`: inductor, with the settings and detours that a loop over time needs."""

import copy
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, cast

import torch
import torch._inductor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.exc import InductorError
from torch.utils._sympy.reference import PythonReferenceAnalysis

from deploy_rnn import loop_blocks, own_gradients
from deploy_rnn.loop_blocks import write_loops_in_blocks
from deploy_rnn.model_errors import LONGEST, first_paragraph, warn_user
from deploy_rnn.nn.lstm_directions import LSTM_OPERATORS_IN_CPP
from deploy_rnn.nn.torch_version import CPP_WRAPPER
from deploy_rnn.own_gradients import separate_gradients

KERNELS_OF_PYTORCH = (
    # 1. Inductor's own code is for the number of steps of the first call. It fixes that number while it writes the
    #    graph; of a loop that it has written before, the code then names a size that is not defined.
    torch.ops.aten.convolution_backward.default,
    torch.ops.aten.upsample_nearest2d_backward.default,
    torch.ops.aten._adaptive_avg_pool2d.default,
    torch.ops.aten.adaptive_max_pool2d.default,
    # 2. Wrong gradients of an average pool with `ceil_mode`.
    torch.ops.aten.avg_pool2d_backward.default,
)
"""Operators whose kernel in PyTorch is called where inductor would write code (torch 2.13)."""


ONE_ROW_CHUNK = 2**15
"""Operations that a thread takes at least, in a graph of one row.

The product of a step is written out there (`loop_blocks`). With few units, two threads would wait for each other for
longer than it takes one.
"""


NAME_DECLARED_TWICE = re.compile("redeclaration of|redefinition of|conflicting declaration")
"""What a C++ compiler says of a name that is declared twice."""


def compile_graph(
    graph: torch.fx.GraphModule, example_inputs: Sequence[torch.Tensor]
) -> Callable[..., Any]:
    """Compile a graph of torch.compile, as its `backend`."""
    define_quotient_of_sizes()
    options = loop_options()
    if _has_loop_of_one_row(graph):
        options["cpp.min_chunk_size"] = ONE_ROW_CHUNK
    if CPP_WRAPPER and not torch.is_grad_enabled():
        try:
            return _compile(graph, example_inputs, options | {"cpp_wrapper": True})
        except InductorError as error:
            if "CppCompileError" not in str(error):
                raise
            # The C++ driver declares a name twice where the output of a loop is overwritten in place, as by
            # `2 * rnn(x)[0]` (torch 2.13). The Python driver has no such names.
            if not NAME_DECLARED_TWICE.search(str(error)):
                _warn_of_python_driver(_compiler_error(str(error)))
    return _compile(graph, example_inputs, options)


@cache
def _warn_of_python_driver(cause: str) -> None:
    """Warn once of each cause, such as a header that is missing."""
    warn_user(
        f"the C++ that drives a compiled model does not compile here: {cause}. Python drives it instead: the numbers "
        "are the same, but a loop of small steps may take 1.7 times as long. Look at the C++ compiler and its headers; "
        "the variable CXX names another one."
    )


def _compiler_error(text: str) -> str:
    """The first line of a C++ compiler's output that names an error; else the first paragraph of the text."""
    for line in text.splitlines():
        if "error:" in line and "CppCompileError" not in line:
            return line.strip()[:LONGEST]
    return first_paragraph(RuntimeError(text))


def _has_loop_of_one_row(graph: torch.fx.GraphModule) -> bool:
    """Whether a graph of torch.compile has a loop whose states (D, B, H) are of one row."""
    for node in graph.graph.nodes:
        if node.target is torch.ops.higher_order.scan:
            _, states, *_ = node.args
            shapes = [state.meta["example_value"].shape for state in states]
            if any(len(shape) == 3 and shape[1] == 1 for shape in shapes):
                return True
    return False


class _Rewriting(CustomGraphPass):
    """What is changed in a graph before inductor writes its code."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        if CPP_WRAPPER:
            write_loops_in_blocks(graph)
        separate_gradients(graph)

    def uuid(self) -> Any:
        return get_hash_for_files((loop_blocks.__file__, own_gradients.__file__))


def loop_options() -> dict[str, Any]:
    """Options of inductor for a graph with loops over time."""
    # tanh from one exponential, in one vectorised loop.
    options: dict[str, Any] = {"cpp.use_decompose_tanh": True}
    options["post_grad_custom_post_pass"] = _Rewriting()
    if CPP_WRAPPER:
        options["aot_inductor.custom_ops_to_c_shims"] = dict(LSTM_OPERATORS_IN_CPP)
    return options


def _compile(
    graph: torch.fx.GraphModule, example_inputs: Sequence[torch.Tensor], options: dict[str, Any]
) -> Callable[..., Any]:
    known_before = _number_of_known_sizes(example_inputs)
    with _kernels_of_pytorch():
        compiled = torch._inductor.compile(
            copy.deepcopy(graph), list(example_inputs), options=options
        )
        if _number_of_known_sizes(example_inputs) > known_before:
            # Another operator has fixed a size, as case 1 above. The second time it is known from the start.
            compiled = torch._inductor.compile(graph, list(example_inputs), options=options)
    return cast(Callable[..., Any], compiled)


def _number_of_known_sizes(inputs: Sequence[Any]) -> int:
    """How many of the unknown sizes have turned out to have one value."""
    for value in inputs:
        if isinstance(value, torch.SymInt):
            return len(value.node.shape_env.replacements)
    return 0


@contextmanager
def _kernels_of_pytorch() -> Iterator[None]:
    # The import takes a second.
    from torch._inductor.lowering import force_fallback

    with ExitStack() as stack:
        for kernel in KERNELS_OF_PYTORCH:
            stack.enter_context(force_fallback(kernel))
        yield


@cache
def define_quotient_of_sizes() -> None:
    """Let inductor compute a size such as `math.ceil(T / 4)` from that of a loop's input.

    Of the operators of a size, torch 2.13 lacks only the quotient of two whole numbers in Python: it takes that of
    formulas for it, whose result `math.ceil` refuses. It stays defined, as nothing else can have worked without it.
    """
    if "int_truediv" not in vars(PythonReferenceAnalysis):
        setattr(PythonReferenceAnalysis, "int_truediv", staticmethod(operator.truediv))  # noqa: B010
