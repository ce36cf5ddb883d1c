"""Products in eight bits: files are what they say, faults are found, and what rounding costs is said and bounded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import deploy_rnn
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import ExportError, LoadError, VerificationError
from deploy_rnn.export import export_bundle, export_onnx, verify
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.precision import rounding
from deploy_rnn.export.precision.cost import Deviation, rounding_costs
from deploy_rnn.export.precision.reference import Int8Reference
from deploy_rnn.export.precision.scope import Int8Scope
from deploy_rnn.export.precision.simulation import Columns, Rounding, largest_of_rows
from deploy_rnn.export.saving import save
from deploy_rnn.export.verification.cases import example_feeds
from deploy_rnn.export.verification.int8_integers import FileIntegers, integer_faults
from deploy_rnn.runtime import open_session, specs
from deploy_rnn.serving import Engine

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)


class Layers(nn.Module):
    """One layer of each kind, all of the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.tanh = nn.RNN(3, 6, 2, bidirectional=True)
        self.relu = nn.RNN(3, 5, nonlinearity="relu", bias=False)
        self.gru = nn.GRU(3, 5, 2, bidirectional=True)
        self.lstm = nn.LSTM(3, 4, bidirectional=True)
        self.projected = nn.LSTM(3, 6, 2, proj_size=4)

    def forward(self, x: Tensor, h: Tensor | None = None) -> list[Any]:
        states = {5: h} if h is not None else {}
        gru_states = None if h is None else torch.cat([h, -h, h, h])
        return [
            self.tanh(x),
            self.relu(x, states.get(5)),
            self.gru(x, gru_states),
            self.lstm(x),
            self.projected(x),
        ]


class Packed(Layers):
    def forward(self, x: Tensor, lengths: Tensor) -> list[Any]:  # type: ignore[override]
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        results = []
        for layer in (self.tanh, self.gru, self.lstm):
            output, finals = layer(packed)
            results.append((nn.utils.rnn.pad_packed_sequence(output)[0], finals))
        return results


X = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("form", ["unrolled", "scan"])
@pytest.mark.parametrize("given", ["nothing", "states", "lengths"])
def test_a_file_is_its_simulation(form: str, given: str, tmp_path: Path) -> None:
    """States beyond 1 stretch the levels of their own row."""
    torch.manual_seed(0)
    model = (Packed() if given == "lengths" else Layers()).eval()
    args: tuple[Tensor, ...] = (X,)
    if given == "states":
        args = (X, 3 * torch.randn(1, 3, 5))
    if given == "lengths":
        args = (X, torch.tensor([2, 4, 1]))
    options = ExportOptions(precision="int8", dynamic_shapes={})
    captured = CapturedModel.of(model, args, None, options, dynamic_time=False)
    call = ExampleCall.of(model, args)
    original = [output.detach().numpy() for output in pytree.tree_leaves(model(*args))]
    errors = {}
    for scope in (Int8Scope(), Int8Scope(products="state")):
        metadata = replace(captured.metadata, int8_products=scope.products)
        source = replace(captured, metadata=metadata)
        save(source.written(form, max_nodes=5000), tmp_path / "m.onnx")
        session = open_session(tmp_path / "m.onnx", threads=1)
        reference = Int8Reference(model, scope)
        simulated = reference.outputs(call)
        [*_] = reference.expected(call, simulated, "the example")
        outputs = session.run(None, example_feeds(specs(session)[0], call))
        for output, expected in zip(outputs, simulated, strict=True):
            np.testing.assert_allclose(output, expected.numpy(), atol=2e-6)
        pairs = zip(outputs, original, strict=True)
        errors[scope] = [np.abs(output - exact).max() for output, exact in pairs]
        # Something was rounded.
        assert 1e-4 < min(errors[scope]) < max(errors[scope]) < 0.1
    of_all, of_states = errors.values()
    assert np.mean(of_states) < np.mean(of_all)


def test_rows_do_not_depend_on_each_other() -> None:
    """Nor do steps: each row has levels of its own, as in a server that runs requests together."""
    reference = Int8Reference(Layers().eval())
    together = reference.outputs(
        ExampleCall.of(reference.model, (X * torch.tensor([[[1.0], [9.0], [0.1]]]),))
    )
    alone = reference.outputs(ExampleCall.of(reference.model, (X[:, :1],)))
    for rows, row in zip(together, alone, strict=True):
        torch.testing.assert_close(rows[:, :1], row)


def test_products_of_two_bytes_fit_into_sixteen_bits() -> None:
    """What x86 processors without VNNI add."""
    assert np.iinfo(np.int16).max >= 2 * 255 * rounding.WEIGHT_LEVELS
    weight = np.array([[0.5, -2.0, 0.1], [0.0, 0.0, 0.0]], np.float32)
    levels, steps = rounding.rounded_columns(weight)
    assert levels.tolist() == [[16, 0], [-63, 0], [3, 0]]
    np.testing.assert_allclose(levels.T * steps[:, None], weight, atol=1 / 63)
    assert levels.dtype == np.int8


@pytest.fixture(scope="module")
def gru() -> nn.GRU:
    torch.manual_seed(0)
    return nn.GRU(3, 4).eval()


@pytest.fixture(scope="module")
def file(gru: nn.GRU, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "m.onnx"
    report = export_onnx(gru, X, path, form="unrolled", precision="int8", max_error=0.05)
    assert report.precision == report.file.precision == "int8"
    assert report.op_types["MatMulInteger"] == 8
    assert "unrolled, int8" in str(report.file)
    [cost, _] = report.rounding
    assert 0 < cost.rms < cost.largest < 0.05
    assert len(cost.over_time) == 4
    # A bare layer has no classes.
    assert cost.changed is None
    text = str(report)
    assert "m.onnx: unrolled, int8, " in text
    assert f"int8 moves output: at most {cost.largest:.1e} (" in text
    assert "int8 moves" in report.to_html()
    return path


def changed(path: Path, name: str, change: Any) -> Path:
    """The file with one constant changed."""
    model = onnx.load(path)
    [tensor] = [item for item in model.graph.initializer if item.name.endswith(name)]
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path.with_name("changed.onnx"))
    return path.with_name("changed.onnx")


def test_one_level_of_one_weight_is_found(file: Path, gru: nn.GRU) -> None:
    def one_level(array: np.ndarray) -> None:
        array[1, 2] += 1

    assert verify(file, gru, X).precision == "int8"
    reason = (
        r"a column of `.*n\.weight_hh\.int8`, or its scale, is not that of a weight of the model"
    )
    with pytest.raises(VerificationError, match=rf"changed\.onnx is not the model: {reason}"):
        verify(changed(file, "n.weight_hh.int8", one_level), gru, X)


def test_faults_beside_a_product_in_float32_are_found(gru: nn.GRU, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    report = export_onnx(
        gru,
        X,
        path,
        form="scan",
        precision="int8",
        int8_products="state",
        max_error=0.01,
        sizes=(2,),
    )
    assert "m.onnx: scan, int8 (products: state), " in str(report)
    assert "int8 (products: state)" in report.to_html()
    assert "scan, int8 (products: state), " in str(report.file)

    def moved(array: np.ndarray) -> None:
        array[1, 2] += 1 if array.dtype == np.int8 else 1e-3

    assert verify(path, gru, X, sizes=(2,), long_steps=None).file.int8_products == "state"
    for name, reason in (("n.weight_hh.int8", "a column of"), ("n.weight_ih.T", "differs by")):
        with pytest.raises(VerificationError, match=rf"is not the model: .*{reason}"):
            verify(changed(path, name, moved), gru, X, sizes=(2,), long_steps=None)


@pytest.mark.parametrize("name", ["int8_layers", "int8_products"])
def test_damaged_metadata_is_refused(file: Path, gru: nn.GRU, name: str) -> None:
    model = onnx.load(file)
    model.metadata_props.add(key=f"deploy_rnn.{name}", value="conv")
    onnx.save(model, file.with_name("changed.onnx"))
    with pytest.raises(LoadError, match=rf"changed\.onnx has damaged metadata .*`{name}` \(="):
        verify(file.with_name("changed.onnx"), gru, X)


def test_faults_are_found_by_the_integers_alone(file: Path, gru: nn.GRU) -> None:
    """However far apart right runs of a large network may be."""

    def next_number(array: np.ndarray) -> None:
        array[0] = np.nextafter(array[0], np.float32(1))

    weights = Int8Reference(gru).weights
    assert not list(integer_faults(FileIntegers.read(file), weights))
    wrong = FileIntegers.read(changed(file, "n.weight_hh.scales", next_number))
    [fault] = integer_faults(wrong, weights)
    assert fault.startswith("a column of `rnn0.l0f.n.weight_hh.int8`, or its scale, is not that")


def test_the_outputs_are_compared_as_well(
    file: Path, gru: nn.GRU, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no integer, such as a bias, is theirs to find."""
    monkeypatch.setattr("deploy_rnn.export.verification.verdict.integer_faults", lambda *_: [])

    def one_level(array: np.ndarray) -> None:
        array[1, 2] += 1

    with pytest.raises(
        VerificationError, match=r"changed\.onnx is not the model: `\w+` differs by"
    ):
        verify(changed(file, "n.weight_hh.int8", one_level), gru, X)


def vnni() -> bool:
    """Whether the processor multiplies eight bits without an overflow."""
    words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return bool({"avx512_vnni", "avx_vnni", "asimddp"} & set(words))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the processor is not known")
def test_products_that_overflow_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Weights of eight bits are right where the processor has instructions for them, and refused elsewhere."""
    monkeypatch.setattr(rounding, "WEIGHT_LEVELS", 127)
    layer = nn.RNN(2, 16)
    with torch.no_grad():
        layer.weight_hh_l0.fill_(0.2)
        layer.weight_ih_l0.fill_(1.0)
    x = torch.ones(3, 1, 2)
    if vnni():
        export_onnx(layer, x, tmp_path / "m.onnx", form="unrolled", precision="int8")
        return
    with pytest.raises(
        VerificationError,
        match=r"m\.onnx is not the model: this processor does not add the products of `.*` exactly: it is off by \d",
    ):
        export_onnx(layer, x, tmp_path / "m.onnx", form="unrolled", precision="int8")
    assert not list(tmp_path.iterdir())


def test_what_rounding_may_cost(gru: nn.GRU, tmp_path: Path) -> None:
    with pytest.raises(
        VerificationError,
        match=r"m\.onnx is right, but int8 moves `\w+` by .* more than `max_error` \(=1e-05\)",
    ) as raised:
        export_onnx(gru, X, tmp_path / "m.onnx", form="unrolled", precision="int8", max_error=1e-5)
    assert raised.value.report.rounding
    assert not list(tmp_path.iterdir())


class Sums(nn.Module):
    """A loop without products."""

    def forward(self, x: Tensor) -> Tensor:
        def step(total: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            return total + row, torch.tanh(total)

        sums: Tensor = deploy_rnn.scan(step, torch.zeros_like(x[0]), x)[1]
        return sums


@pytest.mark.parametrize(
    ("layer", "options", "reason"),
    [
        (nn.GRU(3, 4), {"form": "native"}, "form='native' has no products in eight bits"),
        (nn.GRU(3, 4).double(), {}, r"`precision` \(='int8'\) must be 'float64', as the model's"),
        (nn.Linear(3, 4), {}, "precision='int8' is for recurrent layers, for cells and for loops"),
        (Sums(), {}, "precision='int8' is for products with weights, .* the loop has none"),
        (
            Sums(),
            {"int8_products": "state"},
            "int8_products='state' is for products of a state with weights, .* the loop has none",
        ),
    ],
)
def test_what_is_not_offered(
    layer: nn.Module, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    arguments = {"form": "scan", **options}
    dtype = next(layer.parameters(), X).dtype
    with pytest.raises(ExportError, match=reason):
        export_onnx(layer, X.to(dtype), tmp_path / "m.onnx", precision="int8", **arguments)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"precision": "int8", "max_error": 0.0}, r"`max_error` \(=0.0\) must be a number above 0"),
        ({"precision": "int8", "max_error": True}, r"`max_error` \(=True\) must be a number above"),
        (
            {"precision": "int8", "max_error": np.nan},
            r"`max_error` \(=nan\) must be a number above",
        ),
        ({"precision": "int8", "max_error": "a"}, r"`max_error` \(='a'\) must be a number above 0"),
        (
            {"max_error": 0.1},
            r"`max_error` \(=0.1\) bounds what precision='int8' or precision='float16' costs; give",
        ),
        (
            {"precision": "int4"},
            r"`precision` \(='int4'\) must be 'float32', 'float64', 'float16' or 'int8'",
        ),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ExportOptions(**options)


def test_a_number_near_the_middle_of_two_levels_may_go_to_either_side() -> None:
    columns = Columns.of(torch.eye(1))
    step = float(rounding.ROW_STEP)
    rows = torch.tensor([[2.5 * step], [7.2 * step]]).double()
    products = set()
    for seed in range(8):
        sides = torch.Generator().manual_seed(seed)
        product = Rounding(near=1e-4, sides=sides).product(rows, columns, None)
        products.add(tuple((product / step).round().flatten().tolist()))
    assert products == {(2.0, 7.0), (3.0, 7.0)}
    looking = Rounding(looks_for_middles=True)
    looking.product(rows[1:], columns, None)
    assert not looking.is_near_middle
    looking.product(rows, columns, None)
    assert looking.is_near_middle


def test_a_row_of_zeros_has_a_limit() -> None:
    columns = Columns.of(torch.ones(2, 3))
    rows = torch.zeros(1, 3).double()
    assert Rounding().product(rows, columns, largest_of_rows(rows)).tolist() == [[0.0, 0.0]]


def test_the_cost_of_rounding() -> None:
    exact = np.array([[1.0, 0.5], [0.2, 0.3], [0.0, 4.0]])
    rounded = exact + np.array([[0.0, 0.0], [0.2, 0.0], [0.1, 0.1]])
    short = Deviation("example", [rounded[:1], np.array([1])], [exact[:1], np.array([1])])
    whole = Deviation("long, T=3", [rounded, np.array([1])], [exact, np.array([1])])
    [cost] = rounding_costs([short, whole], ["y", "count", "state"], {"y": 0})
    assert (cost.output, cost.case) == ("y", "long, T=3")
    assert cost.largest == pytest.approx(0.2)
    assert cost.rms == pytest.approx((0.06 / 8) ** 0.5)
    assert cost.changed == pytest.approx(1 / 4)
    assert cost.over_time == pytest.approx((0.0, 0.2 / 2**0.5, 0.1))
    [cost] = rounding_costs([short, whole], ["y", "count"], {"y": 0}, hidden=["y"])
    assert cost.changed is None


@pytest.fixture(scope="module")
def bundle(gru: nn.GRU, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "b"
    export_bundle(gru, X, folder, forms=["scan"], buckets=[4], sizes=(2,), precision="int8")
    return folder


def test_a_bundle_is_served(bundle: Path, gru: nn.GRU) -> None:
    engine = Engine(bundle)
    reference = Int8Reference(gru)
    x = torch.randn(3, 2, 3)
    [expected, _] = reference.outputs(ExampleCall.of(gru, (x,)))
    # Rows come first there.
    output = engine.run({"input": x.transpose(0, 1).numpy()})["output"]
    np.testing.assert_allclose(output, expected.transpose(0, 1).numpy(), atol=2e-6)
    assert {graph.precision for graph in deploy_rnn.bundle.Manifest.read(bundle).graphs} == {"int8"}
