"""`RoundedReference`: what a file in eight bits must give, and what rounding costs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.tolerance import ROUNDING_MARGIN, Expected, as_array
from deploy_rnn.checking.trials import Reference
from deploy_rnn.conversion import convert_for_inference
from deploy_rnn.nn.recurrent import Recurrent

from .cost import Deviation
from .rounding import INT8
from .simulation import NEAR, OTHER_SIDES, Rounding, simulate


class RoundedReference(Reference):
    """A model as a file with products in eight bits computes it.

    `outputs` are those of the simulation, and `expected` allows for what is near the middle of two levels.

    Attributes:
        deviations: of every call whose outputs were asked for by `expected`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.deviations: list[Deviation] = []
        self._rounded_model = convert_for_inference(self.model)
        layers = [
            module for module in self._rounded_model.modules() if isinstance(module, Recurrent)
        ]
        self._simulation = simulate(layers)

    def outputs(self, call: ExampleCall) -> list[Tensor]:
        # The model itself says which calls it takes.
        super().outputs(call)
        return self._rounded(call, Rounding())

    def expected(self, call: ExampleCall, outputs: Sequence[Tensor], label: str) -> list[Expected]:
        # What is not finite is refused there.
        originals = super().expected(call, super().outputs(call), label)
        arrays = [as_array(output) for output in outputs]
        exact = self._run_in_float64(call) or [original.values for original in originals]
        self.deviations.append(Deviation(label, arrays, exact))
        spreads = [original.rounding for original in originals]
        near = max(NEAR, ROUNDING_MARGIN * max(spreads, default=0.0))
        for others in self._other_runs(call, near):
            for number, other in enumerate(others):
                spread = Expected.of(arrays[number], as_array(other)).rounding
                spreads[number] = max(spreads[number], spread)
        return [Expected(array, spread) for array, spread in zip(arrays, spreads, strict=True)]

    def taken_deviations(self) -> list[Deviation]:
        """The deviations since the last time."""
        taken, self.deviations = self.deviations, []
        return taken

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
        with torch.no_grad():
            return [output.clone() for output in call.run(self._rounded_model)]


def reference_of(model: nn.Module, precision: str) -> Reference:
    """Return what a file of `model` in a precision is compared with."""
    return RoundedReference(model) if precision == INT8 else Reference(model)
