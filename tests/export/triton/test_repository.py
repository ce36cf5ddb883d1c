"""What is written for Triton: read with Triton's own messages, and graphs run as its onnxruntime backend runs them.

tests/serving/triton runs the Python backend in a real Triton; that backend is not in the wheel that has it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from google.protobuf import text_format
from torch import nn
from tritonclient.grpc import model_config_pb2

from deploy_rnn.cli import main
from deploy_rnn.errors import ExportError
from deploy_rnn.export import export_bundle, write_triton_model
from deploy_rnn.export.triton import repository
from deploy_rnn.export.triton.config import State
from deploy_rnn.serving.engine.batch_engine import BatchEngine

DTYPES = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)"}


@pytest.fixture(scope="module")
def lstm() -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(3, 4, 2).eval()


@pytest.fixture(scope="module")
def gru() -> nn.GRU:
    torch.manual_seed(1)
    return nn.GRU(3, 4, bidirectional=True).eval()


@pytest.fixture(scope="module")
def bundles(lstm: nn.LSTM, gru: nn.GRU, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`stream`, which carries its states, and `padded`, with lengths; both time-first."""
    folder = tmp_path_factory.mktemp("bundles")
    x = torch.randn(5, 2, 3)
    export_bundle(lstm, x, folder / "stream", forms=["native"], streaming=True, sizes=(2,))
    lengths = {"lengths": torch.tensor([5, 2])}
    export_bundle(gru, x, folder / "padded", kwargs=lengths, forms=["scan"], sizes=(2,))
    return folder


def read_config(version: Path) -> Any:
    text = (version.parent / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def open_graph(version: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["stream", "padded"])
def test_a_graph_has_what_its_config_says(name: str, bundles: Path, tmp_path: Path) -> None:
    version = write_triton_model(bundles / name, tmp_path / "models", backend="onnxruntime")
    assert version == tmp_path / "models" / name / "1"
    config = read_config(version)
    assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 32)
    session = open_graph(version)
    states = config.sequence_batching.state
    assert bool(states) == (name == "stream")
    check_tensors(session.get_inputs(), config.input, {state.input_name: state for state in states})
    check_tensors(
        session.get_outputs(), config.output, {state.output_name: state for state in states}
    )


def check_tensors(graph_tensors: Any, config_tensors: Any, states: dict[str, Any]) -> None:
    described = {tensor.name: tensor for tensor in config_tensors} | states
    assert {tensor.name for tensor in graph_tensors} == described.keys()
    for tensor in graph_tensors:
        spec = described[tensor.name]
        has_no_axis = getattr(spec, "reshape", None) is not None and spec.HasField("reshape")
        dims = [] if has_no_axis else list(spec.dims)
        batch, *sizes = tensor.shape
        assert isinstance(batch, str), tensor
        assert [size if isinstance(size, int) else -1 for size in sizes] == dims
        assert DTYPES[model_config_pb2.DataType.Name(spec.data_type)] == tensor.type


def test_states_have_names_that_the_backend_pairs(bundles: Path, tmp_path: Path) -> None:
    version = write_triton_model(bundles / "stream", tmp_path / "models", backend="onnxruntime")
    states = read_config(version).sequence_batching.state
    by_input = sorted(states, key=lambda state: state.input_name)
    assert by_input == sorted(states, key=lambda state: state.output_name)
    names = [name for state in states for name in (state.input_name, state.output_name)]
    assert len(names) == 4
    for name in names:
        assert [other for other in names if other.startswith(name)] == [name]
    text = (version.parent / "config.pbtxt").read_text(encoding="utf-8")
    assert "# state_0_in, state_0_out: h0, h_n\n# state_1_in, state_1_out: c0, c_n\n" in text


def test_sequences_share_runs_and_triton_carries_their_states(
    lstm: nn.LSTM, bundles: Path, tmp_path: Path
) -> None:
    """As the backend does: the first state is the initial one, chunks of several sequences are one batch."""
    version = write_triton_model(bundles / "stream", tmp_path / "models", backend="onnxruntime")
    config = read_config(version)
    session = open_graph(version)
    x = np.random.default_rng(0).standard_normal((3, 9, 3)).astype(np.float32)
    carried = {}
    for state in config.sequence_batching.state:
        (initial,) = state.initial_state
        assert initial.zero_data
        carried[state.input_name] = np.zeros((3, *initial.dims), np.float32)
    chunks = []
    for begin, end in ((0, 4), (4, 5), (5, 9)):
        names = [tensor.name for tensor in session.get_outputs()]
        answers = session.run(names, {"input": x[:, begin:end], **carried})
        outputs = dict(zip(names, answers, strict=True))
        chunks.append(outputs["output"])
        for state in config.sequence_batching.state:
            carried[state.input_name] = outputs[state.output_name]
    expected = lstm(torch.from_numpy(x).transpose(0, 1))[0].transpose(0, 1).detach().numpy()
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), expected, atol=1e-5)


def test_rows_with_lengths_share_a_run(gru: nn.GRU, bundles: Path, tmp_path: Path) -> None:
    version = write_triton_model(bundles / "padded", tmp_path / "models", backend="onnxruntime")
    assert "Triton does not pad" in (version.parent / "config.pbtxt").read_text(encoding="utf-8")
    x = torch.randn(3, 6, 3)
    lengths = torch.tensor([6, 2, 5])
    answer = open_graph(version).run(
        ["output", "h_n"], {"input": x.numpy(), "lengths": lengths.numpy()}
    )
    for row, length in enumerate(lengths.tolist()):
        output, h_n = gru(x[row, :length, None])
        np.testing.assert_allclose(answer[0][row, :length], output[:, 0].detach(), atol=1e-5)
        np.testing.assert_allclose(answer[1][row], h_n[:, 0].detach(), atol=1e-5)


@pytest.mark.parametrize("name", ["stream", "padded"])
def test_the_python_backend_gets_the_bundle(name: str, bundles: Path, tmp_path: Path) -> None:
    version = write_triton_model(bundles / name, tmp_path / "models")
    config = read_config(version)
    assert (config.backend, config.max_batch_size) == ("python", 128)
    assert config.HasField("sequence_batching") == (name == "stream")
    assert config.HasField("dynamic_batching") == (name == "padded")
    assert [tensor.name for tensor in config.input if tensor.optional] == (
        ["lengths"] if name == "padded" else []
    )
    assert all(tensor.allow_ragged_batch for tensor in config.input)
    source = sorted(path.name for path in (bundles / name).iterdir())
    assert sorted(path.name for path in (version / "bundle").iterdir()) == source
    assert "class TritonPythonModel" in (version / "model.py").read_text(encoding="utf-8")


def test_rows_that_affect_each_other_are_not_put_together(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchEngine, "rows_are_independent", lambda engine: False)
    config = read_config(
        write_triton_model(bundles / "padded", tmp_path / "models", backend="onnxruntime")
    )
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(tensor.dims) for tensor in config.input] == [[-1, -1, 3], [-1]]
    with pytest.raises(
        ExportError, match=r"its rows affect each other; .* Use the backend 'python'"
    ):
        write_triton_model(bundles / "stream", tmp_path / "models", backend="onnxruntime")


def test_a_graph_for_one_number_of_steps(gru: nn.GRU, tmp_path: Path) -> None:
    export_bundle(gru, torch.randn(3, 2, 3), tmp_path / "gru", forms=["unrolled"], sizes=(2,))
    config = read_config(
        write_triton_model(tmp_path / "gru", tmp_path / "models", backend="onnxruntime")
    )
    assert [list(tensor.dims) for tensor in config.input] == [[3, 3]]
    assert [list(tensor.dims) for tensor in config.output] == [[3, 8], [2, 4]]


def test_a_second_time_is_version_2_and_all_else_stays(bundles: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    other = models / "other"
    other.mkdir(parents=True)
    (other / "config.pbtxt").write_text("mine", encoding="utf-8")
    write_triton_model(bundles / "stream", models)
    config = models / "stream" / "config.pbtxt"
    edited = config.read_text(encoding="utf-8").replace("count: 1", "count: 2")
    config.write_text(edited, encoding="utf-8")
    assert write_triton_model(bundles / "stream", models) == models / "stream" / "2"
    assert config.read_text(encoding="utf-8") == edited
    assert sorted(path.name for path in models.iterdir()) == ["other", "stream"]
    assert sorted(path.name for path in (models / "stream").iterdir()) == ["1", "2", "config.pbtxt"]
    assert (other / "config.pbtxt").read_text(encoding="utf-8") == "mine"


def test_another_interface_replaces_a_config_unless_it_was_edited(
    bundles: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    write_triton_model(bundles / "stream", models, name="m")
    write_triton_model(bundles / "padded", models, name="m")
    config = models / "m" / "config.pbtxt"
    assert "lengths" in config.read_text(encoding="utf-8")
    with config.open("a", encoding="utf-8") as file:
        file.write("# mine\n")
    with pytest.raises(
        ExportError, match=r"is not as deploy-rnn wrote it, .* change the file by hand"
    ):
        write_triton_model(bundles / "stream", models, name="m")
    assert sorted(path.name for path in (models / "m").iterdir()) == ["1", "2", "config.pbtxt"]


def test_a_graph_that_differs_is_not_written(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the backend had paired a state with another."""
    write_graph = repository.write_graph

    def write_swapped(source: Path, signature: Any, states: Any, folder: Path) -> None:
        first, second = states
        swapped = [swap(first, second), swap(second, first)]
        write_graph(source, signature, swapped, folder)

    def swap(state: State, other: State) -> State:
        return replace(state, bundle_input=other.bundle_input, bundle_output=other.bundle_output)

    monkeypatch.setattr(repository, "write_graph", write_swapped)
    models = tmp_path / "models"
    with pytest.raises(ExportError, match=r"output `.*` of the graph for Triton differs"):
        write_triton_model(bundles / "stream", models, backend="onnxruntime")
    assert not models.exists()


def test_what_cannot_be_written(bundles: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"`backend` \(='tensorrt'\) must be 'python' or 'onnx"):
        write_triton_model(bundles / "stream", tmp_path / "models", backend="tensorrt")
    with pytest.raises(ExportError, match=r"`name` \(='a/b'\) must be the plain name"):
        write_triton_model(bundles / "stream", tmp_path / "models", name="a/b")
    with pytest.raises(FileNotFoundError, match="the folder around"):
        write_triton_model(bundles / "stream", tmp_path / "nothing" / "models")
    (tmp_path / "models" / "stream").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"exists and has no config\.pbtxt"):
        write_triton_model(bundles / "stream", tmp_path / "models")


def test_command(tmp_path: Path) -> None:
    torch.save(nn.GRU(3, 4).state_dict(), tmp_path / "gru.pt")
    models = str(tmp_path / "models")
    command = [
        "export",
        str(tmp_path / "gru.pt"),
        "--triton",
        models,
        "--form",
        "native",
        "--size",
        "2",
        "--json",
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["triton"] == str(tmp_path / "models" / "gru" / "1")
    assert read_config(tmp_path / "models" / "gru" / "1").name == "gru"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "'--triton'"),
        (["--triton-backend", "python", "-o", "x"], "--triton-backend needs --triton"),
        (["--triton", "models", "-o", "x.onnx"], "--triton needs a bundle"),
    ],
)
def test_command_misused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["export", "nothing:model", *options])
    assert result.exit_code == 2
    assert message in result.stderr
