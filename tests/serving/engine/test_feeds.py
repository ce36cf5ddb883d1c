"""Indices into a table: which are refused, and which do not matter."""

import numpy as np
import pytest

from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import InputError
from deploy_rnn.serving.engine.collate import collate
from deploy_rnn.serving.engine.feeds import Feeds
from deploy_rnn.serving.engine.probe import example
from deploy_rnn.serving.engine.signature import Signature
from deploy_rnn.tensor_spec import IndexRange

LENGTHS = Tensor("lengths", "int64", ("B",))
TABLE = IndexRange(0, 4)


def signature(
    tokens: Tensor,
    *others: Tensor,
    lengths: str | int = "T",
    limits: IndexRange = TABLE,
) -> Signature:
    """Of a model whose `tokens` are indices into a table."""
    has_lengths = any(tensor.name == "lengths" for tensor in others)
    return Signature(
        inputs=(tokens, *others),
        outputs=(),
        lengths={"lengths": lengths} if has_lengths else {},
        states={},
        index_ranges={"tokens": limits},
    )


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint64"])
def test_every_dtype(dtype: str) -> None:
    of = signature(Tensor("tokens", dtype, ("B", "T")))
    Feeds.of({"tokens": np.array([[0, 4]], dtype)}, of)
    limits = np.iinfo(dtype)
    for wrong in {5, limits.max, limits.min} - {0}:
        tokens = np.array([[0, 4, wrong]], dtype)
        with pytest.raises(InputError) as raised:
            Feeds.of({"tokens": tokens}, of)
        assert str(raised.value) == (
            f"`tokens` has {wrong} at [0, 2]; must be from 0 to 4: it is an index into a table."
        )


@pytest.mark.parametrize("axes", ["BT", "TB", "TFB"])
def test_padding_in_any_layout(axes: str) -> None:
    """A file keeps the layout of its graph, which need not be batch-first."""
    of = signature(Tensor("tokens", "int64", tuple(axes)), LENGTHS)
    tokens = np.ones([{"B": 2, "T": 4, "F": 3}[axis] for axis in axes], np.int64)
    by_axis = np.moveaxis(tokens, [axes.index("B"), axes.index("T")], [0, 1])
    by_axis[1, 2:] = -1
    inputs = {"tokens": tokens, "lengths": np.array([4, 2])}
    fed = Feeds.of(inputs, of).arrays["tokens"]
    np.testing.assert_array_equal(fed, np.where(tokens == -1, 0, tokens))
    assert fed.dtype == tokens.dtype
    by_axis[1, 1] = -1
    with pytest.raises(InputError, match="`tokens` has -1 at"):
        Feeds.of(inputs, of)


@pytest.mark.parametrize(("limits", "padding"), [((1, 5), 1), ((-5, -2), -2), ((-1, 3), 0)])
def test_indices_to_which_something_is_added(limits: tuple[int, int], padding: int) -> None:
    """They do not begin at 0, and steps that do not count are filled with one that is in the table."""
    of = signature(Tensor("tokens", "int64", ("B", "T"), 0, 1), LENGTHS, limits=IndexRange(*limits))
    tokens = np.array([[*limits, limits[1] + 1]])
    feeds = Feeds.of({"tokens": tokens, "lengths": np.array([2])}, of)
    np.testing.assert_array_equal(feeds.arrays["tokens"], [[*limits, padding]])
    padded = collate([feeds], of, 5)["tokens"]
    np.testing.assert_array_equal(padded, [[*limits, padding, padding, padding]])
    for wrong in (limits[0] - 1, limits[1] + 1):
        tokens[0, 0] = wrong
        with pytest.raises(
            InputError, match=rf"has {wrong} at \[0, 0\]; must be from {limits[0]} to"
        ):
            Feeds.of({"tokens": tokens, "lengths": np.array([2])}, of)
    tried = example(of, rows=4, steps=4).arrays["tokens"]
    assert limits[0] <= tried.min()
    assert tried.max() <= limits[1]


def test_what_the_lengths_are_not_of_has_no_padding() -> None:
    """One token a row; and steps of another axis than that of the lengths."""
    for shape in (("B",), ("B", "S")):
        of = signature(
            Tensor("tokens", "int64", shape), LENGTHS, Tensor("x", "float32", ("B", "T"))
        )
        tokens = np.full([2] * len(shape), -1)
        inputs = {"tokens": tokens, "lengths": np.array([1, 1]), "x": np.ones((2, 3), np.float32)}
        with pytest.raises(InputError, match="`tokens` has -1 at"):
            Feeds.of(inputs, of)
