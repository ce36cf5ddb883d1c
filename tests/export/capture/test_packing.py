"""Models that pack, in any of the usual ways, and what is refused."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from deploy_rnn.errors import ExportError
from deploy_rnn.export import export_onnx
from deploy_rnn.export.capture.capture import Tracer
from deploy_rnn.runtime import open_session
from deploy_rnn.tensor_spec import SizeRange

STEPS = 5


class Packing(nn.Module):
    """Layers, and a way to use them."""

    def __init__(
        self, use: Callable[..., Any], layer: type[nn.RNNBase], *, batch_first: bool = False
    ) -> None:
        super().__init__()
        self.rnn = layer(3, 4, 2, bidirectional=True, batch_first=batch_first)
        self.other = nn.GRU(3, 4, batch_first=batch_first)
        self.after = nn.RNN(8, 4, batch_first=batch_first)
        self.score = nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.use = use

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.use(self, x, lengths)


def is_sorted(model: Any, x: Tensor, lengths: Tensor) -> Any:
    output, final = model.rnn(pack_padded_sequence(x, lengths))
    padded, rows = pad_packed_sequence(output)
    return padded, rows, final


def unsorted(model: Any, x: Tensor, lengths: Tensor) -> Any:
    """By keywords, on the CPU, padded with another value to the steps of the input."""
    output, final = model.rnn(
        rnn.pack_padded_sequence(input=x, lengths=lengths.cpu(), enforce_sorted=False)
    )
    padded, rows = rnn.pad_packed_sequence(output, padding_value=-3.0, total_length=x.size(0))
    return model.score(padded), rows, final


def batch_first(model: Any, x: Tensor, lengths: Tensor) -> Any:
    """The last output of each row."""
    output, final = model.rnn(
        nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
    )
    padded, rows = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
    return padded, padded[torch.arange(padded.size(0)), rows - 1], final


def batch_first_sorted(model: Any, x: Tensor, lengths: Tensor) -> Any:
    output, final = model.rnn(pack_padded_sequence(x, lengths, batch_first=True))
    return pad_packed_sequence(output, batch_first=True, total_length=x.size(1))[0], final


def to_nine(model: Any, x: Tensor, lengths: Tensor) -> Any:
    """A number of steps that is known and above that of the input."""
    output, final = model.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
    return pad_packed_sequence(output, total_length=9)[0], final


def to_computed(model: Any, x: Tensor, lengths: Tensor) -> Any:
    output, final = model.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
    longer: Any = max(lengths) + 1
    return pad_packed_sequence(output, total_length=longer)[0], final


def two_stacks(model: Any, x: Tensor, lengths: Tensor) -> Any:
    """Two on one packed sequence, a third on what the first made of it."""
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, final = model.rnn(packed)
    results = [model.other(packed), model.after(output)]
    return final, [
        (pad_packed_sequence(packed, total_length=x.size(0))[0], last) for packed, last in results
    ]


def changed_data(model: Any, x: Tensor, lengths: Tensor) -> Any:
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    packed = PackedSequence(
        torch.relu(packed.data) + 1,
        packed.batch_sizes,
        packed.sorted_indices,
        packed.unsorted_indices,
    )
    output, final = model.rnn(packed)
    output = output._replace(data=model.score(output.data))
    return pad_packed_sequence(output, total_length=x.size(0))[0], final, output.data.mean(0)


def normalised(model: Any, x: Tensor, lengths: Tensor) -> Any:
    """Only over the steps that count; torch asks whether there are any."""
    output, _ = model.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
    output, final = model.after(output._replace(data=model.norm(output.data)))
    return pad_packed_sequence(output, total_length=x.size(0))[0], final


def packed_out(model: Any, x: Tensor, lengths: Tensor) -> Any:
    return model.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))


def sorted_by_hand(model: Any, x: Tensor, lengths: Tensor) -> Any:
    """As it was done before `enforce_sorted`."""
    descending, order = lengths.sort(descending=True)
    output, final = model.rnn(pack_padded_sequence(x[:, order], descending))
    place = order.argsort()
    return pad_packed_sequence(output, total_length=x.size(0))[0][:, place], final[:, place]


MODELS: list[tuple[Callable[..., Any], type[nn.RNNBase], tuple[str, ...]]] = [
    (is_sorted, nn.LSTM, ("unrolled", "scan", "native")),
    (unsorted, nn.RNN, ("scan", "native")),
    (batch_first, nn.LSTM, ("unrolled", "native")),
    (batch_first_sorted, nn.GRU, ("scan",)),
    (to_nine, nn.GRU, ("unrolled", "scan")),
    (to_computed, nn.GRU, ("scan",)),
    (two_stacks, nn.GRU, ("unrolled", "scan")),
    (changed_data, nn.LSTM, ("scan", "native")),
    (normalised, nn.RNN, ("scan",)),
    (packed_out, nn.GRU, ("native",)),
    (sorted_by_hand, nn.RNN, ("unrolled",)),
]
FINDS_ITS_AXES = (is_sorted, batch_first, batch_first_sorted, to_nine)
"""Which takes one more trace; `sorted_by_hand` cannot: nothing says that an indexed batch has as many rows."""
OF_TORCH = (rnn.pack_padded_sequence.__code__, rnn.pad_packed_sequence.__code__, rnn._VF)


def of_torch() -> Any:
    return (rnn.pack_padded_sequence.__code__, rnn.pad_packed_sequence.__code__, rnn._VF)


@pytest.mark.parametrize(
    ("use", "layer", "form"), [(use, layer, form) for use, layer, forms in MODELS for form in forms]
)
def test_models_that_pack(
    use: Callable[..., Any], layer: type[nn.RNNBase], form: str, tmp_path: Path
) -> None:
    first, ordered = (
        use.__name__.startswith("batch_first"),
        use.__name__.endswith("sorted") and use is not unsorted,
    )
    model = Packing(use, layer, batch_first=first)
    x, lengths = torch.randn(STEPS, 3, 3), torch.tensor([5, 4, 2] if ordered else [4, 2, 5])
    shapes = None
    if use not in FINDS_ITS_AXES:
        shapes = {"x": {1: "B"} | ({} if form == "unrolled" else {0: "T"}), "lengths": {0: "B"}}
    has_limit = use is to_nine and form != "unrolled"
    warns = pytest.warns(UserWarning, match="T, can have a size of 1 to 9 only")
    with warns if has_limit else nullcontext():
        report = export_onnx(
            model,
            (x.transpose(0, 1) if first else x, lengths),
            tmp_path / "a.onnx",
            form=form,
            dynamic_shapes=shapes,
        )
    assert report.ranges == ({"T": SizeRange(1, 9)} if has_limit else {})
    assert of_torch() == OF_TORCH
    steps = STEPS if form == "unrolled" else "T"
    assert report.inputs[0].shape == (("B", steps, 3) if first else (steps, "B", 3))
    assert report.lengths == {"lengths": steps}
    session = open_session(tmp_path / "a.onnx", threads=1)
    for count, rows in [
        (STEPS, [5]),
        (STEPS, [5, 5, 1, 1] if ordered else [1, 5, 1, 3]),
        (STEPS, [3, 2]),
    ] + ([] if form == "unrolled" else [(1, [1, 1]), (8, [7, 2, 1] if ordered else [2, 1, 7])]):
        x, lengths = torch.randn(count, len(rows), 3), torch.tensor(rows)
        x = x.transpose(0, 1).contiguous() if first else x
        with torch.no_grad():
            expected = torch.utils._pytree.tree_leaves(model.eval()(x, lengths))
        outputs = session.run(None, {"x": x.numpy(), "lengths": lengths.numpy()})
        for output, tensor in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(output, tensor.numpy(), rtol=1e-5, atol=1e-5)


class Listed(nn.Module):
    """Lengths that are numbers in the model's own code."""

    def __init__(self, lengths: Any) -> None:
        super().__init__()
        self.rnn, self.lengths = nn.GRU(3, 4), lengths

    def forward(self, x: Tensor) -> Any:
        output, final = self.rnn(pack_padded_sequence(x, self.lengths, enforce_sorted=False))
        return pad_packed_sequence(output)[0], final


@pytest.mark.filterwarnings("ignore:the lengths .2, 4, 3. are a list of numbers:UserWarning")
@pytest.mark.parametrize("form", ["unrolled", "native"])
def test_lengths_in_the_model_fix_the_batch(form: str, tmp_path: Path) -> None:
    model = Listed([2, 4, 3])
    with pytest.warns(UserWarning, match=r"axis is fixed: the recurrent layers have a batch"):
        report = export_onnx(
            model, torch.randn(STEPS, 3, 3), tmp_path / "a.onnx", form=form, sizes=(5, 8)
        )
    assert report.inputs[0].shape == (STEPS if form == "unrolled" else "T", 3, 3)
    x = torch.randn(STEPS, 3, 3)
    output, final = open_session(tmp_path / "a.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(output, model(x)[0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(final, model(x)[1].detach().numpy(), atol=1e-6)


def short_total(model: Any, x: Tensor, lengths: Tensor) -> Any:
    output = model.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))[0]
    return pad_packed_sequence(output, total_length=4)[0]


def numbers(model: Any, x: Tensor, lengths: Tensor) -> Any:
    return model.rnn(pack_padded_sequence(x, lengths.tolist(), enforce_sorted=False))[1]


def made_by_hand(model: Any, x: Tensor, lengths: Tensor) -> Any:
    return model.rnn(PackedSequence(x.flatten(0, 1), torch.full((x.size(0),), 3)))[1]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            short_total,
            "`total_length` (=4) of pad_packed_sequence must be the size of the padded input's time axis,",
        ),
        (
            numbers,
            "are numbers taken out of a tensor, as by `lengths.tolist()`, which fixes how many rows there are",
        ),
        (
            made_by_hand,
            "a PackedSequence that pack_padded_sequence did not make cannot be exported.",
        ),
    ],
)
def test_what_a_file_cannot_say_is_refused(use: Any, message: str, tmp_path: Path) -> None:
    model, args = Packing(use, nn.GRU), (torch.randn(STEPS, 3, 3), torch.tensor([4, 2, 3]))
    with pytest.raises(ExportError) as raised:
        export_onnx(
            model,
            args,
            tmp_path / "a.onnx",
            dynamic_shapes={"x": {1: "B"}, "lengths": {0: "B"}},
            form="unrolled",
        )
    assert message in str(raised.value)
    assert of_torch() == OF_TORCH
    assert not list(tmp_path.iterdir())


class OfAMask(nn.Module):
    """Pads to the steps of the mask that its lengths are the sum of."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["mask"]
        packed = pack_padded_sequence(x, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, total_length=mask.size(1)
        )
        return output


def of_a_mask(rows: list[int], steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    mask = torch.arange(steps)[None] < torch.tensor(rows)[:, None]
    return torch.randn(len(rows), steps, 3), {"mask": mask}


T = torch.export.Dim("T", min=2, max=1000)


@pytest.mark.parametrize("steps", [None, "T", T])
def test_the_total_length_of_a_mask_of_the_same_axis(steps: Any, tmp_path: Path) -> None:
    shapes = {"x": {0: "B", 1: steps}, "batch": {"mask": {0: "B", 1: steps}}} if steps else None
    model, args = OfAMask().eval(), of_a_mask([STEPS, 2, 4], STEPS)
    report = export_onnx(model, args, tmp_path / "a.onnx", form="scan", dynamic_shapes=shapes)
    assert [spec.shape for spec in report.inputs] == [("B", "T", 3), ("B", "T")]
    x, batch = of_a_mask([8, 1], 9)
    names = [spec.name for spec in report.inputs]
    feeds = dict(zip(names, (x.numpy(), batch["mask"].numpy()), strict=True))
    (output,) = open_session(tmp_path / "a.onnx").run(None, feeds)
    np.testing.assert_allclose(output, model(x, batch).detach().numpy(), atol=1e-6)


def test_the_total_length_of_another_axis_is_refused(tmp_path: Path) -> None:
    shapes = {"x": {1: "T"}, "batch": {"mask": {1: "S"}}}
    with pytest.raises(ExportError, match="or of another axis of that name in `dynamic_shapes`"):
        export_onnx(
            OfAMask(),
            of_a_mask([STEPS, 2, 4], STEPS),
            tmp_path / "a.onnx",
            form="scan",
            dynamic_shapes=shapes,
        )


class Unpacks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4)

    def forward(self, p: Any) -> Tensor:
        output: Tensor = pad_packed_sequence(self.rnn(p["sequence"])[0])[0]
        return output


def test_a_packed_sequence_is_no_input(tmp_path: Path) -> None:
    packed = pack_padded_sequence(
        torch.randn(STEPS, 3, 3), torch.tensor([4, 2, 3]), enforce_sorted=False
    )
    for model, args, name in [
        (Unpacks(), ({"sequence": packed},), "p"),
        (nn.LSTM(3, 4), (packed,), "input"),
    ]:
        with pytest.raises(
            ExportError, match=rf"`{name}` contains a PackedSequence, which cannot be an input of"
        ):
            export_onnx(model, args, tmp_path / "a.onnx", form="unrolled")
    assert not list(tmp_path.iterdir())


def test_torch_has_its_functions_again_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """During an export they are others, or this would say nothing."""
    seen = []

    def traced(*_: Any, **__: Any) -> Any:
        seen.append(of_torch())
        raise KeyboardInterrupt

    from deploy_rnn.checking.example_call import ExampleCall

    monkeypatch.setattr("deploy_rnn.export.capture.capture.trace", traced)
    model = Packing(is_sorted, nn.GRU)
    call = ExampleCall.of(model, (torch.randn(STEPS, 2, 3), torch.tensor([2, 1])))
    with pytest.raises(KeyboardInterrupt):
        Tracer(model, call, opset_version=18).capture([{}, {}])
    assert of_torch() == OF_TORCH
    assert len(seen) == 1
    assert all(during is not before for during, before in zip(seen[0], OF_TORCH, strict=True))


def padded_again(model: Any, x: Tensor, lengths: Any) -> Any:
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    return pad_packed_sequence(model.rnn(packed)[0])[0]


def padded_by_a_tensor(model: Any, x: Tensor, lengths: Any) -> Any:
    return padded_again(model, x, torch.as_tensor(lengths))


@pytest.mark.parametrize("use", [padded_again, padded_by_a_tensor])
@pytest.mark.parametrize("lengths", [[5, 2, 3], (5, 2, 3), torch.tensor([5, 2, 3])])
def test_lengths_that_are_a_list_are_warned_of(use: Any, lengths: Any, tmp_path: Path) -> None:
    """Once; a tensor is an input."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        report = export_onnx(
            Packing(use, nn.GRU),
            (torch.randn(STEPS, 3, 3), lengths),
            tmp_path / "a.onnx",
            dynamic_shapes={"x": {0: "T"}},
            form="scan",
        )
    is_input = "lengths" in {spec.name for spec in report.inputs}
    assert is_input == isinstance(lengths, Tensor)
    text = (
        "the lengths [5, 2, 3] are a list of numbers, which is fixed in the file; a tensor among the arguments would "
        "stay an input."
    )
    assert [str(warning.message) for warning in caught].count(text) == (not is_input)
