"""`Engine`: a graph answers, and what it cannot take is refused before it reaches onnxruntime."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy_rnn.errors import InputError, LoadError, ProviderError, RunError
from deploy_rnn.export import export_onnx
from deploy_rnn.runtime import CUDA, TensorSpec, placement
from deploy_rnn.serving import Engine
from deploy_rnn.serving.engine.feeds import _bind_sizes


@pytest.fixture(scope="module")
def layer() -> nn.RNN:
    return nn.RNN(3, 5, 2, bidirectional=True)


@pytest.fixture(scope="module")
def path(layer: nn.RNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("engine") / "rnn.onnx"
    export_onnx(layer, (torch.randn(4, 2, 3), torch.randn(4, 2, 5)), file, form="unrolled")
    return file


def make_inputs(batch: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(batch)
    return {
        "input": random.standard_normal((4, batch, 3), np.float32),
        "h0": random.standard_normal((4, batch, 5), np.float32),
    }


def example(engine: Engine) -> dict[str, np.ndarray]:
    inputs = {}
    for spec in engine.inputs:
        shape = [size if isinstance(size, int) else 2 for size in spec.shape]
        inputs[spec.name] = np.ones(shape, spec.dtype)
    return inputs


def test_it_says_what_it_takes_and_gives(path: Path) -> None:
    engine = Engine(path)
    assert engine.inputs == (
        TensorSpec("input", "float32", (4, "B", 3)), TensorSpec("h0", "float32", (4, "B", 5)),
    )  # fmt: skip
    assert [str(spec) for spec in engine.outputs] == [
        "output: float32 [4, B, 10]",
        "h_n: float32 [4, B, 5]",
    ]


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_it_answers_as_the_layer_does(batch: int, layer: nn.RNN, path: Path) -> None:
    inputs = make_inputs(batch)
    outputs = Engine(path, threads=1).run(inputs)
    output, h_n = layer(torch.from_numpy(inputs["input"]), torch.from_numpy(inputs["h0"]))
    np.testing.assert_allclose(outputs["output"], output.detach(), atol=1e-6)
    np.testing.assert_allclose(outputs["h_n"], h_n.detach(), atol=1e-6)


def test_only_the_outputs_asked_for(path: Path) -> None:
    engine = Engine(path)
    assert list(engine.run(make_inputs(2), ["h_n"])) == ["h_n"]
    with pytest.raises(InputError, match="there is no output `y`; the outputs are output, h_n"):
        engine.run(make_inputs(2), ["y"])
    for wrong in ("output", []):
        with pytest.raises(
            InputError, match=r"must be a list of names, or None for all \(output, h_n\)"
        ):
            engine.run(make_inputs(2), wrong)
    with pytest.raises(InputError, match="`inputs` must be a dict of arrays by name, got list"):
        engine.run(list(make_inputs(2).values()))
    with pytest.raises(ValueError, match=r"`threads` \(=0\) must be a whole number from 1"):
        Engine(path, threads=0)


def test_a_wrong_layout_is_refused_with_the_right_one() -> None:
    time_first = [
        TensorSpec("input", "float32", ("T", "B", 3)),
        TensorSpec("h0", "float32", (1, "B", 4)),
    ]
    arrays = {"input": np.zeros((2, 6, 3), "float32"), "h0": np.zeros((1, 2, 4), "float32")}
    message = (
        r"`h0` has B=2, `input` has B=6\. This model takes time first: input: float32 \[T, B, 3\]\."
    )
    with pytest.raises(InputError, match=message):
        _bind_sizes(time_first, arrays)
    batch_first = [TensorSpec("input", "float32", ("B", "T", 3))]
    with pytest.raises(InputError, match=r"no size 0\. This model takes batch first: input: "):
        _bind_sizes(batch_first, {"input": np.zeros((3, 2, 6), "float32")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h0": None}, "input `h0` is missing; the inputs are input, h0."),
        ({"x": np.zeros(3)}, "there is no input `x`; the inputs are input, h0."),
        ({"input": [[1.0]]}, "`input` must be a numpy array of float32, got list."),
        (
            {"input": np.zeros((4, 2, 3))},
            "`input` is float64, the graph takes float32; use array.astype('float32').",
        ),
        (
            {"input": np.zeros((4, 2), np.float32)},
            "`input` has shape [4, 2], the graph takes input: float32 [4, B, 3]",
        ),
        (
            {"input": np.zeros((5, 2, 3), np.float32)},
            "`input` has shape [5, 2, 3], the graph takes",
        ),
        (
            {"input": np.zeros((4, 0, 3), np.float32)},
            "`input` has shape [4, 0, 3], the graph takes",
        ),
        ({"h0": np.zeros((4, 3, 5), np.float32)}, "`h0` has B=3, `input` has B=2."),
    ],
)
def test_what_it_cannot_take_is_refused_by_name(
    change: dict[str, Any], message: str, path: Path
) -> None:
    inputs = {**make_inputs(2), **change}
    with pytest.raises(InputError) as raised:
        Engine(path).run({name: array for name, array in inputs.items() if array is not None})
    assert message in str(raised.value)


def test_a_file_that_is_missing_or_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a file"):
        Engine(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("hello", encoding="utf-8")
    with pytest.raises(LoadError, match="onnxruntime cannot open"):
        Engine(tmp_path / "text.onnx")


def test_a_provider_that_is_missing_or_does_not_start_is_an_error(path: Path) -> None:
    with pytest.raises(
        ProviderError, match=r"has no NonsenseExecutionProvider; it has .*CPUExecutionProvider"
    ):
        Engine(path, provider="NonsenseExecutionProvider")
    if not torch.cuda.is_available():
        with pytest.raises(ProviderError, match=f"has no {CUDA}|{CUDA} did not start"):
            Engine(path, provider=CUDA)


def test_many_threads_at_once(path: Path) -> None:
    engine = Engine(path)
    expected = {batch: engine.run(make_inputs(batch))["output"] for batch in range(1, 9)}
    wrong: list[int] = []

    def run(batch: int) -> None:
        for _ in range(20):
            if not np.array_equal(engine.run(make_inputs(batch))["output"], expected[batch]):
                wrong.append(batch)

    threads = [threading.Thread(target=run, args=(batch,)) for batch in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fork_does_not_wait_for_threads_that_it_lacks(
    threads: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(path, threads=threads)
    inputs = example(engine)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    if threads == 1:
        engine.run(inputs)
    else:
        with pytest.raises(RunError, match="process 1 is a fork of it and has none of its threads"):
            engine.run(inputs)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_cannot_be_sent_to_another_process(duplicate: Any, path: Path) -> None:
    with pytest.raises(TypeError, match="this Engine cannot be pickled or copied"):
        duplicate(Engine(path))


@pytest.mark.parametrize("outputs", [5, "output", [], iter(["output"])])
def test_the_outputs_must_be_a_list_of_names(outputs: Any, path: Path) -> None:
    engine = Engine(path)
    with pytest.raises(InputError, match="must be a list of names, or None for all"):
        engine.run(example(engine), outputs)


def test_a_mask_is_not_ignored(path: Path) -> None:
    engine = Engine(path)
    masked = {name: np.ma.array(array) for name, array in example(engine).items()}
    with pytest.raises(InputError, match=r"is a masked array.*use array\.filled"):
        engine.run(masked)


def test_it_runs_where_torch_and_onnx_are_not_installed(path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'onnx_ir'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from deploy_rnn.serving import Engine\n"
        "run = Engine(sys.argv[1]).run({'input': np.ones((4, 2, 3), 'f'), 'h0': np.ones((4, 2, 5), 'f')})\n"
        "print({name: array.shape for name, array in run.items()})"
    )
    printed = subprocess.check_output([sys.executable, "-c", code, path], text=True)
    assert printed.strip() == "{'output': (4, 2, 10), 'h_n': (4, 2, 5)}"


def test_placement_counts_the_nodes_that_ran(path: Path) -> None:
    ran = placement(path, "CPUExecutionProvider", make_inputs(2))
    assert ran.keys() == {"CPUExecutionProvider"}
    assert (
        ran["CPUExecutionProvider"] >= 16
    )  # 2 layers, 2 directions, 4 steps: each step one fused node


@pytest.mark.cuda
@pytest.mark.usefixtures("onnxruntime_cuda")
def test_it_answers_on_the_gpu(layer: nn.RNN, path: Path) -> None:
    inputs = make_inputs(5)
    outputs = Engine(path, provider=CUDA).run(inputs)
    output, h_n = layer(torch.from_numpy(inputs["input"]), torch.from_numpy(inputs["h0"]))
    np.testing.assert_allclose(outputs["output"], output.detach(), atol=1e-5)
    np.testing.assert_allclose(outputs["h_n"], h_n.detach(), atol=1e-5)
    ran = placement(path, CUDA, inputs)
    assert ran[CUDA] >= 2 * 16  # a Gemm and an activation each
    assert ran.get("CPUExecutionProvider", 0) <= 4
