"""Indices into a table: which are refused, and which do not matter."""

import numpy as np
import pytest

from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import InputError
from deploy_rnn.serving.engine.feeds import Feeds
from deploy_rnn.serving.engine.signature import Signature

LENGTHS = Tensor("lengths", "int64", ("B",))


def signature(tokens: Tensor, *others: Tensor, lengths: str | int = "T") -> Signature:
    """Of a model whose `tokens` are indices into a table of 5 rows."""
    has_lengths = any(tensor.name == "lengths" for tensor in others)
    return Signature(
        inputs=(tokens, *others),
        outputs=(),
        lengths={"lengths": lengths} if has_lengths else {},
        states={},
        table_rows={"tokens": 5},
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
            f"`tokens` has {wrong} at [0, 2]; must be from 0 to 4: it is an index into a table of 5 rows."
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
