"""`Engine` on a bundle: inputs are batch-first, completed, and padded where that is harmless."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy_rnn.errors import BundleError, InputError, LoadError
from deploy_rnn.export import export_bundle
from deploy_rnn.runtime import CPU, CUDA, PROVIDERS
from deploy_rnn.serving import Engine
from deploy_rnn.serving.engine import opening, providers

KeepGraphs = Callable[..., Path]


def make_tokens(rows: int, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, size=(rows, steps))


def torch_scores(model: nn.Module, *args: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        scores: np.ndarray = model(*map(torch.from_numpy, args)).numpy()
        return scores


@pytest.mark.parametrize("steps", [1, 5, 15, 16, 17, 40])
def test_it_answers_as_the_model_does_at_any_length(
    steps: int, padded: Path, tagger: nn.Module
) -> None:
    engine = Engine(padded)
    engine.warm_up()
    tokens = make_tokens(3, steps)
    lengths = np.array([steps, 1, (steps + 1) // 2])
    scores = engine.run({"tokens": tokens, "lengths": lengths})["output"]
    np.testing.assert_allclose(scores, torch_scores(tagger, tokens, lengths), atol=1e-5)
    scores = engine.run({"tokens": tokens})["output"]
    np.testing.assert_allclose(scores, torch_scores(tagger, tokens), atol=1e-5)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_clients_see_batch_first_tensors(tmp_path: Path) -> None:
    layer = nn.LSTM(3, 5, 2, proj_size=4)
    export_bundle(
        layer, torch.randn(6, 2, 3), tmp_path / "b", streaming=True, forms=["scan"], sizes=(2,)
    )
    engine = Engine(tmp_path / "b")
    assert [str(spec) for spec in (*engine.inputs, *engine.outputs)] == [
        "input: float32 [B, T, 3]", "h0: float32 [B, 2, 4]", "c0: float32 [B, 2, 5]",
        "output: float32 [B, T, 4]", "h_n: float32 [B, 2, 4]", "c_n: float32 [B, 2, 5]",
    ]  # fmt: skip
    x = torch.randn(7, 3, 3)
    h0 = torch.randn(2, 3, 4)
    c0 = torch.randn(2, 3, 5)
    output, (h_n, c_n) = layer(x, (h0, c0))
    inputs = {
        name: array.transpose(0, 1).numpy()
        for name, array in {"input": x, "h0": h0, "c0": c0}.items()
    }
    outputs = engine.run(inputs)
    for name, expected in {"output": output, "h_n": h_n, "c_n": c_n}.items():
        np.testing.assert_allclose(outputs[name], expected.transpose(0, 1).detach(), atol=1e-6)
        assert outputs[name].flags.c_contiguous
    output_alone = engine.run({"input": inputs["input"]}, ["output"])["output"]
    np.testing.assert_allclose(output_alone, layer(x)[0].transpose(0, 1).detach(), atol=1e-6)


def test_nan_stays_in_its_row(tmp_path: Path) -> None:
    layer = nn.GRU(3, 5, bidirectional=True, batch_first=True)
    export_bundle(layer, torch.randn(2, 6, 3), tmp_path / "b", forms=["native"], sizes=(2,))
    engine = Engine(tmp_path / "b")
    x = np.random.default_rng(0).normal(size=(3, 6, 3)).astype(np.float32)
    clean = engine.run({"input": x})
    x[1, 2, 0] = np.nan
    x[1, 3, 0] = np.inf
    outputs = engine.run({"input": x})
    for name in ("output", "h_n"):
        np.testing.assert_array_equal(outputs[name][[0, 2]], clean[name][[0, 2]])
        assert not np.array_equal(outputs[name][1], clean[name][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "input `tokens` is missing; the inputs are tokens, lengths."),
        ({"x": np.zeros(3)}, "there is no input `x`; the inputs are tokens, lengths."),
        (
            {"tokens": np.zeros((2, 6))},
            "`tokens` is float64, the graph takes int64; use array.astype('int64').",
        ),
        (
            {"tokens": np.zeros(6, np.int64)},
            "`tokens` has shape [6], the graph takes tokens: int64 [B, T] with no",
        ),
        ({"tokens": np.zeros((0, 6), np.int64)}, "`tokens` has shape [0, 6], the graph takes"),
        ({"lengths": np.array([6, 6, 6])}, "`lengths` has B=3, `tokens` has B=2."),
        ({"lengths": np.array([6, 0])}, "`lengths` has 0 in row 1; a row has 1 to 6 steps."),
        ({"lengths": np.array([7, 6])}, "`lengths` has 7 in row 0; a row has 1 to 6 steps."),
        ({"lengths": np.array([-1, 6])}, "`lengths` has -1 in row 0; a row has 1 to 6 steps."),
        (
            {"tokens": np.full((2, 6), 20)},
            "`tokens` has 20 at [0, 0]; must be from 0 to 19: it is an index into a table",
        ),
        (
            {"tokens": np.array([[1, 2, 3, 4, 5, 6], [7, 8, -1, 20, -1, -1]])},
            "`tokens` has -1 at [1, 2]; must be from 0 to 19",
        ),
    ],
)
def test_what_it_cannot_take_is_refused_by_name(
    change: dict[str, Any], message: str, padded: Path
) -> None:
    inputs = {"tokens": make_tokens(2, 6), "lengths": np.array([6, 3])} | change
    with pytest.raises(InputError) as raised:
        Engine(padded).run({name: array for name, array in inputs.items() if array is not None})
    assert message in str(raised.value)


def test_indices_beyond_the_end_of_a_row_do_not_matter(padded: Path) -> None:
    tokens = make_tokens(2, 6)
    engine = Engine(padded)
    lengths = np.array([6, 3])
    expected = engine.run({"tokens": tokens, "lengths": lengths})
    for padding in (-1, 20, 2**62, -(2**63)):
        tokens[1, 3:] = padding
        outputs = engine.run({"tokens": tokens, "lengths": lengths})
        np.testing.assert_array_equal(outputs["output"], expected["output"])
        assert tokens[1, 4] == padding  # the caller's array is not changed
    with pytest.raises(InputError, match=r"at \[1, 3\]"):
        engine.run({"tokens": tokens})


def test_a_bundle_that_is_damaged_or_newer_is_refused(padded: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: manifest\.json is missing"):
        Engine(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(padded, folder)
    (folder / "native.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="is not the file that was exported: its sha256 is"):
        Engine(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(BundleError, match="has version 99; this deploy-rnn reads up to"):
        Engine(folder)


def test_a_provider_that_ignores_lengths_gets_no_graph_that_needs_it_to_read_them(
    padded: Path,
    tagger: nn.Module,
    tmp_path: Path,
    keep_graphs: KeepGraphs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deaf = replace(PROVIDERS[CPU], reads_lengths=False)
    monkeypatch.setitem(PROVIDERS, CPU, deaf)  # type: ignore[misc]
    opened: list[str] = []

    def open_runner(model: Any, **options: Any) -> Any:
        opened.append(Path(model.shown_as).name)
        return providers.open_runner(model, **options)

    monkeypatch.setattr(opening, "open_runner", open_runner)
    both = keep_graphs(padded, tmp_path / "both", "native.onnx", "unrolled-16.onnx")
    tokens = make_tokens(2, 7)
    lengths = np.array([7, 2])
    scores = Engine(both).run({"tokens": tokens, "lengths": lengths})["output"]
    np.testing.assert_allclose(scores, torch_scores(tagger, tokens, lengths), atol=1e-5)
    assert set(opened) == {"unrolled-16.onnx"}
    native = keep_graphs(padded, tmp_path / "native", "native.onnx")
    message = "CPUExecutionProvider ignores the lengths of form 'native', and .* row_ends='held'"
    for path in (native, native / "native.onnx"):
        with pytest.raises(LoadError, match=message):
            Engine(path)


def test_a_bundle_in_two_precisions_is_opened_in_the_one_that_is_named(
    padded: Path, tmp_path: Path
) -> None:
    """Its graphs would race, and the numbers depend on which of them wins."""
    folder = tmp_path / "copy"
    shutil.copytree(padded, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["graphs"][0]["precision"] = "float64"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        BundleError, match="has graphs in float64 and float32; `precision` must say which"
    ):
        Engine(folder)
    assert Engine(folder, precision="float32").precision == "float32"


def test_only_the_steps_that_there_are_graphs_for(
    exact: Path, tagger: nn.Module, tmp_path: Path, keep_graphs: KeepGraphs
) -> None:
    engine = Engine(keep_graphs(exact, tmp_path / "b", "unrolled-4.onnx"))
    engine.warm_up()
    tokens = make_tokens(3, 4)
    scores = engine.run({"tokens": tokens})["output"]
    np.testing.assert_allclose(scores, torch_scores(tagger, tokens), atol=1e-5)
    with pytest.raises(
        InputError,
        match="the inputs have 5 steps; the bundle's graphs take exactly 4: export another",
    ):
        engine.run({"tokens": make_tokens(3, 5)})


@pytest.mark.parametrize("buckets", [["8", "16"], ["16"]])
def test_a_bundle_of_buckets_pads_all_that_is_shorter(
    buckets: list[str], padded: Path, tagger: nn.Module, tmp_path: Path, keep_graphs: KeepGraphs
) -> None:
    engine = Engine(
        keep_graphs(padded, tmp_path / "b", *(f"unrolled-{steps}.onnx" for steps in buckets))
    )
    engine.warm_up()
    tokens = make_tokens(3, 11)
    scores = engine.run({"tokens": tokens})["output"]
    np.testing.assert_allclose(scores, torch_scores(tagger, tokens), atol=1e-5)
    with pytest.raises(
        InputError,
        match="the inputs have 17 steps; the bundle's graphs take at most 16: export another",
    ):
        engine.run({"tokens": make_tokens(3, 17)})


def test_a_model_without_a_batch_axis(tmp_path: Path) -> None:
    layer = nn.RNN(3, 5)
    export_bundle(layer, torch.randn(6, 3), tmp_path / "b", forms=["native"], sizes=(2,))
    engine = Engine(tmp_path / "b")
    x = torch.randn(4, 3)
    engine.warm_up()
    assert str(engine.inputs[0]) == "input: float32 [T, 3]"
    np.testing.assert_allclose(
        engine.run({"input": x.numpy()})["output"], layer(x)[0].detach(), atol=1e-6
    )


@pytest.mark.cuda
@pytest.mark.usefixtures("onnxruntime_cuda")
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_captured_graphs_answer_on_the_gpu(rows: int, padded: Path, tagger: nn.Module) -> None:
    engine = Engine(padded, provider=CUDA)
    engine.warm_up()
    for seed in range(3):
        for steps in (16, 11, 40):
            tokens = make_tokens(rows, steps, seed)
            lengths = np.full(rows, steps)
            lengths[0] = 1
            scores = engine.run({"tokens": tokens, "lengths": lengths})["output"]
            np.testing.assert_allclose(scores, torch_scores(tagger, tokens, lengths), atol=1e-4)


@pytest.mark.cuda
@pytest.mark.usefixtures("onnxruntime_cuda")
def test_a_long_graph_answers_on_the_gpu(tmp_path: Path) -> None:
    """onnxruntime cannot capture the Concat of more than 32 steps."""
    layer = nn.GRU(3, 5, bidirectional=True, batch_first=True)
    x = torch.randn(2, 40, 3)
    export_bundle(layer, x, tmp_path / "b", forms=["unrolled"], buckets=[40], sizes=(2,))
    engine = Engine(tmp_path / "b", provider=CUDA)
    engine.warm_up()
    for rows in (1, 2, 4):
        x = torch.randn(rows, 40, 3)
        output = engine.run({"input": x.numpy()})["output"]
        np.testing.assert_allclose(output, layer(x)[0].detach(), atol=1e-5)
