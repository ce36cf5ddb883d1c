"""What a file that rounds must give, and what its rounding costs: a `RoundedReference` for each such precision."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.tolerance import ROUNDING_MARGIN, Expected, as_array
from deploy_rnn.checking.trials import Reference
from deploy_rnn.conversion import convert_for_inference
from deploy_rnn.copying import evaluation_copy, has_computed_weights
from deploy_rnn.nn.recurrent import Recurrent

from .cost import Deviation
from .float16 import round_weights
from .layers import round_layers
from .names import FLOAT16, INT8
from .products import WeightProducts
from .scope import EVERY_PRODUCT, Int8Scope
from .simulation import NEAR, OTHER_SIDES, Rounding, simulate
from .weights import RoundedWeights, ScaledLevels, cell_keys, scaled_key


class RoundedReference(Reference):
    """A model as a file of it that rounds computes it: `outputs` and `expected` are those of a simulation.

    Attributes:
        deviations: of every call whose outputs were asked for by `expected`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.deviations: list[Deviation] = []

    def taken_deviations(self) -> list[Deviation]:
        """The deviations since the last time."""
        taken, self.deviations = self.deviations, []
        return taken


class Float16Reference(RoundedReference):
    """A model whose weights are rounded to float16, and which then computes as any other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        rounded_model = evaluation_copy(self.model)
        # What is computed is rounded as it is in the file: afterwards. torch.nn's own layers would not notice.
        if has_computed_weights(rounded_model):
            rounded_model = convert_for_inference(self.model)
        round_weights(rounded_model)
        self._rounded = Reference(rounded_model)

    def outputs(self, call: ExampleCall) -> list[Tensor]:
        # The model itself says which calls it takes.
        super().outputs(call)
        return self._rounded.outputs(call)

    def expected(self, call: ExampleCall, outputs: Sequence[Tensor], label: str) -> list[Expected]:
        rounded = self._rounded.expected(call, outputs, label)
        exact = self.run_in_float64(call)
        rounded_exact = self._rounded.run_in_float64(call)
        if exact is None or rounded_exact is None:
            exact = [as_array(output) for output in super().outputs(call)]
            rounded_exact = [output.values for output in rounded]
        self.deviations.append(Deviation(label, rounded_exact, exact))
        return rounded


class Int8Reference(RoundedReference):
    """A model as a file with products in eight bits computes it.

    `expected` allows for what is near the middle of two levels.

    Args:
        model: the model.
        scope: what of it is of eight bits.

    Attributes:
        scope: the same.
        cells: the weights of the cells of torch.nn in the model.

    A step that a user has written is rounded where the file is: `rounds_as` says which weights that has.
    """

    def __init__(self, model: nn.Module, scope: Int8Scope = EVERY_PRODUCT) -> None:
        super().__init__(model)
        self._rounded_model = convert_for_inference(self.model)
        self.scope = scope
        self.cells = cell_keys(self.model)
        self._weights = RoundedWeights.of(self._rounded_model, scope)
        self._products: WeightProducts | None = None
        recurrent_layers = [
            module for module in self._rounded_model.modules() if isinstance(module, Recurrent)
        ]
        self._simulation = simulate(recurrent_layers, rounds_inputs=scope.rounds_inputs)
        round_layers(self._rounded_model, scope.layers, self._simulation.linear)

    def rounds_as(self, weights: Mapping[str, ScaledLevels]) -> None:
        """From now on, round the products with these weights of a file, by their names, in any step of a user's."""
        keys = {scaled_key(levels, scales) for levels, scales in weights.values()}
        if not self.scope.rounds_inputs:
            keys -= self.cells.of_inputs
        self._products = WeightProducts(self._rounded_model, self._simulation, keys)

    @property
    def weights(self) -> RoundedWeights:
        """What the file must have: the weights of layers, and those that steps have multiplied by so far."""
        if self._products is None:
            return self._weights
        return replace(self._weights, columns=self._weights.columns | self._products.columns)

    def outputs(self, call: ExampleCall) -> list[Tensor]:
        # The model itself says which calls it takes.
        super().outputs(call)
        return self._rounded(call, Rounding())

    def expected(self, call: ExampleCall, outputs: Sequence[Tensor], label: str) -> list[Expected]:
        # What is not finite is refused there.
        originals = super().expected(call, super().outputs(call), label)
        arrays = [as_array(output) for output in outputs]
        exact = self.run_in_float64(call) or [original.values for original in originals]
        self.deviations.append(Deviation(label, arrays, exact))
        spreads = [original.rounding for original in originals]
        near = max(NEAR, ROUNDING_MARGIN * max(spreads, default=0.0))
        for others in self._other_runs(call, near):
            for number, other in enumerate(others):
                spread = Expected.of(arrays[number], as_array(other)).rounding
                spreads[number] = max(spreads[number], spread)
        return [Expected(array, spread) for array, spread in zip(arrays, spreads, strict=True)]

    def _other_runs(self, call: ExampleCall, near: float) -> list[list[Tensor]]:
        """The same call as other right files may compute it; see `simulation`."""
        runs = []
        in_float32 = Rounding(torch.float32, near, looks_for_middles=True)
        runs.append(self._rounded(call, in_float32))
        if in_float32.is_near_middle:
            for seed in range(OTHER_SIDES):
                sides = torch.Generator().manual_seed(seed)
                runs.append(self._rounded(call, Rounding(near=near, sides=sides)))
        return runs

    def _rounded(self, call: ExampleCall, rounding: Rounding) -> list[Tensor]:
        self._simulation.rounding = rounding
        with torch.no_grad(), self._products or nullcontext():
            return [output.clone() for output in call.run(self._rounded_model)]


def reference_of(model: nn.Module, precision: str, scope: Int8Scope = EVERY_PRODUCT) -> Reference:
    """Return what a file of `model` in a precision is compared with.

    Args:
        model: the model.
        precision: of the file.
        scope: in "int8", what of the model is of eight bits.

    Raises:
        ExportError: a weight is too large for float16.
    """
    if precision == INT8:
        return Int8Reference(model, scope)
    return Float16Reference(model) if precision == FLOAT16 else Reference(model)
