"""Forms: the ways to write one recurrence in ONNX, one file each, with one signature."""

from collections.abc import Callable

import onnx_ir as ir

from ..stack import Stack
from .builder import Builder
from .held import held
from .native import native
from .scan import scan
from .unrolled import unrolled

Form = Callable[[Builder, Stack], list[ir.Value]]

FORMS: dict[str, Form] = {"unrolled": unrolled, "scan": scan, "native": native}
"""Each writes a stack and returns output (T, B, D*P) and the final states (L*D, B, P), (L*D, B, H) ..."""

FIXED_TIME = frozenset({"unrolled"})
"""The forms whose number of steps is written into the file."""

ROW_ENDS: dict[str, Form] = {"sequence_lens": native, "held": held}
"""The ways in which form "native" can write rows of different length; the first one is for onnxruntime."""
