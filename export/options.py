"""What `export_onnx` and `export_bundle` can both be asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from deploy_rnn.checking.tolerance import Tolerance, check_precision, model_precision
from deploy_rnn.checking.trials import SIZES
from deploy_rnn.errors import ExportError

from .forms import ROW_ENDS
from .forms.node_count import MAX_NODES
from .opset import NEWEST, NEWEST_IR, OLDEST, lowest_ir_version
from .precision.metric import ErrorMetric, is_finite_number
from .precision.names import FLOAT16, INT8, ROUNDED
from .precision.scope import ALL, Int8Scope
from .runtimes.table import ONNXRUNTIME, row_ends_for, runtime_named

FIXED_STEPS = "Without `dynamic_shapes` the time axis is dynamic; form='unrolled' keeps the example's number of steps."
NAMED_AXIS = "Leave it out of `dynamic_shapes`."
OPEN_AXIS = (
    "Without `dynamic_shapes` the batch and the steps are dynamic; name there the axes that can be."
)


@dataclass(frozen=True)
class ExportOptions:
    """The keyword arguments that `export_onnx` and `export_bundle` share, with their defaults.

    Their docstrings say what each one means. A new option is a field here and a keyword of both functions.

    Raises:
        ExportError: an `opset_version`, `ir_version` or `row_ends` that is not supported.
        ValueError: a `precision` that is not offered, or a `max_error`, `int8_layers` or `int8_products` that cannot be
            used, or not with this precision.
        RuntimeMissingError: the runtime is not installed.
    """

    precision: str | None = None
    dynamic_shapes: Any = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    opset_version: int = 18
    ir_version: int | None = None
    streaming: bool = False
    max_nodes: int = MAX_NODES
    row_ends: Literal["sequence_lens", "held"] | None = None
    runtime: str = ONNXRUNTIME
    portable: bool = False
    atol: float | None = None
    rtol: float | None = None
    max_error: float | ErrorMetric | None = None
    int8_layers: Sequence[Literal["linear", "embedding"]] = ()
    int8_products: Literal["all", "state"] = ALL
    sizes: Sequence[int] = SIZES

    def __post_init__(self) -> None:
        if not isinstance(self.opset_version, int) or not OLDEST <= self.opset_version <= NEWEST:
            raise ExportError(
                f"`opset_version` (={self.opset_version!r}) must be a whole number from {OLDEST} to {NEWEST}."
            )
        lowest = lowest_ir_version(self.opset_version)
        is_version = isinstance(self.ir_version, int) and lowest <= self.ir_version <= NEWEST_IR
        if self.ir_version is not None and not is_version:
            raise ExportError(
                f"`ir_version` (={self.ir_version!r}) must be a whole number from {lowest}, the lowest for opset "
                f"{self.opset_version}, to {NEWEST_IR}."
            )
        if self.runtime != ONNXRUNTIME:
            runtime_named(self.runtime).check_installed()
        if self.row_ends not in (None, *ROW_ENDS):
            offered = " or ".join(map(repr, ROW_ENDS))
            raise ExportError(f"`row_ends` (={self.row_ends!r}) must be {offered}.")
        if self.precision is not None:
            check_precision(self.precision)
        if self.max_error is not None:
            self._check_max_error()
        self._check_int8_scope()
        if self.precision == INT8 and (self.portable or self.runtime != ONNXRUNTIME):
            raise ExportError(
                "precision='int8' has operators that few runtimes but onnxruntime take; leave out `portable` and "
                "`runtime`, or `precision`."
            )
        if self.precision == FLOAT16 and self.portable:
            raise ExportError(
                "precision='float16' casts its weights, which portable=True does not allow; leave one of them out."
            )

    def _check_max_error(self) -> None:
        bound = self.max_error
        is_number = is_finite_number(bound) and bound > 0
        if not is_number and not isinstance(bound, ErrorMetric):
            raise ValueError(
                f"`max_error` (={bound!r}) must be a number above 0, or an `ErrorMetric`."
            )
        if self.precision not in ROUNDED:
            offered = " or ".join(f"precision={name!r}" for name in ROUNDED)
            raise ValueError(
                f"`max_error` (={self.max_error!r}) bounds what {offered} costs; give one, or leave it out."
            )

    def _check_int8_scope(self) -> None:
        scope = self.int8_scope
        is_default = not scope.layers and scope.products == ALL
        if is_default or self.precision == INT8:
            return
        name = "int8_layers" if self.int8_layers else "int8_products"
        raise ValueError(
            f"`{name}` (={getattr(self, name)!r}) is for precision='int8'; give that, or leave it out."
        )

    @property
    def int8_scope(self) -> Int8Scope:
        """What of the model is of eight bits, in that precision."""
        return Int8Scope(self.int8_layers, self.int8_products)

    def axis_advice(self, fixed_steps: bool) -> str:
        """What to do about an axis that the model fixes; `fixed_steps`: whether a file of fixed steps can be had."""
        if self.dynamic_shapes is not None:
            return NAMED_AXIS
        return FIXED_STEPS if fixed_steps else OPEN_AXIS

    @property
    def row_ends_written(self) -> Literal["sequence_lens", "held"]:
        """`row_ends`; if it is not given, what the runtime reads."""
        if self.row_ends is None:
            return "held" if self.portable else row_ends_for(self.runtime)
        return self.row_ends

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Where a file is checked: in onnxruntime, and where it will run."""
        return tuple(dict.fromkeys((ONNXRUNTIME, self.runtime)))

    def tolerance_for(self, model: nn.Module) -> Tolerance:
        """Return how much a file of `model` may differ from it, in the precision that the file is to have.

        Raises:
            ExportError: the model cannot be written in that precision.
            ValueError: an `atol` or `rtol` that cannot be used.
        """
        own = model_precision(model)
        if self.precision in ROUNDED and own == "float32":
            return Tolerance(self.atol, self.rtol, self.precision)
        if self.precision not in (None, own):
            offered = f"{own!r}, as the model's weights are"
            if own == "float32":
                offered += f", or {' or '.join(map(repr, ROUNDED))}"
            raise ExportError(
                f"`precision` (={self.precision!r}) must be {offered}; leave it out, or convert the model first."
            )
        return Tolerance(self.atol, self.rtol, own)


DEFAULTS = ExportOptions()
