"""Rows and answers in .npz."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_rnn.bundle import Tensor
from deploy_rnn.errors import InputError
from deploy_rnn.serving import score
from deploy_rnn.serving.scoring import npz
from deploy_rnn.serving.scoring.answers import Answer
from deploy_rnn.serving.scoring.npz import Npz, NpzAnswers
from deploy_rnn.serving.scoring.rows import Span

Rows = list[dict[str, Any]]


def ragged(rows: Rows) -> dict[str, np.ndarray]:
    tokens = [np.array(row["tokens"], np.int32) for row in rows]
    return {
        "tokens": np.concatenate(tokens),
        "tokens.offsets": np.cumsum([0, *map(len, tokens)]),
        "weight": np.array([row["weight"] for row in rows]),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_any_length_lie_end_to_end(
    save: Callable[..., None],
    bundle: Path,
    rows: Rows,
    answer: Callable[[Any], dict[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    arrays = ragged(rows)
    arrays["tokens"][0] = 99  # the first row is bad
    save(tmp_path / "rows.npz", **arrays)
    report = score(bundle, tmp_path / "rows.npz", tmp_path / "answers.npz", window=30, processes=1)
    assert (report.rows, report.failed) == (100, 1)
    with np.load(tmp_path / "answers.npz") as file:
        answers = dict(file)
    assert answers["answered"].tolist() == [False, *[True] * 99]
    assert answers["sentence"].shape == (100, 3)
    assert not answers["sentence"][0].any()
    offsets = answers["marks.offsets"]
    assert offsets[1] == 0
    for index, row in enumerate(rows[1:], 1):
        expected = answer(row)
        marks = answers["marks"][offsets[index] : offsets[index + 1]]
        np.testing.assert_allclose(marks, expected["marks"], atol=1e-5)
        np.testing.assert_allclose(answers["sentence"][index], expected["sentence"], atol=1e-5)


def test_rows_of_one_length_are_an_array(bundle: Path, tmp_path: Path) -> None:
    """In Fortran's order of memory, too."""
    tokens = np.asfortranarray(np.arange(20).reshape(4, 5))
    np.savez(tmp_path / "rows.npz", tokens=tokens, weight=np.ones(4), lengths=[5, 4, 3, 2])
    score(bundle, tmp_path / "rows.npz", tmp_path / "1.npz", window=3, processes=1)
    lines = tmp_path / "rows.jsonl"
    text = ""
    for row, length in zip(tokens.tolist(), [5, 4, 3, 2], strict=True):
        text += f'{{"tokens": {row}, "weight": 1, "lengths": {length}}}\n'
    lines.write_text(text, encoding="utf-8")
    score(bundle, lines, tmp_path / "2.npz", window=3, processes=1)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_an_empty_file_has_empty_arrays(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", tokens=np.zeros((0, 5), np.int64), weight=np.zeros(0))
    score(bundle, tmp_path / "rows.npz", tmp_path / "answers.npz")
    with np.load(tmp_path / "answers.npz") as answers:
        shapes = {name: answers[name].shape for name in answers}
    assert shapes == {"answered": (0,), "marks": (0, 2), "marks.offsets": (1,), "sentence": (0, 3)}


def test_outputs_whose_shape_only_they_tell_have_it_written_down(tmp_path: Path) -> None:
    form = NpzAnswers([Tensor("y", "float32", ("N", "M"))])
    first = np.arange(6, dtype=np.float32).reshape(2, 3)
    second = np.ones((1, 4), np.float32)
    for number, array in enumerate((first, second)):
        (tmp_path / f"{number}.npz").write_bytes(form.encode([Answer({"y": array}), Answer(None)]))
    form.join([tmp_path / "0.npz", tmp_path / "1.npz"], tmp_path / "y.npz")
    # Written as inputs are read.
    source = Npz(tmp_path / "y.npz")
    (span,) = source.spans(10, {})
    rows = source.reader.rows(span, source.fetch(span))
    source.close()
    shapes = [row.values["y"].shape for row in rows]
    assert shapes == [(2, 3), (0, 0), (1, 4), (0, 0)]
    np.testing.assert_array_equal(rows[0].values["y"], first)
    assert [bool(row.values["answered"]) for row in rows] == [True, False, True, False]


def test_an_output_of_another_shape_than_the_graphs_is_refused() -> None:
    form = NpzAnswers([Tensor("y", "float32", ("T", 2))])
    assert form.refusal({"y": np.zeros((3, 2))}) is None
    reason = "output `y` has shape [3], the graph declares y: float32 [T, 2]."
    assert form.refusal({"y": np.zeros(3)}) == reason


def test_a_window_has_fewer_rows_if_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "WINDOW_BYTES", 100)
    np.savez(tmp_path / "x.npz", **{"x": np.zeros(60), "x.offsets": [0, 30, 31, 32, 60]})
    source = Npz(tmp_path / "x.npz")
    assert [(span.first, span.rows) for span in source.spans(10, {})] == [(0, 1), (1, 2), (3, 1)]
    assert [(span.first, span.rows) for span in source.spans(10, {1: 2})] == [(0, 1), (3, 1)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 2)), "y": np.zeros(2)}, "has different numbers of rows: 3 of `x`, 2 of `y`. Rows of"),
        ({"x": np.array(1.0)}, "`x` in "),
        ({"x": np.zeros(3), "x.offsets": [0, 2]}, "`x.offsets` must be whole numbers that rise from 0 to 3, the size"),
        ({"x": np.zeros(3), "x.offsets": [0, 2, 1, 3]}, "`x.offsets` must be whole numbers that rise from 0 to 3"),
        ({"x": np.zeros(3), "x.offsets": [0, 3], "x.shapes": [[2, 2]]}, "`x.shapes` must be the shape of each row"),
        ({"x": np.zeros(6), "x.offsets": [0, 6], "x.shapes": [[-2, -3]]}, "`x.shapes` must be the shape of each row"),
        ({"x": np.zeros(0), "x.offsets": [0, 0], "x.shapes": [[2**32, 2**32]]}, "`x.shapes` must be the shape of each"),
        ({"x": np.zeros(3), "x.shapes": [[3]]}, "`x.shapes` must be the shape of each row"),
        ({"x": np.array([[1], [1, 2]], object)}, "holds Python objects, which are not read: put the rows end to end"),
        ({}, "has no arrays."),
    ],
)  # fmt: skip
def test_what_is_not_rows_is_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(InputError) as raised:
        Npz(tmp_path / "rows.npz")
    assert message in str(raised.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.npz").write_text("no", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"rows\.npz' is not an \.npz file: File is not a zip file"
    ):
        Npz(tmp_path / "rows.npz")


def _array(shape: str, size: int) -> bytes:
    """A .npy file of `size` zeros of one byte, whose header says what it likes."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(size)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (_array("(3, 2)", 5), "'x.npy' has 5 bytes of values; its shape [3, 2] needs 6."),
        (_array("(3, 2)", 7), "'x.npy' has 7 bytes of values; its shape [3, 2] needs 6."),
        (_array("(-3, -2)", 6), "'x.npy' has 6 bytes of values; its shape [-3, -2] needs 6."),
        (_array(f"({2**40}, {2**30})", 6), "'x.npy' has 6 bytes of values; its shape [1099511627776, 1073741824]"),
        (_array("(" * 99, 0), "EOF in multi-line statement"),
        (b"no", "EOF: reading magic string, expected 8 bytes got 2."),
    ],
)  # fmt: skip
def test_a_damaged_array_is_told_with_its_file(array: bytes, reason: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as archive:
        archive.writestr("x.npy", array)
    with pytest.raises(InputError, match=r"rows\.npz' is not an \.npz file: ") as raised:
        Npz(tmp_path / "rows.npz")
    assert reason in str(raised.value)


# In the two records of zipfile about a member: a flag says that it is encrypted; a number is its compression.
@pytest.mark.parametrize(
    ("places", "value", "reason"),
    [((6, 8), 1, "is encrypted"), ((8, 10), 99, "compression method is not supported")],
)
def test_an_archive_that_python_cannot_read(
    places: tuple[int, int], value: int, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.zeros(3))
    data = bytearray(path.read_bytes())
    data[places[0]] = value
    data[data.index(b"PK\1\2") + places[1]] = value
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason):
        Npz(path)


@pytest.mark.parametrize("first", [0, 300])
def test_values_that_end_before_they_should(first: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", _array("(400, 100)", 20_000))
    data = bytearray(path.read_bytes())
    size = data.index(b"PK\1\2") + 24  # what the archive says of it
    data[size : size + 4] = (int.from_bytes(data[size : size + 4], "little") + 20_000).to_bytes(
        4, "little"
    )
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"rows\.npz' is not an \.npz file: .* too early\."):
        Npz(path).fetch(Span(first, 250, first, 250))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("tokens", np.zeros((2, 3)), "`tokens` is float64, the model takes int64."),
        ("tokens", np.full((2, 3), "a"), "`tokens` is <U1, the model takes int64."),
        ("token", np.zeros((2, 3)), "there is no input `token`; the inputs are tokens, weight, "),
        ("lengths", np.zeros(2), "input `tokens` is missing; the inputs are tokens, weight, lengths."),
    ],
)  # fmt: skip
def test_a_column_of_another_kind_or_name_is_refused_at_once(
    name: str, array: np.ndarray, message: str, bundle: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "rows.npz", **{name: array, "weight": np.zeros(2)})
    with pytest.raises(InputError) as raised:
        score(bundle, tmp_path / "rows.npz", tmp_path / "answers.npz")
    assert str(raised.value).startswith(message)
