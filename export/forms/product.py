"""The product of rows and a weight: the one place where forms and cells multiply.

The input's product of all steps, the recurrent product of a step and a projection are all written here, in the
precision of the builder.

`Gemm` could transpose the weight itself. But onnxruntime's `quantize_dynamic` then transposes the constant in the file,
once for every node that reads it, and a weight is read by every step, or by several layers.
"""

from dataclasses import dataclass

import onnx_ir as ir

from ..precision.names import INT8
from .builder import Builder
from .int8_product import int8_product, largest_of_rows, state_limits


@dataclass(frozen=True)
class Limits:
    """The largest magnitude that each of some rows may have, which a product in eight bits needs to know.

    Attributes:
        of_rows: [N, 1], None for 1.
    """

    of_rows: ir.Value | None = None


def product(
    build: Builder,
    rows: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None = None,
    limits: Limits | None = None,
) -> ir.Value:
    """[N, K] @ weight (M, K).T + bias -> [N, M]

    bias: (M,), or [N, M] to which the product is added; None for 0.
    limits: of the rows; None if they are not known beforehand.
    """
    if build.precision != INT8:
        return _gemm(build, rows, weight, bias)
    if limits is None:
        limits = Limits(largest_of_rows(build, rows))
    return int8_product(build, rows, weight, bias, limits.of_rows)


def input_product(
    build: Builder, rows: ir.Value, weight: ir.Value, bias: ir.Value | None
) -> ir.Value:
    """The same of the input of a layer, which may stay in the precision of the weights."""
    if build.rounds_inputs:
        return product(build, rows, weight, bias)
    return _gemm(build, rows, weight, bias)


def _gemm(build: Builder, rows: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    return build.op("Gemm", rows, build.transposed(weight), bias)


def limits_of_states(build: Builder, first: ir.Value | None) -> Limits | None:
    """The limits of a state that does not leave -1 to 1 if it begins there, at any step.

    first: the state at the start, [B, P]; None for zeros.
    """
    if build.precision != INT8:
        return None
    return Limits() if first is None else Limits(state_limits(build, first))
