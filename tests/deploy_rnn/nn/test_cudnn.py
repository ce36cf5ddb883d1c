"""On a GPU: ours, and torch.nn with cuDNN, against float64.

cuDNN computes tanh and sigmoid approximately: in float32, without TensorFloat-32, its outputs are 1e-5 from float64,
those of ours and of PyTorch's own kernels 2e-7.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import deploy_rnn

pytestmark = pytest.mark.cuda

ROUNDING = 1e-6
"""The largest difference from float64 that float32 explains, for outputs between -1 and 1."""
APPROXIMATE = 1e-4
"""The same for cuDNN."""


@pytest.fixture(autouse=True)
def cudnn_in_float32() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("family", [nn.RNN, nn.GRU, nn.LSTM])
def test_ours_is_exact_where_cudnn_is_not(
    family: type[nn.RNNBase], num_layers: int, bidirectional: bool
) -> None:
    for hidden in (3, 63, 384, 385):  # cuDNN changes kernels at 384
        layer = family(5, hidden, num_layers, bidirectional=bidirectional).cuda()
        x = torch.randn(33, 4, 5, device="cuda")
        exact = output_of(copy.deepcopy(layer).double().cpu(), x.double().cpu())
        assert furthest(output_of(deploy_rnn.convert(layer), x), exact) < ROUNDING
        assert furthest(output_of(layer, x), exact) < APPROXIMATE


def output_of(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = layer(x)[0]
    return output


def furthest(output: Tensor, exact: Tensor) -> float:
    return float((output.double().cpu() - exact).abs().max())
