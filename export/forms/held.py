"""Form "native" without `sequence_lens`, which some runtimes ignore: the state is held where a row has ended.

The sequence has one more column, which is 1 beyond a row's end, and the input weights one more column that drives the
gates there so far that the state stays exactly as it is:

1. GRU: the update gate is 1, so h' = h. Both directions have their right final state.
2. LSTM: the input gate is 0 and the forget gate 1, so c' = c. Its h goes on, since the output gate does: h_n is looked
   up at the row's last step. The reverse direction must not have moved before it reaches that step. From zeros it has
   not: c = 0 gives h = 0.
3. RNN has no gates, and the reverse direction of an LSTM with given first states would move. Such a layer is written as
   two forward operators, the second on rows that are reversed within their length, as in the other forms.

The operators read all steps, so that the input is masked first: NaN beyond a row's end would stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy_rnn.nn import cells

from ..stack import DirectionWeights, Stack, fixed
from .builder import Attribute, Builder
from .native import OPERATORS, native, operator_of, operator_weights, split_layers
from .row_ends import RowEnds
from .shapes import split_time

FAR = 1e4
"""What drives a gate to 0 or 1, whatever a trained layer adds to it: a sigmoid is 1 in float32 from 17 on."""

HELD: dict[cells.Step, dict[int, float]] = {
    cells.gru: {1: FAR},
    cells.lstm: {0: -FAR, 1: FAR},
}
"""PyTorch's step -> the gates that hold its state, by their position among PyTorch's, and where to."""


@dataclass(frozen=True)
class LayerRun:
    """One layer, or one of its directions, after its operator.

    Attributes:
        rows: its output at all steps, [T*B, D*H].
        finals: what the operator returned, [D, B, H] ...
    """

    rows: ir.Value
    finals: Sequence[ir.Value]


def held(build: Builder, stack: Stack) -> list[ir.Value]:
    """-> output (T, B, D*H), final states (L*D, B, H) ...

    Raises:
        ExportError: as for `native`.
    """
    ends = RowEnds.of(build, stack)
    if ends is None:
        return native(build, stack)
    operator_of(stack)
    starts = []
    for name, state in zip(stack.state_names, stack.states, strict=True):
        starts.append(split_layers(build.scope(f"{name}0."), stack, state))
    rows = build.scope("input.rows").reshape(stack.input, [-1, stack.input_size])  # [T*B, I]
    rows = ends.clear_padding(build.scope("input.masked"), rows)
    finals = []
    for number, layer in enumerate(stack.layers):
        layer_build = build.scope(f"l{number}.")
        layer_starts = [states[number] for states in starts]
        writer = HeldLayer(layer_build, stack, ends, layer, layer_starts)
        rows, layer_finals = writer.write(rows)
        finals.append(layer_finals)
    cleared = ends.clear_padding(build.scope("output.rows"), rows)
    width = len(stack.layers[0]) * stack.sizes[0]
    results = [split_time(build.scope("output"), stack, cleared, width)]  # (T, B, D*H)
    for index, name in enumerate(stack.state_names):
        parts = [states[index] for states in finals]
        results.append(build.scope(f"{name}_n").concat(parts, axis=0))  # (L*D, B, H)
    return results


@dataclass(frozen=True)
class HeldLayer:
    """One layer of a stack.

    Attributes:
        build: takes the nodes; its scope is the layer's.
        stack: what it is part of.
        ends: where the rows end.
        layer: the weights of its directions.
        starts: its first states, [D, B, H] ..., each None for zeros.
    """

    build: Builder
    stack: Stack
    ends: RowEnds
    layer: Sequence[DirectionWeights]
    starts: Sequence[ir.Value | None]

    def write(self, rows: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
        """[T*B, N] -> output [T*B, D*H], undefined beyond each row's end; final states [D, B, H] ..."""
        step = self.stack.cell.step
        starts_from_zeros = all(start is None for start in self.starts)
        # Case 3.
        if len(self.layer) == 2 and not (
            step is cells.gru or (step is cells.lstm and starts_from_zeros)
        ):
            return self._each_direction(rows)
        run = self._run(self.build, rows, self.layer, self.starts)
        # Case 1.
        if step is cells.gru:
            return run.rows, list(run.finals)
        # Case 2, and a single direction of an RNN.
        return run.rows, [self._final_h(run), *run.finals[1:]]

    def _each_direction(self, rows: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
        parts: list[Sequence[ir.Value | None]] = []
        for name, start in zip(self.stack.state_names, self.starts, strict=True):
            build = self.build.scope(f"{name}0.")
            parts.append([None, None] if start is None else build.split(start, 2))
        outputs = []
        finals = []
        for index, weights in enumerate(self.layer):
            build = self.build.scope("fr"[index] + ".")
            source = rows
            if index == 1:
                source = self.ends.reverse_rows(build.scope("input.turned"), rows)
            starts = [states[index] for states in parts]
            run = self._run(build, source, [weights], starts)
            last = self.ends.final_states(build, [run.rows], starts)[0]  # [B, H]
            final_h = build.scope("h_n.layer").reshape(last, [1, -1, self.stack.sizes[0]])
            finals.append([final_h, *run.finals[1:]])
            output = run.rows
            if index == 1:
                output = self.ends.reverse_rows(build.scope("h.in_time"), output)
            outputs.append(output)
        joined = []
        for name, pair in zip(self.stack.state_names, zip(*finals, strict=True), strict=True):
            joined.append(self.build.scope(f"{name}_n").concat(pair, axis=0))  # [D, B, H]
        return self.build.scope("output").concat(outputs, axis=1), joined

    def _run(
        self,
        build: Builder,
        rows: ir.Value,
        layer: Sequence[DirectionWeights],
        starts: Sequence[ir.Value | None],
    ) -> LayerRun:
        """Write one operator for `layer`: both directions of it, or one, walked forward."""
        operator = OPERATORS[self.stack.cell.step]
        weights, recurrent, bias = operator_weights(build, layer, operator)
        width = fixed(layer[0].weight_ih, 1)
        gates = HELD.get(self.stack.cell.step)
        if gates is not None:
            rows = build.scope("input.rows").concat([rows, self.ends.ended()], axis=1)
            weights = build.scope("W.held").concat(
                [weights, self._column(gates, len(layer))], axis=2
            )
            width += 1
        sequence = split_time(build.scope("input"), self.stack, rows, width)  # [T, B, N]
        attributes: dict[str, Attribute] = dict(operator.attributes)
        if operator.activations:
            attributes["activations"] = [*operator.activations] * len(layer)
        hidden = self.stack.sizes[0]
        outputs, *finals = build.op_many(
            operator.op_type,
            sequence,
            weights,
            recurrent,
            bias,
            None,
            *starts,
            outputs=["Y", *(f"{name}_n" for name in self.stack.state_names)],
            hidden_size=hidden,
            direction="bidirectional" if len(layer) == 2 else "forward",
            **attributes,
        )  # [T, D, B, H], [D, B, H] ...
        if len(layer) == 2:
            outputs = build.scope("turned").op("Transpose", outputs, perm=[0, 2, 1, 3])
        return LayerRun(build.scope("rows").reshape(outputs, [-1, len(layer) * hidden]), finals)

    def _column(self, gates: dict[int, float], directions: int) -> ir.Value:
        """The weights of the column that holds the state, [D, G*H, 1], gates in the operator's order."""
        order = OPERATORS[self.stack.cell.step].order
        hidden = self.stack.sizes[0]
        column = np.zeros((directions, len(order), hidden, 1), np.float32)
        for position, gate in enumerate(order):
            column[:, position] = gates.get(gate, 0.0)
        build = self.build.root.scope(f"held.{directions}")
        key = ("held", self.build.root, directions)
        return self.build.once(key, lambda: build.constant(column.reshape(directions, -1, 1)))

    def _final_h(self, run: LayerRun) -> ir.Value:
        """h at each row's own last step, [D, B, H]; the reverse direction ends at the first step, with the operator."""
        directions = len(self.layer)
        hidden = self.stack.sizes[0]
        start = self.starts[0] if directions == 1 else None
        last = self.ends.final_states(self.build, [run.rows], [start])[0]  # [B, D*H]
        forward = self.build.scope("h_last.").split(last, directions, axis=1)[0]
        final = self.build.scope("h_last").reshape(forward, [1, -1, hidden])
        if directions == 1:
            return final
        reverse = self.build.scope("h_n.").split(run.finals[0], directions)[1]
        return self.build.scope("h_n.both").concat([final, reverse], axis=0)
