"""`deploy_rnn.package`: files that run without our source, at other sizes, and refuse what they cannot do."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, unpack_sequence
from torch.utils import _pytree as pytree

import deploy_rnn
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.trials import Reference
from deploy_rnn.errors import ConversionError, DynamicAxisError, ExportError, VerificationError
from deploy_rnn.packaging import aot
from deploy_rnn.packaging import package as packaging
from deploy_rnn.packaging.axes import DynamicCall
from deploy_rnn.packaging.tracing import explained_errors
from deploy_rnn.packaging.trials import trials_of, with_least_sizes

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)

FAMILIES = [(nn.RNN, {}), (nn.GRU, {}), (nn.LSTM, {}), (nn.LSTM, {"proj_size": 4})]


class Tagger(nn.Module):
    """Embedding -> RNN -> GRU -> LSTM -> Linear over tokens (B, 2, T): the layers' batch is 2*B."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.rnn = nn.RNN(6, 9, 2, batch_first=True, bidirectional=True, dropout=0.5)
        self.gru = nn.GRU(18, 9, 2, batch_first=True, bidirectional=True)
        self.lstm = nn.LSTM(18, 9, 2, batch_first=True, bidirectional=True)
        self.score = nn.Linear(18, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens.flatten(0, 1))
        scores: Tensor = self.score(self.lstm(self.gru(self.rnn(x)[0])[0])[0])
        return scores


class Odd(nn.Module):
    """One thing that a format does not take."""

    def __init__(self, feature: str) -> None:
        super().__init__()
        self.feature = feature
        self.positions = nn.Parameter(torch.randn(6, 1, 5))
        self.rnn = nn.RNN(5, 4)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        if self.feature == "positions":
            x = x + self.positions
        elif self.feature == "unrolled":
            x = torch.stack([x[t] for t in range(x.size(0))])
        elif self.feature == "long":
            x = x[1:] if x.size(0) > 3 else x
        output: Tensor = self.rnn(x, **{})[0]
        return output


class Deciding(nn.Module):
    """Doubles its outputs beyond six steps for a row, a thousand steps of all rows, or a hundred steps."""

    def __init__(self, limit: str) -> None:
        super().__init__()
        self.limit = limit
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        rows, steps = x.size(0), x.size(1)
        if self.limit == "steps of a row" and steps > 6 * rows:
            output = output * 2
        if self.limit == "steps of all rows" and rows * steps > 1000:
            output = output * 2
        if self.limit == "steps" and steps > 100:
            output = output * 2
        return output


FRESH = """
import sys
sys.modules["deploy_rnn"] = None  # whoever imports it now fails
import torch
from torch.utils import _pytree as pytree

def run(function, args):
    try:
        first, again = (pytree.tree_leaves(function(*args)) for _ in range(2))
    except RuntimeError as error:
        return str(error)
    assert all(map(torch.equal, first, again)), "the second call differs from the first"
    return first

path, calls, results = sys.argv[1:]
load = torch._inductor.aoti_load_package if path.endswith(".pt2") else torch.jit.load
function = load(path)
torch.save([run(function, args) for args in torch.load(calls)], results)
"""


def in_a_fresh_process(path: Path, calls: list[Any]) -> list[Any]:
    """What a file does in a process without deploy_rnn: for each call its flat outputs, or the error's text."""
    torch.save(calls, path.with_suffix(".calls"))
    environment = {
        name: value for name, value in os.environ.items() if name != "AOTI_RUNTIME_CHECK_INPUTS"
    }
    files = [path, path.with_suffix(".calls"), path.with_suffix(".results")]
    subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", FRESH, *files], check=True, env=environment
    )
    results: list[Any] = torch.load(files[2])
    return results


def check_in_a_fresh_process(
    path: Path,
    model: nn.Module,
    calls: list[tuple[Any, ...]],
    refused: dict[str, tuple[Any, ...]] | None = None,
) -> None:
    """`calls` give what `model` gives, and those of `refused` the errors that begin so."""
    refused = refused or {}
    reference = copy.deepcopy(model).eval()
    results = in_a_fresh_process(path, [*calls, *refused.values()])
    for args, outputs in zip(calls, results, strict=False):
        assert not isinstance(outputs, str), outputs
        with torch.no_grad():
            expected = pytree.tree_leaves(reference(*args))
        torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)
    for text, message in zip(refused, results[len(calls) :], strict=True):
        assert isinstance(message, str)
        assert message.startswith(text)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_layer(tmp_path: Path) -> None:
    """T and B are dynamic without being requested; equal sizes in the example are not taken for one."""
    layer, path = nn.LSTM(5, 9, 2, bidirectional=True), tmp_path / "lstm.pt2"

    def call(steps: int, batch: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return torch.randn(steps, batch, 5), (torch.randn(4, batch, 9), torch.randn(4, batch, 9))

    report = deploy_rnn.package(layer, call(3, 3), path)
    assert report.inputs == {"input": ("T", "B", 5), "hx[0]": (4, "B", 9), "hx[1]": (4, "B", 9)}
    assert report.path == str(path)
    assert report.bytes == path.stat().st_size
    assert len(report.differences) == 3
    assert max(report.differences) < 1e-5
    assert "input [T, B, 5], hx[0] [4, B, 9], hx[1] [4, B, 9]; largest difference" in str(report)

    sliced, turned = torch.randn(14, 8, 6)[::2, ::2, 1:], torch.randn(2, 11, 5).transpose(0, 1)
    x, (h, c) = call(4, 3)
    check_in_a_fresh_process(
        path,
        layer,
        [(x, (h, c)), call(1, 1), call(70, 5), (sliced, call(1, 4)[1]), (turned, call(1, 2)[1])],
        {
            "axis 2 of `input` is 4; this package takes 5 here.": (x[..., :4], (h, c)),
            "axis 0 of `input` is 0; this package takes 1 or more.": (x[:0], (h, c)),
            "axis 1 of `hx[1]` is 1; this package takes 3 here.": (x, (h, c[:, :1])),
            "`hx[1]` has 2 axes; this package takes 3.": (x, (h, c[0])),
            "`input` must be float32 on the CPU.": (x.double(), (h, c)),
            "expected inputs vector size to be 3, but got 1": (x,),
        },
    )


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model(tmp_path: Path) -> None:
    """One row and one step in the example, which torch.export would take for fixed; other axes are fixed."""
    model, path = Tagger(), tmp_path / "tagger.pt2"
    tokens = torch.randint(20, (1, 2, 1))
    report = deploy_rnn.package(
        model, tokens, path, dynamic_shapes={"tokens": {0: Dim("B", max=50), 2: "T"}}
    )
    assert report.inputs == {"tokens": ("B", 2, "T")}
    more = torch.randint(20, (50, 3, 9))
    check_in_a_fresh_process(
        path,
        model,
        [(tokens,), (more[:, :2, 3:],), (more[:9, 1:],)],
        {
            "axis 1 of `tokens` is 1; this package takes 2 here.": (more[:, :1],),
            "axis 1 of `tokens` is 3; this package takes 2 here.": (more,),
            "axis 0 of `tokens` is 51; this package takes 50 or less.": (tokens.repeat(51, 1, 1),),
        },
    )


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch.export calls its own deprecated modules
def test_an_exported_loop_does_not_remember_the_sizes_of_another() -> None:
    """Else what the process has exported before decides which axes come out fixed."""
    steps, batch = {0: Dim("T")}, {1: Dim("B")}
    for number, dims in [(3, batch), (6, batch), (7, steps | batch)]:
        with torch.no_grad():
            program = torch.export.export(
                deploy_rnn.RNN(5, 4), (torch.randn(number, 3, 5),), dynamic_shapes=(dims,)
            )
    assert program.module()(torch.randn(9, 2, 5))[0].shape == (9, 2, 4)


@pytest.mark.parametrize(("cls", "options"), FAMILIES)
def test_scripted_layers(cls: type[nn.RNNBase], options: dict[str, int], tmp_path: Path) -> None:
    layer, path = (
        cls(5, 9, 2, bidirectional=True, batch_first=True, **options),
        tmp_path / "layer.pt",
    )
    report = deploy_rnn.package(layer, torch.randn(3, 3, 5), path)
    assert report.inputs == {"input": ("B", "T", 5)}
    assert len(report.differences) == (3 if cls is nn.LSTM else 2)
    check_in_a_fresh_process(
        path, layer, [(torch.randn(batch, steps, 5),) for batch, steps in [(3, 3), (1, 1), (2, 40)]]
    )


def test_a_scripted_model(tmp_path: Path) -> None:
    """It fixes no axis; the steps, and what `dynamic_shapes` names, are tried and reported as dynamic."""
    model, path = Tagger(), tmp_path / "tagger.pt"
    tokens = torch.randint(20, (3, 2, 6))
    # The batch of the layers is a product.
    assert deploy_rnn.package(model, tokens, path).inputs == {"tokens": ("B", "tokens_1", "T")}
    dynamic_shapes = {"tokens": {0: "B", 2: "T"}}
    report = deploy_rnn.package(
        model, (), path, kwargs={"tokens": tokens}, dynamic_shapes=dynamic_shapes
    )
    assert report.inputs == {"tokens": ("B", 2, "T")}
    check_in_a_fresh_process(
        path, model, [(tokens,), (tokens[:1, :, :1],), (torch.randint(20, (5, 2, 31)),)]
    )


class Scorer(nn.Module):
    """Scores that lose an axis with one row; a mask that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 4, batch_first=True)
        self.score = nn.Linear(4, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores: Tensor = self.score(self.rnn(x)[0].sum(1)).squeeze()
        return scores


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_has_the_axes_that_an_export_has(tmp_path: Path) -> None:
    model, path = Scorer(), tmp_path / "scorer.pt2"
    report = deploy_rnn.package(model, (torch.randn(3, 6, 5), torch.ones(3, 6)), path)
    assert report.inputs == {"x": ("B", "T", 5), "mask": ("B", "T")}
    check_in_a_fresh_process(
        path,
        model,
        [(torch.randn(2, 9, 5), torch.ones(2, 9)), (torch.randn(7, 1, 5), torch.ones(7, 1))],
        {
            "axis 0 of `x` is 1; this package takes 2 or more.": (
                torch.randn(1, 6, 5),
                torch.ones(1, 6),
            )
        },
    )


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_an_axis_that_a_compiled_model_fixes_is_fixed_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="takes the steps of the example only: `T` cannot be dyn"):
        report = deploy_rnn.package(Odd("unrolled"), X, tmp_path / "m.pt2")
    assert report.inputs == {"x": (6, "B", 5)}


def test_states_lengths_and_layers_without_a_batch(tmp_path: Path) -> None:
    path, x, h = tmp_path / "layer.pt", torch.randn(6, 3, 5).double(), torch.randn(4, 3, 9).double()
    layer = deploy_rnn.GRU(5, 9, 2, bidirectional=True).double()
    report = deploy_rnn.package(layer, (x, h, torch.tensor([6, 2, 4])), path)
    assert report.inputs == {"input": ("T", "B", 5), "hx": (4, "B", 9), "lengths": ("B",)}
    assert deploy_rnn.package(layer, (x[:, 0].double(), h[:, 0].double()), path).inputs == {
        "input": ("T", 5),
        "hx": (4, 9),
    }


@pytest.mark.parametrize(
    "args", [(torch.randn(6, 3, 5),), (torch.randn(6, 3, 5), None, torch.tensor([6, 2, 4]))]
)
def test_every_axis_is_tried_at_one_and_at_other_sizes(
    args: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = packaging.largest_differences

    def spy(run: Callable[..., Any], trials: Any, *rest: Any) -> Any:
        seen.extend(trial.sizes for trial in trials)
        return original(run, trials, *rest)

    monkeypatch.setattr(packaging, "largest_differences", spy)
    deploy_rnn.package(deploy_rnn.RNN(5, 4), args, tmp_path / "rnn.pt")
    for number in range(2):
        assert {tuple(sizes.values())[number] for sizes in seen} >= {1, 2, 4, 7, 32}


def test_the_model_is_not_touched(tmp_path: Path) -> None:
    model = Tagger().train()
    before = copy.deepcopy(model.state_dict())
    deploy_rnn.package(model, torch.randint(20, (3, 2, 6)), tmp_path / "tagger.pt")
    assert model.training
    assert type(model.lstm) is nn.LSTM
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_file_that_differs_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, path = nn.RNN(5, 4), tmp_path / "rnn.pt"
    path.write_bytes(b"what was there before")
    changed = copy.deepcopy(layer)
    with torch.no_grad():
        changed.weight_hh_l0[1, 2] += 2e-3
    monkeypatch.setattr(
        packaging, "convert_for_inference", lambda _: deploy_rnn.convert(changed).eval()
    )
    text = r"rnn.pt is not the model: output 0 on .* differs by \d.*, allowed is \d"
    with pytest.raises(VerificationError, match=text):
        deploy_rnn.package(layer, torch.randn(6, 3, 5), path)
    assert path.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [path]
    deploy_rnn.package(layer, torch.randn(6, 3, 5), path, atol=0.1)


def test_what_has_another_shape_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaging, "convert_for_inference", lambda _: deploy_rnn.RNN(5, 3).eval())
    with pytest.raises(
        VerificationError, match=r"is float32\[6, 3, 3\], PyTorch gives float32\[6, 3, 4\]"
    ):
        deploy_rnn.package(nn.RNN(5, 4), torch.randn(6, 3, 5), tmp_path / "rnn.pt")
    assert not list(tmp_path.iterdir())


X = torch.randn(6, 3, 5)


@pytest.mark.parametrize(
    ("args", "name", "dynamic_shapes", "error", "text"),
    [
        (X, "rnn.onnx", None, ExportError, r"rnn.onnx'\) must end in .pt2 \(AOTInductor\) or .pt \(TorchScript\)"),
        (X, "no/rnn.pt", None, FileNotFoundError, "does not exist; make it first"),
        (X, ".", None, IsADirectoryError, "give the name of a file, such as model.pt2"),
        (X, "m.pt", {"x": {0: "T"}}, ExportError, "`dynamic_shapes` names `x`; the arguments are input"),
        (X, "m.pt", {"input": {0: Dim.AUTO}}, ExportError, r"AUTO\) for an axis; give a name, such as 'B'"),
        (X, "m.pt", {"input": {0: "B", 1: "B"}}, ExportError, "`B` for an axis of size 6 and for one of size 3"),
        (X[:3], "m.pt", {"input": {0: "B", 1: Dim("B", min=2)}}, ExportError, "one name is one size, with one range"),
        (X, "m.pt", {"input": {2: "I"}}, DynamicAxisError, "`I` cannot be dynamic: the model takes no other size"),
        (pack_sequence([X[:, 0]]), "m.pt", None, ExportError, "`lengths` in place of a PackedSequence"),
        (X[..., 1:], "m.pt", None, ExportError, "the model itself fails on its arguments: RuntimeError: input.size"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_of_a_layer(
    args: Any, name: str, dynamic_shapes: Any, error: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        deploy_rnn.package(nn.RNN(5, 4), (args,), tmp_path / name, dynamic_shapes=dynamic_shapes)
    assert not list(tmp_path.iterdir())


T = {"x": {0: "T"}}
RANGE = {"x": {0: Dim("T", max=50)}}


class Rows(nn.Module):
    """Takes the last step of each row, of a list of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return torch.stack([row[-1] for row in unpack_sequence(self.rnn(packed)[0])])


LENGTHS = torch.tensor([6, 2, 4])
ROWS = {"x": {1: "B"}, "lengths": {0: "B"}}
ROWS_APART = (
    r"`B` cannot be dynamic: the model fixes it at 3 \(taken apart in .*unpack_sequence\(self.* as by a loop over "
    r"rows or unpack_sequence\); leave it out"
)


@pytest.mark.parametrize(
    ("model", "args", "name", "dynamic_shapes", "error", "text"),
    [
        (Odd("positions"), X, "m.pt", T, DynamicAxisError, "`T` cannot be dynamic: the model takes no other size"),
        (nn.Sequential(nn.GRU(5, 4)), (pack_sequence([X[:, 0]]),), "m.pt", None, ExportError, "contains a PackedSeq"),
        (Odd("number"), (X, 2.0), "m.pt2", None, ExportError, "`scale` has 2.0, which is not a tensor"),
        (Odd("unrolled"), X, "m.pt2", T, DynamicAxisError, "`T` cannot be dynamic: the model fixes it at 6; leave"),
        (Rows(), (X, LENGTHS), "m.pt2", ROWS, DynamicAxisError, ROWS_APART),
        (Odd("long"), X, "m.pt2", RANGE, DynamicAxisError, r"`T = Dim\('T', min=4, max=50\)`"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("fresh_compiler")
def test_what_cannot_be_made_of_a_model(
    model: nn.Module,
    args: Any,
    name: str,
    dynamic_shapes: Any,
    error: type[Exception],
    text: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=text):
        deploy_rnn.package(model, args, tmp_path / name, dynamic_shapes=dynamic_shapes)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_an_operation_on_every_output_of_a_compiled_loop(tmp_path: Path) -> None:
    """It overwrites the output of the loop in place, which PyTorch writes C++ for that no compiler takes."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = 2 * self.rnn(x)[0] + 1
            return output

    model, path = Scaled(), tmp_path / "m.pt2"
    x = torch.randn(6, 2, 3)
    deploy_rnn.package(model, x, path, dynamic_shapes={"x": {0: "T", 1: "B"}})
    check_in_a_fresh_process(path, model, [(x,), (torch.randn(9, 5, 3),)])


class Paired(nn.Module):
    """Takes pairs of steps, and doubles its outputs beyond six steps for a row."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x.reshape(x.size(0), -1, 6))[0]
        return 2 * output if x.size(1) > 6 * x.size(0) else output


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_file_refuses_what_its_graph_is_not_for(tmp_path: Path) -> None:
    """The other side of a branch on two axes, and half a pair: PyTorch would compute with either."""
    model, path = Paired(), tmp_path / "m.pt2"
    dynamic_shapes = {"x": {0: "B", 1: "T"}}
    report = deploy_rnn.package(model, torch.randn(8, 10, 3), path, dynamic_shapes=dynamic_shapes)
    pairs, rows = report.conditions
    assert rows == "T <= 6*B"
    check_in_a_fresh_process(
        path,
        model,
        [(torch.randn(1, 6, 3),), (torch.randn(9, 2, 3),)],
        {
            f"the sizes must be such that {rows}; the model": (torch.randn(1, 8, 3),),
            f"the sizes must be such that {pairs}; the model": (torch.randn(2, 5, 3),),
        },
    )


@pytest.mark.parametrize(
    ("limit", "rows", "steps"),
    [("steps of a row", 1, 7), ("steps of all rows", 40, 26), ("steps", 2, 101)],
)
def test_a_scripted_file_has_both_sides_of_a_branch(
    limit: str, rows: int, steps: int, tmp_path: Path
) -> None:
    model, path = Deciding(limit), tmp_path / "m.pt"
    dynamic_shapes = {"x": {0: "B", 1: "T"}}
    deploy_rnn.package(model, torch.randn(8, 5, 3), path, dynamic_shapes=dynamic_shapes)
    check_in_a_fresh_process(path, model, [(torch.randn(8, 5, 3),), (torch.randn(rows, steps, 3),)])


def test_a_machine_without_a_compiler(tmp_path: Path) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(
            ExportError,
            match=r"needs a C\+\+ compiler, such as g\+\+, and none was found; write a .pt file",
        ),
    ):
        deploy_rnn.package(nn.RNN(5, 4), X, tmp_path / "rnn.pt2")
    assert not list(tmp_path.iterdir())


def test_a_torch_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "CPP_WRAPPER", False)
    with pytest.raises(
        ExportError, match=r"a .pt2 file needs torch >= 2.13, this is .*; write a .pt file instead"
    ):
        deploy_rnn.package(nn.RNN(5, 4), X, tmp_path / "rnn.pt2")


def test_a_layer_that_cannot_be_converted(tmp_path: Path) -> None:
    class Own(nn.RNN):
        def permute_hidden(self, hx: Tensor, permutation: Tensor | None) -> Tensor:
            return hx

    with pytest.raises(ConversionError, match=r"`0` is a .*Own, which defines `permute_hidden`"):
        deploy_rnn.package(nn.Sequential(Own(5, 4)), X, tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm:FutureWarning")
def test_weights_that_a_hook_computes(tmp_path: Path) -> None:
    layer = torch.nn.utils.weight_norm(nn.GRU(5, 4), "weight_hh_l0")
    deploy_rnn.package(layer, X, tmp_path / "m.pt")
    assert "weight_hh_l0_g" in layer.state_dict()


class Last(nn.Module):
    """Takes lengths within the steps, which it uses as an index."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output[torch.arange(x.size(0)), lengths - 1]


def test_lengths_are_tried_within_the_steps() -> None:
    """Those of the example are beyond most numbers of steps that are tried."""
    model = Last().eval()
    call = ExampleCall.of(model, (torch.randn(3, 8, 4), torch.tensor([8, 3, 5])))
    axes = {"x": {0: "B", 1: "T"}, "lengths": {0: "B"}}
    reference = Reference(model)
    example = with_least_sizes(reference, DynamicCall.of(model, call, axes))
    assert {axis.least for axis in example.sizes} == {1}
    tried = [tuple(trial.sizes.values()) for trial in trials_of(reference, example)]
    assert tried == [(3, 8), (1, 2), (2, 4), (4, 7), (7, 32), (32, 1)]


class Scripted(nn.Module):
    """Takes a GRU and an LSTM, whose forwards torch.nn writes once for tensors and once for packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)
        self.lstm = nn.LSTM(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.lstm(self.gru(x)[0])[0]
        return output


class Unscriptable(Scripted):
    """Has one thing that TorchScript does not take."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = getattr(self, "gr" + "u")(x)[0]
        return output


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_model_that_the_process_has_scripted_before(tmp_path: Path) -> None:
    model = Scripted().eval()
    torch.jit.script(model)
    for _ in range(2):
        deploy_rnn.package(model, torch.randn(5, 2, 3), tmp_path / "model.pt")
    torch.jit.script(model)


def test_a_model_that_could_not_be_scripted_before(tmp_path: Path) -> None:
    model = Unscriptable().eval()
    for _ in range(2):
        report = deploy_rnn.package(model, torch.randn(5, 2, 3), tmp_path / "model.pt")
        assert report.source == "graph"


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_parametrised_weights_are_scripted(tmp_path: Path) -> None:
    norm = parametrizations.weight_norm(nn.Linear(3, 3))
    spectral = parametrizations.spectral_norm(nn.Linear(3, 3))
    gru = parametrizations.weight_norm(nn.GRU(3, 3), "weight_hh_l0")
    model = nn.Sequential(norm, spectral, gru).eval()
    x = torch.randn(5, 2, 3)
    before = model(x)[0]
    assert deploy_rnn.package(model, x, tmp_path / "m.pt").source == "code"
    assert torch.equal(model(x)[0], before)
    assert isinstance(norm.parametrizations, nn.ModuleDict)


class Framed(nn.Module):
    """Takes frames of 20 samples and more of a waveform, or whole frames only."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.rnn = nn.GRU(20, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unflatten(1, (-1, 20)) if self.whole else x.unfold(1, 20, 7)
        output: Tensor = self.rnn(frames)[0]
        return output


@pytest.mark.parametrize(("whole", "least"), [(False, 20), (True, 2)])
def test_sizes_are_tried_that_the_model_takes(whole: bool, least: int) -> None:
    """Those near 1 are too few for a frame, or not a whole number of frames."""
    model = Framed(whole).eval()
    call = ExampleCall.of(model, torch.randn(2, 160))
    reference = Reference(model)
    axes = {"x": {0: "B", 1: "T"}}
    example = with_least_sizes(reference, DynamicCall.of(model, call, axes))
    assert [axis.least for axis in example.sizes] == [1, least]
    tried = list(trials_of(reference, example))
    steps = {size for trial in tried for axis, size in trial.sizes.items() if axis.name == "T"}
    assert steps == ({160, 320} if whole else {160, 20, 21, 23, 26, 51})


class Answer(NamedTuple):
    scores: Tensor


@pytest.mark.parametrize(
    ("result", "name"), [(Answer(torch.ones(2)), "Answer"), (torch.ones(3).topk(1), "topk")]
)
def test_a_tuple_of_a_type_that_no_file_has(result: Any, name: str) -> None:
    """PyTorch says so when it writes the file."""
    message = (
        rf"^the model returns a tuple of type `{name}`, which a \.pt2 file does not; let `forward`"
    )
    with pytest.raises(ExportError, match=message), explained_errors():
        pytree.treespec_dumps(pytree.tree_structure(result))
