"""The product of rows and a weight in eight bits, as `precision.rounding` defines it.

    [N, K] ─ Div by limits ─ QuantizeLinear ─ MatMulInteger Q ─ Cast ─ Mul scales ─ Mul limits ─ Add bias

Without limits if the rows are known to be within -1 and 1, as most states are.
"""

import numpy as np
import onnx_ir as ir

from deploy_rnn.errors import ExportError

from ..precision.rounding import (
    ROW_LEVELS,
    ROW_STEP,
    ROW_ZERO,
    SMALLEST_LIMIT,
    rounded_columns,
)
from .builder import Builder


def int8_product(
    build: Builder, rows: ir.Value, weight: ir.Value, bias: ir.Value | None, limits: ir.Value | None
) -> ir.Value:
    """[N, K] @ weight (M, K).T + bias -> [N, M]

    limits: [N, 1], the largest magnitudes of the rows, or more; None for 1.
    """
    levels, scales = _columns(build, weight)
    rounded = build.once(
        ("rounded", rows, limits), lambda: _rounded(build.scope(".rounded"), rows, limits)
    )
    sums = build.scope(".sums").op("MatMulInteger", rounded, levels, _row_zero(build), _zero(build))
    numbers = build.scope(".numbers").op("Cast", sums, to=ir.DataType.FLOAT)
    if limits is None and bias is None:
        return build.op("Mul", numbers, scales)
    scaled = build.scope(".scaled").op("Mul", numbers, scales)
    if limits is not None:
        limited = build if bias is None else build.scope(".limited")
        scaled = limited.op("Mul", scaled, limits)
    return scaled if bias is None else build.op("Add", scaled, bias)


def largest_of_rows(build: Builder, rows: ir.Value) -> ir.Value:
    """[N, K] -> the largest magnitude of each row, [N, 1]; of a row of zeros a small number."""
    return build.once(("largest", rows), lambda: _largest(build.scope(".limit"), rows))


def state_limits(build: Builder, state: ir.Value) -> ir.Value:
    """The limits of a state that begins as `state` [B, P], and does not leave -1 to 1 if it begins there: [B, 1]."""
    one = _constant(build, "one", np.float32(1))
    return build.op("Max", largest_of_rows(build, state), one)


def _largest(build: Builder, rows: ir.Value) -> ir.Value:
    magnitudes = build.scope(".magnitudes").op("Abs", rows)
    axes = _constant(build, "last_axis", np.array([-1]))
    largest = build.scope(".largest").op("ReduceMax", magnitudes, axes, keepdims=1)
    return build.op("Max", largest, _constant(build, "smallest_limit", SMALLEST_LIMIT))


def _rounded(build: Builder, rows: ir.Value, limits: ir.Value | None) -> ir.Value:
    if limits is not None:
        rows = build.scope(".shares").op("Div", rows, limits)
    step = _constant(build, "row_step", ROW_STEP)
    return build.op("QuantizeLinear", rows, step, _row_zero(build))


def _columns(build: Builder, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The levels of a weight (M, K), [K, M], and what one of them is worth in a product, (M,)."""
    return build.once(("columns", weight), lambda: _rounded_columns(build, weight))


def _rounded_columns(build: Builder, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
    levels, steps = rounded_columns(weight_numbers(weight))
    # Outside every loop, since the next one may read it, too.
    outside = build.root.named_after(weight)
    return (
        outside.scope(".int8").constant(levels),
        outside.scope(".scales").constant(steps / np.float32(ROW_LEVELS)),
    )


def weight_numbers(weight: ir.Value) -> np.ndarray:
    """The numbers of a weight.

    Raises:
        ExportError: the model computes it.
    """
    if weight.const_value is None:
        raise ExportError(
            f"precision='int8' rounds the weights when the file is written, and `{weight.name}` is computed by the "
            "model; leave `precision` out."
        )
    return weight.const_value.numpy()


def _row_zero(build: Builder) -> ir.Value:
    return _constant(build, "row_zero", np.uint8(ROW_ZERO))


def _zero(build: Builder) -> ir.Value:
    return _constant(build, "weight_zero", np.int8(0))


def _constant(build: Builder, name: str, number: np.ndarray | np.generic) -> ir.Value:
    """One for all products of a graph."""
    return build.once(
        ("int8", name), lambda: build.root.scope(f"int8.{name}").constant(np.asarray(number))
    )
