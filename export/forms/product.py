"""The product of rows and a weight: the one place where forms and cells multiply.

The input's product of all steps, the recurrent product of a step and a projection are all written here, so that
another precision of the weights is another function of this signature.
"""

import onnx_ir as ir

from .builder import Builder


def product(
    build: Builder, rows: ir.Value, weight: ir.Value, bias: ir.Value | None = None
) -> ir.Value:
    """[N, K] @ weight (M, K).T + bias -> [N, M]

    bias: (M,), or [N, M] to which the product is added; None for 0.
    """
    return build.op("Gemm", rows, weight, bias, transB=1)
