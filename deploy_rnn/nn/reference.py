"""The recurrence as slow, obvious code: the oracle of the tests, and the explanation.

A bidirectional stack goes layer by layer, and within a layer each direction walks the whole sequence, because step 0 of
layer 1 already needs the reverse direction of layer 0, which has seen every later step. Stepping through all layers at
each time step (the classic mistake) has no reverse state to feed upwards yet; it is right for one direction only.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


def rnn(
    input: Tensor,
    h0: Tensor,
    weights: Mapping[str, Tensor],
    *,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run a stack of Elman layers, one step and one direction at a time.

        h[t] = act(x[t] @ W_ih.T + b_ih + h[t-1] @ W_hh.T + b_hh)

    T time steps, B batch, I input size, H hidden size, D directions (1 or 2), L layers.

    Args:
        input: (T, B, I), any floating dtype.
        h0: (L*D, B, H), layer-major: layer 0 forward, layer 0 reverse, layer 1 forward, ...
        weights: a `torch.nn.RNN` state_dict; layers without bias have no `bias_*` entries.
            Layer 0 has input size I, every later layer D*H.

    Returns:
        output (T, B, D*H) of the last layer, and h_n (L*D, B, H), ordered as h0.
    """
    suffixes = ("", "_reverse") if bidirectional else ("",)
    sequence = input
    finals = []
    for layer in range(num_layers):
        directions = []
        for direction, suffix in enumerate(suffixes):
            h = h0[layer * len(suffixes) + direction]
            outputs, final = _walk(sequence, h, weights, f"_l{layer}{suffix}", nonlinearity)
            directions.append(outputs)
            finals.append(final)
        sequence = torch.cat(
            directions, dim=-1
        )  # (T, B, D*H): the whole of it feeds the next layer
    return sequence, torch.stack(finals)


def _walk(
    sequence: Tensor, h: Tensor, weights: Mapping[str, Tensor], name: str, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    """One direction of one layer.

    1. Forward: step t reads h[t-1].
    2. Reverse: step t reads h[t+1]; its output is stored at t, not at T-1-t.
    """
    outputs = [h] * len(sequence)
    steps = list(range(len(sequence)))
    if name.endswith("_reverse"):
        steps.reverse()
    for t in steps:
        gates = sequence[t] @ weights[f"weight_ih{name}"].T + h @ weights[f"weight_hh{name}"].T
        if f"bias_ih{name}" in weights:
            gates = gates + weights[f"bias_ih{name}"] + weights[f"bias_hh{name}"]
        h = ACTIVATIONS[nonlinearity](gates)
        outputs[t] = h  # cases 1 and 2: written where it was read
    return torch.stack(outputs), h
