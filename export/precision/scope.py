"""`Int8Scope`: which products and layers of a model are of eight bits in precision "int8"."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

from .layers import LAYERS

ALL: Final = "all"
"""Every product of the recurrent layers, and of steps that users have written."""

STATE: Final = "state"
"""Those of the states alone, and projections: what the input is multiplied by stays in float32."""

PRODUCTS = (ALL, STATE)


@dataclass(frozen=True)
class Int8Scope:
    """What of a model is of eight bits.

    1. A recurrent layer multiplies its input by weight_ih, in "all" of eight bits, in "state" in float32. The products
       of its state and of a projection are of eight bits.
    2. A cell of torch.nn: as a layer, wherever it is called.
    3. The step of a cell of a user's own, or of a loop: in "state" a product is of eight bits if what is multiplied
       follows from a state. If one product with a weight is of eight bits, all are.

    Attributes:
        layers: some of `LAYERS`, around the recurrent layers.
        products: one of `PRODUCTS`.

    Raises:
        ValueError: `layers` or `products` that are not offered.
    """

    layers: Sequence[str] = ()
    products: str = ALL

    def __post_init__(self) -> None:
        is_list = isinstance(self.layers, (Sequence, Set)) and not isinstance(self.layers, str)
        if not is_list or not all(layer in LAYERS for layer in self.layers):
            offered = " or ".join(map(repr, LAYERS))
            raise ValueError(f"`int8_layers` (={self.layers!r}) must be a list of {offered}.")
        if self.products not in PRODUCTS:
            offered = " or ".join(map(repr, PRODUCTS))
            raise ValueError(f"`int8_products` (={self.products!r}) must be {offered}.")

    @property
    def rounds_inputs(self) -> bool:
        """Whether the input's product of a recurrent layer is of eight bits."""
        return self.products == ALL


EVERY_PRODUCT = Int8Scope()
"""What holds if nothing is said: every product, and no layers around."""
