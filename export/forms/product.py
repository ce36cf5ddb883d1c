"""The product of rows and a weight: the one place where forms and cells multiply.

The input's product of all steps, the recurrent product of a step and a projection are all written here, so that
another precision of the weights is another function of this signature.

`Gemm` could transpose the weight itself. But onnxruntime's `quantize_dynamic` then transposes the constant in the file,
once for every node that reads it, and a weight is read by every step, or by several layers.
"""

import onnx_ir as ir

from .builder import Builder


def product(
    build: Builder, rows: ir.Value, weight: ir.Value, bias: ir.Value | None = None
) -> ir.Value:
    """[N, K] @ weight (M, K).T + bias -> [N, M]

    bias: (M,), or [N, M] to which the product is added; None for 0.
    """
    return build.op("Gemm", rows, build.transposed(weight), bias)
