"""`lstm_directions`: oneDNN's kernel for both directions of an LSTM layer, in compiled code on a thread each.

One direction after the other, each shared by all threads, the threads wait for one another at every step. The
directions do not need each other: on a thread each, they wait once a layer.
"""

import torch
from torch import Tensor

_LSTM_OF_ONEDNN = 2
"""Its number for the kernel."""

MANY_THREADS_MOST = 2**17
"""Multiplications of a step, B*4*H*H, up to which the directions have a thread each where there are more than two.

They take such a thread some 5 microseconds, which is about what threads take to wait for each other.
"""


def lstm_direction(
    input: Tensor, weights: list[Tensor], states: list[Tensor], has_biases: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run oneDNN's kernel for one direction of one layer.

    input (T, B, I), weights (4*H, I), (4*H, H), (4*H,), (4*H,), states h and c (1, B, H) -> output (T, B, H), h, c
    """
    output, h, c, _ = torch.ops.aten.mkldnn_rnn_layer.default(
        input, *weights, *states, reverse,
        batch_sizes=[], mode=_LSTM_OF_ONEDNN, hidden_size=states[0].size(-1), num_layers=1, has_biases=has_biases,
        bidirectional=False, batch_first=False, train=False,
    )  # fmt: skip
    return output, h, c


@torch.library.custom_op("deploy_rnn::lstm_directions", mutates_args=())
def lstm_directions(
    inputs: list[Tensor],
    weights: list[Tensor],
    states: list[Tensor],
    has_biases: bool,
    reverse: bool,
    hidden_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run both directions of one layer.

    Everything is as for `lstm_direction`, the forward direction's before the reverse one's: -> output, h, c, and again
    output, h, c. The reverse direction walks from the end if `reverse`; else its input is turned around already.
    """
    return (
        *lstm_direction(inputs[0], weights[:4], states[:2], has_biases, False),
        *lstm_direction(inputs[1], weights[4:], states[2:], has_biases, reverse),
    )


@lstm_directions.register_fake
def _(
    inputs: list[Tensor],
    weights: list[Tensor],
    states: list[Tensor],
    has_biases: bool,
    reverse: bool,
    hidden_size: int,
) -> tuple[Tensor, ...]:
    results = []
    for input, h, c in (inputs[0], *states[:2]), (inputs[1], *states[2:]):
        output = input.new_empty([input.size(0), input.size(1), hidden_size])
        results += [output, torch.empty_like(h), torch.empty_like(c)]
    return tuple(results)


_KERNEL = """
AOTITorchError aoti_torch_cpu_mkldnn_rnn_layer(
    AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle,
    AtenTensorHandle, int32_t, const int64_t*, int64_t, int64_t, int64_t, int64_t, int32_t, int32_t, int32_t, int32_t,
    AtenTensorHandle*, AtenTensorHandle*, AtenTensorHandle*, AtenTensorHandle*)"""

_THREADS = "int omp_get_max_threads()"

# 1. Within a parallel region, oneDNN works on the thread that calls it.
# 2. The second thread has PyTorch's defaults, and so would keep what gradients need.
# 3. No exception may leave the region.
_DIRECTIONS = """
inline AOTITorchError aoti_torch_cpu_lstm_directions(
    const AtenTensorHandle* inputs, int64_t, const AtenTensorHandle* weights, int64_t,
    const AtenTensorHandle* states, int64_t, int32_t has_biases, int32_t reverse, int64_t hidden_size,
    AtenTensorHandle* output, AtenTensorHandle* h, AtenTensorHandle* c,
    AtenTensorHandle* reverse_output, AtenTensorHandle* reverse_h, AtenTensorHandle* reverse_c) {
  AtenTensorHandle* results[] = {output, h, c, reverse_output, reverse_h, reverse_c};
  AOTITorchError errors[2];
  int64_t batch;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_size(inputs[0], 1, &batch));
#ifdef _OPENMP
  const int threads = omp_get_max_threads();
  const bool together = threads > 1 && (threads == 2 || batch * 4 * hidden_size * hidden_size <= MANY_THREADS_MOST);
#pragma omp parallel for num_threads(2) if (together)
#endif
  for (int number = 0; number < 2; ++number) {
    const bool gradients = aoti_torch_grad_mode_is_enabled();
    aoti_torch_grad_mode_set_enabled(false);
    const AtenTensorHandle* w = weights + 4 * number;
    AtenTensorHandle** result = results + 3 * number;
    AtenTensorHandle workspace = nullptr;
    errors[number] = aoti_torch_cpu_mkldnn_rnn_layer(
        inputs[number], w[0], w[1], w[2], w[3], states[2 * number], states[2 * number + 1], number && reverse,
        nullptr, 0, LSTM_OF_ONEDNN, hidden_size, 1, has_biases, 0, 0, 0, result[0], result[1], result[2], &workspace);
    if (!errors[number]) aoti_torch_delete_tensor_object(workspace);
    aoti_torch_grad_mode_set_enabled(gradients);
  }
  return errors[0] ? errors[0] : errors[1];
}"""

LSTM_DIRECTIONS_IN_CPP = [
    _KERNEL,
    _THREADS,
    _DIRECTIONS.replace("LSTM_OF_ONEDNN", str(_LSTM_OF_ONEDNN)).replace(
        "MANY_THREADS_MOST", str(MANY_THREADS_MOST)
    ),
]
"""Declarations for inductor's C++, by the last of which it calls `lstm_directions`."""
