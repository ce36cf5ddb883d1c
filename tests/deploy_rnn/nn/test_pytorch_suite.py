"""PyTorch's own samples for RNN, GRU and LSTM, from its module database, run against ours."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import deploy_rnn

pytest.importorskip("expecttest", reason="torch.testing._internal needs it")
with pytest.MonkeyPatch.context() as patch:
    patch.setattr("sys.argv", ["pytest"])  # it reads the command line when it is imported
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

CLASSES = {
    "RNN": (nn.RNN, deploy_rnn.RNN),
    "GRU": (nn.GRU, deploy_rnn.GRU),
    "LSTM": (nn.LSTM, deploy_rnn.LSTM),
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)


def infos(name: str) -> list[Any]:
    return [info for info in module_db if info.module_cls is CLASSES[name][0]]


def samples(name: str, *, packed: bool) -> Iterator[Any]:
    for info in infos(name):
        make: Callable[..., Any] = info.module_inputs_func
        yield from make(
            info,
            device="cpu",
            dtype=torch.float64,
            requires_grad=True,
            training=True,
            with_packed_sequence=packed,
        )


def floats(tree: Any) -> list[torch.Tensor]:
    leaves = [
        leaf.data if isinstance(leaf, nn.utils.rnn.PackedSequence) else leaf
        for leaf in pytree.tree_leaves(tree)
    ]
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_every_sample(name: str, packed: bool) -> None:
    run = 0
    for sample in samples(name, packed=packed):
        options = sample.constructor_input
        call = sample.forward_input
        original, ours = (
            cls(*options.args, **options.kwargs, dtype=torch.float64) for cls in CLASSES[name]
        )
        ours.load_state_dict(original.state_dict())
        results = []
        for layer in (ours, original):
            outputs = floats(layer(*call.args, **call.kwargs))
            inputs = [leaf for leaf in floats((call.args, call.kwargs)) if leaf.requires_grad]
            wanted = [*inputs, *layer.parameters()]
            grads = torch.autograd.grad(sum(output.sin().sum() for output in outputs), wanted)
            results.append([*outputs, *grads])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
        run += 1
    assert run >= 8


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_sample(name: str) -> None:
    run = 0
    for info in infos(name):
        for sample in info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
        ):
            options = sample.module_error_input.constructor_input
            call = sample.module_error_input.forward_input
            messages = []
            for cls in CLASSES[name]:
                if sample.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
                    with pytest.raises(sample.error_type) as raised:
                        cls(*options.args, **options.kwargs)
                else:
                    layer = cls(*options.args, **options.kwargs)
                    with pytest.raises(sample.error_type) as raised:
                        layer(*call.args, **call.kwargs)
                messages.append(str(raised.value))
            assert messages[0] == messages[1]
            run += 1
    assert run >= 10
