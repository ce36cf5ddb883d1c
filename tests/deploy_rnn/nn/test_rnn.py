"""`deploy_rnn.RNN` against `torch.nn.RNN`: numbers, gradients, weights, errors."""

import copy
import itertools
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy_rnn import RNN
from deploy_rnn.nn import reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
}


def pair(*sizes: int, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.RNN, RNN]:
    """The original and ours, with the same weights."""
    original = nn.RNN(*sizes, dtype=dtype, **options)
    ours = RNN(*sizes, dtype=dtype, **options)
    ours.load_state_dict(original.state_dict())
    return original, ours


def inputs(layer: nn.RNN, batch: int, steps: int) -> tuple[Tensor, Tensor]:
    """A random input and h_0 for `layer`, in its layout and dtype."""
    dtype = layer.weight_ih_l0.dtype
    shape = (batch, steps) if layer.batch_first else (steps, batch)
    states = layer.num_layers * (2 if layer.bidirectional else 1)
    x = torch.randn(*shape, layer.input_size, dtype=dtype)
    return x, torch.randn(states, batch, layer.hidden_size, dtype=dtype)


def run(layer: nn.Module, x: Tensor, h0: Tensor | None) -> dict[str, Tensor]:
    """Outputs and all gradients of a loss that reads every output."""
    x = x.detach().clone().requires_grad_()
    h0 = None if h0 is None else h0.detach().clone().requires_grad_()
    layer.zero_grad()
    output, h_n = layer(x, h0)
    (output.square().sum() + h_n.sin().sum()).backward()
    gradients = {f"grad of {name}": weight.grad for name, weight in layer.named_parameters()}
    results = {"output": output, "h_n": h_n, "grad of input": x.grad, **gradients}
    return results if h0 is None else {**results, "grad of h0": h0.grad}


def assert_same(ours: dict[str, Tensor], original: dict[str, Tensor]) -> None:
    assert ours.keys() == original.keys()
    for name, value in original.items():
        torch.testing.assert_close(
            ours[name],
            value,
            **TOLERANCE[value.dtype],
            msg=lambda text, name=name: f"{name}: {text}",
        )


PAIRWISE = [
    ("tanh", True, False, True),
    ("tanh", False, True, False),
    ("relu", True, True, False),
    ("relu", False, False, True),
]
"""nonlinearity, bias, batch_first, with h_0: every two of them in every combination; all sixteen are run once below."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [1, 8, 63])
@pytest.mark.parametrize("steps", [1, 2, 7, 33])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_matches_torch_nn_rnn(
    bidirectional: bool, num_layers: int, batch: int, steps: int, hidden: int, dtype: torch.dtype
) -> None:
    for nonlinearity, bias, batch_first, with_h0 in PAIRWISE:
        original, ours = pair(
            3, hidden, num_layers, nonlinearity=nonlinearity, bias=bias, batch_first=batch_first,
            bidirectional=bidirectional, dtype=dtype,
        )  # fmt: skip
        x, h0 = inputs(original, batch, steps)
        h0 = h0 if with_h0 else None
        assert_same(run(ours, x, h0), run(original, x, h0))


def test_matches_torch_nn_rnn_with_every_option() -> None:
    flags = itertools.product([False, True], repeat=4)
    for (bidirectional, bias, batch_first, with_h0), nonlinearity in itertools.product(
        flags, ["tanh", "relu"]
    ):
        original, ours = pair(
            5,
            7,
            2,
            nonlinearity=nonlinearity,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
        )
        x, h0 = inputs(original, batch=3, steps=4)
        h0 = h0 if with_h0 else None
        assert_same(run(ours, x, h0), run(original, x, h0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_matches_torch_nn_rnn_on_each_device(
    bidirectional: bool, num_layers: int, device: str
) -> None:
    for nonlinearity, bias, batch_first, with_h0 in PAIRWISE:
        for hidden, steps, batch in [
            (1, 1, 2),
            (63, 33, 5),
            (384, 7, 3),
            (385, 7, 3),
        ]:  # cuDNN changes kernels at 384
            original, ours = pair(
                3, hidden, num_layers, nonlinearity=nonlinearity, bias=bias, batch_first=batch_first,
                bidirectional=bidirectional,
            )  # fmt: skip
            original, ours = original.to(device), ours.to(device)
            x, h0 = (tensor.to(device) for tensor in inputs(original, batch, steps))
            h0 = h0 if with_h0 else None
            assert_same(run(ours, x, h0), run(original, x, h0))


def test_the_case_that_started_it_all() -> None:
    original, ours = pair(10, 12, 2, bidirectional=True, bias=False)
    x, h0 = inputs(original, batch=2, steps=2)
    assert_same(run(ours, x, None), run(original, x, None))
    assert_same(run(ours, x, h0), run(original, x, h0))


def test_the_reference_matches_torch_nn_rnn() -> None:
    for bidirectional, num_layers, bias, nonlinearity in itertools.product(
        [False, True], [1, 2, 3], [False, True], ["tanh", "relu"]
    ):
        original = nn.RNN(
            5, 8, num_layers, nonlinearity, bias, bidirectional=bidirectional, dtype=torch.float64
        )
        x, h0 = inputs(original, batch=3, steps=7)
        actual = reference.rnn(
            x, h0, original.state_dict(),
            num_layers=num_layers, nonlinearity=nonlinearity, bidirectional=bidirectional,
        )  # fmt: skip
        torch.testing.assert_close(actual, original(x, h0), rtol=1e-10, atol=1e-12)


def test_stepping_through_all_layers_at_each_time_step_is_wrong() -> None:
    """The classic mistake: at step t, run layer 0 in both directions, feed that to layer 1, then go on to step t+1."""
    original = nn.RNN(4, 6, 2, bidirectional=True, dtype=torch.float64)
    x, h0 = inputs(original, batch=2, steps=5)
    weights = original.state_dict()
    h = list(h0)
    outputs = []
    for step in x:
        for layer, (direction, suffix) in itertools.product([0, 1], enumerate(["", "_reverse"])):
            below = step if layer == 0 else torch.cat(h[:2], -1)
            name = f"_l{layer}{suffix}"
            row = 2 * layer + direction
            gates = below @ weights[f"weight_ih{name}"].T + weights[f"bias_ih{name}"]
            h[row] = torch.tanh(
                gates + h[row] @ weights[f"weight_hh{name}"].T + weights[f"bias_hh{name}"]
            )
        outputs.append(torch.cat(h[2:], -1))
    wrong = torch.stack(outputs)
    right, _ = original(x, h0)
    assert wrong.shape == right.shape
    assert (wrong - right).abs().max() > 0.1
    # With one direction there is no reverse state to wait for, and the forward half of layer 0 is indeed right.
    torch.testing.assert_close(RNN.from_torch(original)(x, h0)[0], right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_unbatched_input(bidirectional: bool) -> None:
    for batch_first in (False, True):  # ignored without a batch axis
        original, ours = pair(3, 5, 2, bidirectional=bidirectional, batch_first=batch_first)
        x, h0 = torch.randn(7, 3), torch.randn(4 if bidirectional else 2, 5)
        assert_same(run(ours, x, None), run(original, x, None))
        assert_same(run(ours, x, h0), run(original, x, h0))


def test_non_contiguous_and_expanded_input() -> None:
    original, ours = pair(3, 5, 2, bidirectional=True)
    x, h0 = torch.randn(3, 4, 7).permute(2, 1, 0), torch.randn(4, 1, 5).expand(4, 4, 5)
    assert not x.is_contiguous()
    torch.testing.assert_close(ours(x, h0), original(x, h0))
    expanded = torch.randn(7, 1, 3).expand(7, 4, 3)
    torch.testing.assert_close(ours(expanded), original(expanded))


def test_zero_batch() -> None:
    original, ours = pair(3, 5, 2, bidirectional=True)
    for actual, expected in zip(
        ours(torch.zeros(4, 0, 3)), original(torch.zeros(4, 0, 3)), strict=True
    ):
        assert actual.shape == expected.shape


def test_one_seed_gives_the_same_weights_and_names() -> None:
    torch.manual_seed(3)
    original = nn.RNN(3, 5, 2, bidirectional=True).state_dict()
    torch.manual_seed(3)
    ours = RNN(3, 5, 2, bidirectional=True).state_dict()
    assert list(ours) == list(original)
    for name, weight in original.items():
        assert torch.equal(ours[name], weight), name


def test_state_dict_is_interchangeable_both_ways() -> None:
    original, ours = nn.RNN(3, 5, 2, bidirectional=True), RNN(3, 5, 2, bidirectional=True)
    x = torch.randn(4, 2, 3)
    ours.load_state_dict(original.state_dict())
    torch.testing.assert_close(ours(x), original(x))
    nn.init.normal_(ours.weight_hh_l1_reverse)
    original.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), original(x))


def test_dropout_between_layers_in_training_only() -> None:
    original, ours = pair(3, 5, 3, bidirectional=True, dropout=0.4)
    x = torch.randn(6, 4, 3)
    torch.manual_seed(7)
    expected = original.train()(x)
    torch.manual_seed(7)
    actual = ours.train()(x)
    torch.testing.assert_close(actual, expected)  # the same elements are dropped
    assert not torch.allclose(ours(x)[0], actual[0])  # and others the next time
    torch.testing.assert_close(ours.eval()(x), original.eval()(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("bidirectional", [False, True])
def test_scripts(bidirectional: bool, tmp_path: Any) -> None:
    for nonlinearity, bias, batch_first in itertools.product(
        ["tanh", "relu"], [False, True], [False, True]
    ):
        original, ours = pair(
            3,
            5,
            2,
            nonlinearity=nonlinearity,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
        )
        scripted = torch.jit.script(ours)
        assert list(scripted.state_dict()) == list(original.state_dict())
        scripted.save(tmp_path / "scripted.pt")
        loaded = torch.jit.load(tmp_path / "scripted.pt")
        for steps, batch in [(7, 2), (1, 1), (4, 3)]:
            x, h0 = inputs(original, batch, steps)
            for layer in (scripted, loaded):
                torch.testing.assert_close(layer(x), original(x))
                torch.testing.assert_close(layer(x, h0), original(x, h0))
        x = torch.randn(7, 3)
        torch.testing.assert_close(scripted(x), original(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_scripted_layer_trains_and_keeps_its_errors() -> None:
    original, ours = pair(3, 5, 2, bidirectional=True)
    x, h0 = inputs(original, batch=2, steps=4)
    scripted = torch.jit.script(ours)
    assert_same(run(scripted, x, h0), run(original, x, h0))
    with pytest.raises(torch.jit.Error, match="Expected 3, got 4"):
        scripted(torch.randn(4, 2, 4))


def test_copies_and_pickles() -> None:
    layer = RNN(3, 5, 2, "relu", bidirectional=True)
    x = torch.randn(4, 2, 3)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x)[0], layer(x)[0])
        assert copied.weight_ih_l0 is not layer.weight_ih_l0


def test_functional_call_uses_the_weights_it_is_given() -> None:
    original, ours = pair(3, 5, 2)
    new_weights = {name: torch.randn_like(weight) for name, weight in original.state_dict().items()}
    x = torch.randn(4, 2, 3)
    original.load_state_dict(new_weights)
    torch.testing.assert_close(torch.func.functional_call(ours, new_weights, (x,)), original(x))


def test_repr_is_that_of_torch() -> None:
    for options in [
        {},
        {
            "num_layers": 2,
            "bias": False,
            "batch_first": True,
            "dropout": 0.5,
            "bidirectional": True,
        },
    ]:
        assert repr(RNN(3, 5, **options)) == repr(nn.RNN(3, 5, **options))


def error(make: Any) -> tuple[type[Exception], str]:
    """What `make` raises."""
    with pytest.raises(Exception) as raised:  # noqa: PT011  the type is the result
        make()
    return raised.type, str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"nonlinearity": "sigmoid"}, {"dropout": 1.5}, {"dropout": True}, {"dropout": "x"}, {"bias": 1},
        {"batch_first": 0}, {"input_size": 0}, {"input_size": 2.0}, {"hidden_size": -1}, {"hidden_size": "5"},
        {"num_layers": 0},
    ],
    ids=str,
)  # fmt: skip
def test_constructor_errors_are_those_of_torch(arguments: dict[str, Any]) -> None:
    options = {"input_size": 3, "hidden_size": 5, **arguments}
    if arguments == {
        "dropout": "x"
    }:  # torch 2.13 fails in float() before its own check; ours is its check
        assert error(lambda: RNN(**options))[0] is ValueError
    else:
        assert error(lambda: RNN(**options)) == error(lambda: nn.RNN(**options))


def test_dropout_with_one_layer_warns_as_torch_does() -> None:
    messages = []
    for layer in (RNN, nn.RNN):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer(3, 5, dropout=0.5)
        messages.append([str(warning.message) for warning in caught])
    assert caught[0].category is UserWarning
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("x", "h0"),
    [
        (torch.zeros(5), None),
        (torch.zeros(4, 2, 3, 1), None),
        (torch.zeros(4, 2, 4), None),
        (torch.zeros(4, 4), None),
        (torch.zeros(0, 2, 3), None),
        (torch.zeros(0, 3), None),
        (torch.zeros(4, 2, 3, dtype=torch.float64), None),
        (torch.zeros(4, 2, 3), torch.zeros(2, 3, 5)),
        (torch.zeros(4, 2, 3), torch.zeros(1, 2, 5)),
        (torch.zeros(4, 2, 3), torch.zeros(2, 2, 4)),
        (torch.zeros(4, 2, 3), torch.zeros(2, 5)),
        (torch.zeros(4, 3), torch.zeros(2, 1, 5)),
        (torch.zeros(4, 3), torch.zeros(2, 4)),
    ],
    ids=lambda value: "none" if value is None else "x".join(map(str, value.shape)),
)
def test_forward_errors_are_those_of_torch(x: Tensor, h0: Tensor | None) -> None:
    for batch_first in (False, True):
        original, ours = pair(3, 5, 2, batch_first=batch_first)
        if batch_first and x.shape == (0, 2, 3):
            continue  # a batch of 0 is not an error
        assert error(lambda ours=ours: ours(x, h0)) == error(
            lambda original=original: original(x, h0)
        )
