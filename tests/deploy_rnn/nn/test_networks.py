"""`RNN`, `GRU` and `LSTM` against torch.nn: every option, lengths, packed sequences, dtypes, gradients of gradients.

`test_rnn.py` has what is the same for all of them (weights, errors, copies), shown on the RNN.
"""

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

from deploy_rnn import GRU, LSTM, RNN
from deploy_rnn.nn.recurrent import Recurrent

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)

FAMILIES: dict[str, tuple[type[nn.RNNBase], type[Recurrent], dict[str, Any]]] = {
    "tanh": (nn.RNN, RNN, {}),
    "relu": (nn.RNN, RNN, {"nonlinearity": "relu"}),
    "gru": (nn.GRU, GRU, {}),
    "lstm": (nn.LSTM, LSTM, {}),
    "lstm with projection": (nn.LSTM, LSTM, {"proj_size": 2}),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float64: {"rtol": 1e-9, "atol": 1e-11},
}


def pair(
    family: str, *sizes: int, device: str = "cpu", **options: Any
) -> tuple[nn.RNNBase, Recurrent]:
    """The original and ours, with the same weights."""
    torch_cls, cls, extra = FAMILIES[family]
    original = torch_cls(*sizes, **extra, **options, device=device)
    ours = cls(*sizes, **extra, **options, device=device)
    ours.load_state_dict(original.state_dict())
    return original, ours


def start(layer: nn.RNNBase, batch: int) -> Any:
    """Random initial states in the layer's layout, dtype and device."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    weight = layer.weight_ih_l0
    h = torch.randn(
        rows, batch, layer.proj_size or layer.hidden_size, dtype=weight.dtype, device=weight.device
    )
    return (
        (h, torch.randn(rows, batch, layer.hidden_size).to(h)) if isinstance(layer, nn.LSTM) else h
    )


def tensors(tree: Any) -> list[Tensor]:
    leaves = [
        leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf in pytree.tree_leaves(tree)
    ]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def run(layer: nn.Module, *args: Any) -> list[Tensor]:
    """Outputs, and all gradients of a loss that reads every output."""
    inputs, rebuild = pytree.tree_flatten(args)
    inputs = [
        leaf.detach().clone().requires_grad_()
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
        else leaf
        for leaf in inputs
    ]
    layer.zero_grad()
    outputs = tensors(layer(*pytree.tree_unflatten(inputs, rebuild)))
    sum((output.sin() * (number + 1)).sum() for number, output in enumerate(outputs)).backward()
    grads = [leaf.grad for leaf in inputs if isinstance(leaf, Tensor) and leaf.requires_grad]
    return [*outputs, *grads, *(weight.grad for weight in layer.parameters())]


def padded(layer: nn.Module, lengths: Tensor, x: Tensor, *states: Any) -> Any:
    """What torch.nn makes of rows of different length: pack, run, pad."""
    batch_first = layer.batch_first
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=batch_first, enforce_sorted=False)
    output, finals = layer(packed, *states)
    steps = x.size(1 if batch_first else 0)
    return pad_packed_sequence(output, batch_first=batch_first, total_length=steps)[0], finals


class Padded(nn.Module):
    """`padded` as a module, called as ours is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, states: Any, lengths: Tensor) -> Any:
        return padded(self.layer, lengths, x, states)


def assert_same(actual_tensors: list[Tensor], expected_tensors: list[Tensor]) -> None:
    assert len(actual_tensors) == len(expected_tensors)
    for actual, expected in zip(actual_tensors, expected_tensors, strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE[expected.dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_matches_torch_nn(family: str, num_layers: int, bidirectional: bool, device: str) -> None:
    """Output, final states and all gradients, for every option."""
    sizes = itertools.cycle([(1, 1, 3), (2, 7, 8), (5, 2, 63), (3, 33, 3)])
    for bias, batch_first, with_states, with_lengths in itertools.product([False, True], repeat=4):
        batch, steps, hidden = next(sizes)
        for dtype in (torch.float32, torch.float64):
            original, ours = pair(
                family, 3, hidden, num_layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional,
                dtype=dtype, device=device,
            )  # fmt: skip
            x = torch.randn(
                *((batch, steps) if batch_first else (steps, batch)), 3, dtype=dtype, device=device
            )
            states = start(original, batch) if with_states else None
            if with_lengths:
                lengths = torch.randint(1, steps + 1, (batch,), device=device)
                assert_same(
                    run(ours, x, states, lengths), run(Padded(original), x, states, lengths)
                )
            else:
                assert_same(run(ours, x, states), run(original, x, states))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_matches_torch_nn_for_any_shape(data: st.DataObject) -> None:
    steps, batch, size, hidden = (
        data.draw(st.integers(1, 9), label) for label in ("T", "B", "I", "H")
    )
    family = data.draw(
        st.sampled_from([name for name in FAMILIES if hidden > 2 or "projection" not in name])
    )
    lengths = data.draw(st.none() | st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
    layers, bidirectional = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    original, ours = pair(
        family, size, hidden, layers, bidirectional=bidirectional, dtype=torch.float64
    )
    x, states = torch.randn(steps, batch, size, dtype=torch.float64), start(original, batch)
    if lengths is None:
        assert_same(run(ours, x, states), run(original, x, states))
    else:
        row_lengths = torch.tensor(lengths)
        assert_same(
            run(ours, x, states, row_lengths), run(Padded(original), x, states, row_lengths)
        )


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences(family: str, bidirectional: bool) -> None:
    """Sorted by the caller or not; rows, their order and their bookkeeping come back as they went in."""
    original, ours = pair(family, 3, 7, 2, bidirectional=bidirectional, dtype=torch.float64)
    x, states = torch.randn(6, 4, 3, dtype=torch.float64), start(original, 4)
    for lengths, enforce_sorted in [
        ([6, 4, 4, 1], True),
        ([6, 4, 4, 1], False),
        ([2, 5, 1, 5], False),
    ]:
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)
        for start_states in (None, states):
            assert_same(run(ours, packed, start_states), run(original, packed, start_states))
        actual, expected = ours(packed)[0], original(packed)[0]
        assert isinstance(actual, PackedSequence)
        assert torch.equal(actual.batch_sizes, expected.batch_sizes)
        for name in ("sorted_indices", "unsorted_indices"):
            indices = getattr(expected, name)
            if indices is None:
                assert getattr(actual, name) is None
            else:
                assert torch.equal(getattr(actual, name), indices)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences_that_do_not_fit_are_refused_as_torch_does(family: str) -> None:
    original, ours = pair(family, 3, 7, 2)
    packed = pack_padded_sequence(torch.randn(4, 2, 4), torch.tensor([4, 2]))
    right = pack_padded_sequence(torch.randn(4, 2, 3), torch.tensor([4, 2]))
    wide = pack_padded_sequence(torch.randn(4, 2, 3, dtype=torch.float64), torch.tensor([4, 2]))
    for args in [(packed,), (wide,), (right, start(original, 3))]:
        errors = []
        for layer in (ours, original):
            with pytest.raises((RuntimeError, ValueError)) as raised:
                layer(*args)
            errors.append((raised.type, str(raised.value)))
        if isinstance(
            ours, LSTM
        ):  # torch's does not look at a packed input, and fails somewhere inside
            assert "xpected" in errors[0][1] or "does not match weight dtype" in errors[0][1]
        else:
            assert errors[0] == errors[1]
    with pytest.raises(
        ValueError, match="a PackedSequence has its own lengths; leave out `lengths`"
    ):
        ours(right, None, torch.tensor([4, 2]))


def test_lengths_that_do_not_fit_are_refused() -> None:
    layer, x = GRU(3, 4), torch.randn(5, 2, 3)
    for lengths, message in [
        (torch.tensor([5]), r"`lengths` has shape \[1\]; give one length for each of the 2 rows"),
        (torch.tensor([5.0, 1.0]), r"`lengths` is torch.float32; give whole numbers"),
        (torch.tensor([0, 5]), r"`lengths` goes from 0 to 5; every length must be in 1..5"),
        (torch.tensor([1, 6]), r"`lengths` goes from 1 to 6; every length must be in 1..5"),
    ]:
        with pytest.raises(ValueError, match=message):
            layer(x, None, lengths)
    with pytest.raises(ValueError, match="`lengths` needs a batch"):
        layer(x[:, 0], None, torch.tensor([5]))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_lies_beyond_a_row_does_not_matter(family: str) -> None:
    _, ours = pair(family, 3, 7, 2, bidirectional=True)
    x, lengths = torch.randn(6, 3, 3), torch.tensor([2, 6, 4])
    spoilt = x.clone()
    for row, length in enumerate(lengths):
        spoilt[length:, row] = float("nan")
    spoilt_outputs = tensors(ours(spoilt, None, lengths))
    outputs = tensors(ours(x, None, lengths))
    for spoilt_output, output in zip(spoilt_outputs, outputs, strict=True):
        assert torch.equal(spoilt_output, output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    original, ours = pair(family, 3, 16, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(5, 2, 3, dtype=dtype)
    for actual, expected in zip(tensors(ours(x)), tensors(original(x)), strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def in_autocast(original: Any, *args: Any) -> list[Tensor]:
    """What torch gives; where oneDNN has no LSTM in bfloat16 for the processor, its float32 results in that dtype."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            return tensors(original(*args))
    except RuntimeError as error:
        if "could not create a primitive descriptor for the LSTM" not in str(error):
            raise
        return [output.bfloat16() for output in tensors(original(*args))]


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_gives_the_dtypes_of_torch(family: str) -> None:
    original, ours = pair(family, 3, 16, 2, bidirectional=True)
    x, states = torch.randn(5, 2, 3), start(original, 2)
    for args in [(x,), (x, states)]:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = tensors(ours(*args))
        for actual, expected in zip(outputs, in_autocast(original, *args), strict=True):
            if "projection" not in family:  # there torch returns h and c in different dtypes
                assert actual.dtype == expected.dtype
            torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_gradients(family: str) -> None:
    _, ours = pair(family, 2, 3, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.mul_(0.5)  # away from the kink of relu
    assert torch.autograd.gradcheck(lambda x: tuple(tensors(ours(x))), (x,))
    if family != "relu":
        assert torch.autograd.gradgradcheck(lambda x: tuple(tensors(ours(x))), (x,))


@pytest.mark.parametrize("family", FAMILIES)
def test_vmap_over_inputs_and_over_weights(family: str) -> None:
    """Each gives what the layer gives one by one; torch.nn's layers refuse both."""
    original, ours = pair(family, 3, 4, 2, bidirectional=True)
    several = torch.randn(5, 6, 2, 3)
    expected = torch.stack([original(x)[0] for x in several])
    torch.testing.assert_close(torch.func.vmap(lambda x: ours(x)[0])(several), expected)
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.func.vmap(lambda x: original(x)[0])(several)

    ensemble = {name: torch.stack([w, 0.5 * w]) for name, w in ours.named_parameters()}

    def call(weights: dict[str, Tensor]) -> Tensor:
        output: Tensor = torch.func.functional_call(ours, weights, (several[0],))[0]
        return output

    one_by_one = [call({name: w[i] for name, w in ensemble.items()}) for i in range(2)]
    torch.testing.assert_close(torch.func.vmap(call)(ensemble), torch.stack(one_by_one))


# PyTorch's own forward mode uses torch.jit.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_mode_gradients(family: str) -> None:
    """`jvp` gives what the reverse mode gives. (nn.LSTM refuses it in float32 on a CPU, or crashes: not tried here.)"""
    original, ours = pair(family, 3, 4, 2, bidirectional=True, dtype=torch.float64)
    x, tangent = torch.randn(2, 6, 2, 3, dtype=torch.float64)
    weights = torch.randn_like(original(x)[0])

    def score(layer: Any, x: Tensor) -> Tensor:
        result: Tensor = (layer(x)[0] * weights).sum()
        return result

    _, derivative = torch.func.jvp(lambda x: score(ours, x), (x,), (tangent,))
    expected = (torch.func.grad(lambda x: score(original, x))(x) * tangent).sum()
    torch.testing.assert_close(derivative, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_scripts(family: str, tmp_path: Any) -> None:
    for bias, batch_first, bidirectional in itertools.product([False, True], repeat=3):
        original, ours = pair(
            family, 3, 5, 2, bias=bias, batch_first=batch_first, bidirectional=bidirectional
        )
        torch.jit.script(ours).save(tmp_path / "layer.pt")
        loaded = torch.jit.load(tmp_path / "layer.pt")
        assert list(loaded.state_dict()) == list(original.state_dict())
        for batch, steps in [(2, 7), (1, 1)]:
            x = torch.randn(*((batch, steps) if batch_first else (steps, batch)), 3)
            states, lengths = start(original, batch), torch.randint(1, steps + 1, (batch,))
            torch.testing.assert_close(loaded(x), original(x))
            torch.testing.assert_close(loaded(x, states), original(x, states))
            torch.testing.assert_close(
                loaded(x, states, lengths), padded(original, lengths, x, states)
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_module_that_it_replaces(family: str) -> None:
    """Names, order and seed of the weights, the repr, `all_weights`, copies, pickles, functional calls, tying."""
    torch_cls, cls, extra = FAMILIES[family]
    options = {"num_layers": 2, "bidirectional": True, **extra}
    torch.manual_seed(5)
    original = torch_cls(3, 5, **options)
    torch.manual_seed(5)
    ours = cls(3, 5, **options)
    assert repr(ours) == repr(original)
    assert list(ours.state_dict()) == list(original.state_dict())
    for our_weights, weights in zip(ours.all_weights, original.all_weights, strict=True):
        for our_weight, weight in zip(our_weights, weights, strict=True):
            assert torch.equal(our_weight, weight)
    for name in ("mode", "proj_size", "input_size", "hidden_size", "bias", "dropout"):
        assert getattr(ours, name) == getattr(original, name)
    ours.flatten_parameters()
    x = torch.randn(4, 2, 3)
    expected = tensors(original(x))
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), ours.double().float()):
        assert_same(tensors(copied(x)), expected)
    new_weights = {name: torch.randn_like(weight) for name, weight in original.state_dict().items()}
    actual = torch.func.functional_call(ours, new_weights, (x,))
    original.load_state_dict(new_weights)
    assert_same(tensors(actual), tensors(original(x)))
    tied = cls(3, 5, **options)
    tied.weight_hh_l1 = tied.weight_hh_l0
    run(tied, x)
    both = tied.weight_hh_l0.grad.clone()
    assert len(list(tied.parameters())) == len(list(ours.parameters())) - 1
    assert both.abs().max() > 0


@pytest.mark.parametrize("family", ["gru", "lstm"])
def test_states_that_do_not_fit_are_refused_as_torch_does(family: str) -> None:
    original, ours = pair(family, 3, 5, 2)
    bad: list[tuple[Tensor, list[int]]] = [
        (torch.zeros(4, 2, 3), [2, 3, 5]), (torch.zeros(4, 2, 3), [1, 2, 5]), (torch.zeros(4, 2, 3), [2, 2, 4]),
        (torch.zeros(4, 2, 3), [2, 5]), (torch.zeros(4, 3), [2, 1, 5]), (torch.zeros(4, 3), [2, 4]),
        (torch.zeros(5), [2, 5]), (torch.zeros(4, 2, 3, 1), [2, 2, 5]), (torch.zeros(4, 2, 4), [2, 2, 5]),
        (torch.zeros(0, 2, 3), [2, 2, 5]),
    ]  # fmt: skip
    for x, shape in bad:
        for wrong in (0, 1) if family == "lstm" else (0,):
            right = [2, 2, 5] if x.dim() != 2 else [2, 5]
            pairs = [torch.zeros(shape if number == wrong else right) for number in range(2)]
            states = tuple(pairs) if family == "lstm" else torch.zeros(shape)
            errors = []
            for layer in (ours, original):
                with pytest.raises((RuntimeError, ValueError)) as raised:
                    layer(x, states)
                errors.append((raised.type, str(raised.value)))
            assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "options", [{"proj_size": -1}, {"proj_size": 5}, {"hidden_size": 0}, {"num_layers": 0}]
)
def test_constructor_errors_of_the_lstm_are_those_of_torch(options: dict[str, int]) -> None:
    errors = []
    for cls in (LSTM, nn.LSTM):
        with pytest.raises(ValueError) as raised:  # noqa: PT011  the text is compared
            cls(**{"input_size": 3, "hidden_size": 5, **options})
        errors.append(str(raised.value))
    assert errors[0] == errors[1]
