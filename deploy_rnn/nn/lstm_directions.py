"""`lstm_direction` and `lstm_directions`: oneDNN's kernel for one direction of an LSTM layer, or for both.

oneDNN shares each step among all threads, which then wait for one another, at every step of one direction after the
other. In compiled code, both directions run at the same time, each on a thread of its own, so that threads wait once a
layer; and a direction by itself is on one thread where a step is small. PyTorch has no such choice for a single
operator, so that these are ours, and their C++ text goes into compiled code. From Python, they are what PyTorch does.
"""

import torch
from torch import Tensor

from deploy_rnn.nn.torch_version import CPP_WRAPPER

LSTM_OF_ONEDNN = 2
"""Its number for the kernel."""

ONE_THREAD_MOST = 2**16
"""Multiplications of a step, B*4*H*H, up to which it is faster on one thread: one row of 128 units."""

IN_CPP = CPP_WRAPPER and torch.backends.openmp.is_available() and torch.backends.mkl.is_available()
"""Whether inductor calls the operators from C++; from Python, they cost more than they save."""


@torch.library.custom_op("deploy_rnn::lstm_direction", mutates_args=())
def lstm_direction(
    input: Tensor,
    weights: list[Tensor],
    states: list[Tensor],
    has_biases: bool,
    reverse: bool,
    hidden_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one direction of one layer; from the end if `reverse`.

    input (T, B, I), weights (4*H, I), (4*H, H), (4*H,), (4*H,), states h and c (1, B, H) -> output (T, B, H), h, c
    """
    return lstm_in_torch(input, weights, states, has_biases, reverse, hidden_size)


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
        *lstm_in_torch(inputs[0], weights[:4], states[:2], has_biases, False, hidden_size),
        *lstm_in_torch(inputs[1], weights[4:], states[2:], has_biases, reverse, hidden_size),
    )


def lstm_in_torch(
    input: Tensor,
    weights: list[Tensor],
    states: list[Tensor],
    has_biases: bool,
    reverse: bool,
    hidden_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `lstm_direction`, of PyTorch's operators alone."""
    output, h, c, _ = torch.ops.aten.mkldnn_rnn_layer.default(
        input, *weights, *states, reverse,
        batch_sizes=[], mode=LSTM_OF_ONEDNN, hidden_size=hidden_size, num_layers=1, has_biases=has_biases,
        bidirectional=False, batch_first=False, train=False,
    )  # fmt: skip
    return output, h, c


@lstm_direction.register_fake
def _(input: Tensor, _weights: object, states: list[Tensor], *others: int) -> tuple[Tensor, ...]:
    return _results(input, states, others[-1])


@lstm_directions.register_fake
def _(
    inputs: list[Tensor], _weights: object, states: list[Tensor], *others: int
) -> tuple[Tensor, ...]:
    size = others[-1]
    return *_results(inputs[0], states[:2], size), *_results(inputs[1], states[2:], size)


def _results(input: Tensor, states: list[Tensor], hidden_size: int) -> tuple[Tensor, ...]:
    """What a direction returns, as torch.compile sees it."""
    output = input.new_empty([input.size(0), input.size(1), hidden_size])
    return output, torch.empty_like(states[0]), torch.empty_like(states[1])


_SHIM = """
AOTITorchError aoti_torch_cpu_mkldnn_rnn_layer(
    AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle,
    AtenTensorHandle, int32_t, const int64_t*, int64_t, int64_t, int64_t, int64_t, int32_t, int32_t, int32_t, int32_t,
    AtenTensorHandle*, AtenTensorHandle*, AtenTensorHandle*, AtenTensorHandle*)"""

# OpenMP's and MKL's numbers of threads, and PyTorch's setting of gradients, belong to the thread that calls: nobody
# else's change. A thread that has just been started has PyTorch's defaults, and would keep what gradients need.
_ON_THREADS = """
inline AOTITorchError deploy_rnn_lstm_direction(
    AtenTensorHandle input, const AtenTensorHandle* weights, const AtenTensorHandle* states, int32_t has_biases,
    int32_t reverse, int64_t hidden_size, bool on_one_thread, AtenTensorHandle** results) {
  const bool gradients = aoti_torch_grad_mode_is_enabled();
  const int threads = omp_get_max_threads();
  int threads_of_mkl = 0;
  aoti_torch_grad_mode_set_enabled(false);
  if (on_one_thread) {
    omp_set_num_threads(1);
    threads_of_mkl = MKL_Set_Num_Threads_Local(1);
  }
  AtenTensorHandle workspace = nullptr;
  const AOTITorchError error = aoti_torch_cpu_mkldnn_rnn_layer(
      input, weights[0], weights[1], weights[2], weights[3], states[0], states[1], reverse,
      nullptr, 0, LSTM_OF_ONEDNN, hidden_size, 1, has_biases, 0, 0, 0, results[0], results[1], results[2], &workspace);
  if (on_one_thread) {
    omp_set_num_threads(threads);
    MKL_Set_Num_Threads_Local(threads_of_mkl);
  }
  aoti_torch_grad_mode_set_enabled(gradients);
  if (!error) aoti_torch_delete_tensor_object(workspace);
  return error;
}"""

_IS_SMALL = """
inline bool deploy_rnn_is_small_step(AtenTensorHandle input, int64_t hidden_size) {
  int64_t batch = 0;
  return !aoti_torch_get_size(input, 1, &batch) && batch * 4 * hidden_size * hidden_size <= ONE_THREAD_MOST;
}"""

_DIRECTION = """
inline AOTITorchError aoti_torch_cpu_lstm_direction(
    AtenTensorHandle input, const AtenTensorHandle* weights, int64_t, const AtenTensorHandle* states, int64_t,
    int32_t has_biases, int32_t reverse, int64_t hidden_size,
    AtenTensorHandle* output, AtenTensorHandle* h, AtenTensorHandle* c) {
  AtenTensorHandle* results[] = {output, h, c};
  return deploy_rnn_lstm_direction(
      input, weights, states, has_biases, reverse, hidden_size, deploy_rnn_is_small_step(input, hidden_size), results);
}"""

# With more threads than directions, a large step is shared among all of them.
_DIRECTIONS = """
inline AOTITorchError aoti_torch_cpu_lstm_directions(
    const AtenTensorHandle* inputs, int64_t, const AtenTensorHandle* weights, int64_t,
    const AtenTensorHandle* states, int64_t, int32_t has_biases, int32_t reverse, int64_t hidden_size,
    AtenTensorHandle* output, AtenTensorHandle* h, AtenTensorHandle* c,
    AtenTensorHandle* reverse_output, AtenTensorHandle* reverse_h, AtenTensorHandle* reverse_c) {
  AtenTensorHandle* results[] = {output, h, c, reverse_output, reverse_h, reverse_c};
  AOTITorchError errors[2];
  const int threads = omp_get_max_threads();
  const bool small = deploy_rnn_is_small_step(inputs[0], hidden_size);
  const bool together = threads == 2 || (threads > 2 && small);
#pragma omp parallel for num_threads(2) if (together)
  for (int number = 0; number < 2; ++number) {
    errors[number] = deploy_rnn_lstm_direction(
        inputs[number], weights + 4 * number, states + 2 * number, has_biases, number && reverse, hidden_size,
        together || small, results + 3 * number);
  }
  return errors[0] ? errors[0] : errors[1];
}"""

_DECLARATIONS = [
    _SHIM,
    "int omp_get_max_threads() noexcept",
    "void omp_set_num_threads(int) noexcept",
    "int MKL_Set_Num_Threads_Local(int)",
    _ON_THREADS.replace("LSTM_OF_ONEDNN", str(LSTM_OF_ONEDNN)),
    _IS_SMALL.replace("ONE_THREAD_MOST", str(ONE_THREAD_MOST)),
]


LSTM_OPERATORS_IN_CPP = {
    torch.ops.deploy_rnn.lstm_direction.default: [*_DECLARATIONS, _DIRECTION],
    torch.ops.deploy_rnn.lstm_directions.default: [_DIRECTIONS],
}
"""Declarations for inductor's C++ of each operator; it calls the last of them."""
