"""Names for the types that pass through every part of the engine."""

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]
"""Tensors by name, which are only read."""

Outputs = dict[str, np.ndarray]
"""The outputs of one request by name; they belong to the one who gets them."""
