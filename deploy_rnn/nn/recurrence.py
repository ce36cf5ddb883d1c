"""`Recurrence`: the hook by which something else computes the recurrence of a layer."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from deploy_rnn.nn import lengths as row_lengths
from deploy_rnn.nn.cells import Step
from deploy_rnn.nn.scan import scan_steps

if TYPE_CHECKING:
    from deploy_rnn.nn.recurrent import Recurrent


class Recurrence:
    """What computes the recurrence of a layer. To replace it, override methods and assign: `layer.recurrence = ...`.

    The layer goes on checking its arguments and handling layouts and autocast; the tensors here are checked and
    time-major, with the letters of `Recurrent`. Override `run` to compute all layers at once (a kernel, a node of an
    exported graph), or `compiled_loop` for the steps of one layer. `layer.cell`, `layer.state_sizes()` and
    `layer.ordered_weights()` say what there is to compute.

    TorchScript compiles the layer's own code, and ignores this.
    """

    def run(
        self, layer: "Recurrent", input: Tensor, states: list[Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all layers of `layer`.

        input (T, B, I), states (L*D, B, P), (L*D, B, H) ... or None for zeros, lengths (B,) or None for T
        -> output (T, B, D*P), 0 beyond each row's end; the final states, shaped as `states`
        """
        return layer.run_layers(input, states, lengths)

    def compiled_loop(
        self,
        step: Step,
        projected: Tensor,
        mask: Tensor | None,
        states: list[Tensor],
        weights: list[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Run `step` over all steps of one layer, under `torch.compile`.

        projected (T, D, B, G*H), mask (T, 1, B, 1) or None for every row at every step, states (D, B, P) ..., weights
        -> every output (T, D, B, P), the last states
        """
        return scan_steps(step, projected, mask, states, weights)

    def unpack(self, packed: PackedSequence) -> tuple[Tensor, Tensor]:
        """Pad a PackedSequence: (T, B, I), and lengths (B,), rows in the order that the caller knows."""
        return row_lengths.unpack(packed)

    def repack(self, output: Tensor, lengths: Tensor, packed: PackedSequence) -> PackedSequence:
        """Pack `output` (T, B, D*P) with the rows, and their order, of `packed`; `lengths` are those of `unpack`."""
        return row_lengths.repack(output, lengths, packed)


class RecurrenceWrapper(Recurrence):
    """One that is assigned for a compiled model, and leaves to another what it does not do itself.

    Args:
        other: that one.
    """

    def __init__(self, other: Recurrence) -> None:
        self.other = other
        self.compiled_loop = other.compiled_loop  # type: ignore[method-assign]


def without_wrappers(recurrence: Recurrence) -> Recurrence:
    """The recurrence that a layer had before any was assigned for a compiled model."""
    while isinstance(recurrence, RecurrenceWrapper):
        recurrence = recurrence.other
    return recurrence
