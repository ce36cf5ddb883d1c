"""Models that `write_triton_model` wrote, in the Python backend of a real Triton: the answers are PyTorch's."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from torch import Tensor, nn
from tritonclient.utils import InferenceServerException

from benchmarks.serving.contestants import run_triton_on
from deploy_rnn.export import export_bundle, write_triton_model
from tests.serving.triton.addresses import Addresses

pytestmark = pytest.mark.triton

DATATYPES = {"float32": "FP32", "int64": "INT64"}


class Weighted(nn.Module):
    """x (B, T, 3) and weight (B,) -> score (B,): inputs and outputs without an axis beside that of the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 4, batch_first=True)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        score: Tensor = self.rnn(x)[0].sum((1, 2)) * weight
        return score


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "padded": nn.GRU(3, 4, bidirectional=True).eval(),
        "stream": nn.LSTM(3, 4, 2).eval(),
        "weighted": Weighted().eval(),
    }


@pytest.fixture(scope="module")
def addresses(
    models: dict[str, Any], triton_venv: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Addresses]:
    """Of a Triton with the models; version 1 of `padded` is another model than version 2."""
    bundles = tmp_path_factory.mktemp("bundles")
    repository = tmp_path_factory.mktemp("triton") / "repository"
    x = torch.randn(5, 2, 3)
    lengths = {"lengths": torch.tensor([5, 2])}
    options: dict[str, Any] = {"forms": ["native"], "sizes": (2,)}
    old = nn.GRU(3, 4, bidirectional=True).eval()
    for model in (old, models["padded"]):
        export_bundle(model, x, bundles / "padded", kwargs=lengths, **options)
        write_triton_model(bundles / "padded", repository)
    export_bundle(models["stream"], x, bundles / "stream", streaming=True, **options)
    args = (torch.randn(2, 5, 3), torch.randn(2))
    export_bundle(models["weighted"], args, bundles / "weighted", **options)
    for name in ("stream", "weighted"):
        write_triton_model(bundles / name, repository)
    with run_triton_on(repository, triton_venv) as running:
        yield Addresses(*(f"127.0.0.1:{running.ports[name]}" for name in ("http", "grpc")))


def infer(
    module: Any, client: Any, model: str, arrays: dict[str, np.ndarray], **options: Any
) -> Any:
    tensors = []
    for name, array in arrays.items():
        tensor = module.InferInput(name, array.shape, DATATYPES[array.dtype.name])
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return client.infer(model, tensors, **options)


@pytest.fixture(params=["http", "grpc"])
def ask(request: pytest.FixtureRequest, addresses: Addresses) -> Iterator[Any]:
    """A function: the name of a model, arrays, options of `infer` -> its answer."""
    module = {"http": triton_http, "grpc": triton_grpc}[request.param]
    with module.InferenceServerClient(getattr(addresses, request.param)) as client:
        yield lambda *args, **options: infer(module, client, *args, **options)


def test_rows_of_unlike_length(models: dict[str, Any], ask: Any) -> None:
    """Padded in one request; the second version answers."""
    x = np.random.default_rng(0).standard_normal((3, 6, 3)).astype(np.float32)
    lengths = np.array([[6], [2], [5]])
    answer = ask("padded", {"input": x, "lengths": lengths})
    for row, length in enumerate(lengths[:, 0]):
        check_row(models["padded"], x[row, :length], answer, row)


def check_row(model: nn.GRU, x: np.ndarray, answer: Any, row: int = 0) -> None:
    output, h_n = model(torch.from_numpy(x)[:, None])
    np.testing.assert_allclose(
        answer.as_numpy("output")[row, : len(x)], output[:, 0].detach(), atol=1e-5
    )
    np.testing.assert_allclose(answer.as_numpy("h_n")[row], h_n[:, 0].detach(), atol=1e-5)


def test_requests_of_unlike_length_at_a_time(models: dict[str, Any], addresses: Addresses) -> None:
    """Lengths are left out: Triton hands over requests of one row each. (The client for HTTP is for one thread.)"""
    random = np.random.default_rng(1)
    rows = [random.standard_normal((1, steps, 3)).astype(np.float32) for steps in range(1, 33)]
    with (
        triton_grpc.InferenceServerClient(addresses.grpc) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = pool.map(lambda row: infer(triton_grpc, client, "padded", {"input": row}), rows)
        for row, answer in zip(rows, answers, strict=True):
            check_row(models["padded"], row[0], answer)


@pytest.mark.parametrize("ids", [(7, 8), ("seven", "eight"), (9, "9")])
def test_streams_take_turns(models: dict[str, Any], ask: Any, ids: Any, request: Any) -> None:
    x = np.random.default_rng(2).standard_normal((2, 6, 3)).astype(np.float32)
    chunks: dict[Any, list[np.ndarray]] = {name: [] for name in ids}
    for begin, end in ((0, 3), (3, 4), (4, 6)):
        for row, name in enumerate(ids):
            answer = ask(
                "stream",
                {"input": x[row : row + 1, begin:end]},
                sequence_id=name,
                sequence_start=begin == 0,
                sequence_end=end == 6,
            )
            chunks[name].append(answer.as_numpy("output")[0])
    for row, name in enumerate(ids):
        expected = models["stream"](torch.from_numpy(x[row]))[0].detach().numpy()
        np.testing.assert_allclose(np.concatenate(chunks[name]), expected, atol=1e-5)


def test_many_streams_at_a_time(models: dict[str, Any], addresses: Addresses) -> None:
    """Chunks of several sequences come in one batch."""
    rows = np.random.default_rng(4).standard_normal((24, 6, 3)).astype(np.float32)
    with (
        triton_grpc.InferenceServerClient(addresses.grpc) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def send(row: int) -> np.ndarray:
            outputs = []
            for begin in (0, 2, 4):
                options = {
                    "sequence_id": 100 + row,
                    "sequence_start": begin == 0,
                    "sequence_end": begin == 4,
                }
                chunk = {"input": rows[row : row + 1, begin : begin + 2]}
                answer = infer(triton_grpc, client, "stream", chunk, **options)
                outputs.append(answer.as_numpy("output")[0])
            return np.concatenate(outputs)

        answers = list(pool.map(send, range(len(rows))))
    expected = models["stream"](torch.from_numpy(rows).transpose(0, 1))[0].transpose(0, 1)
    np.testing.assert_allclose(np.stack(answers), expected.detach().numpy(), atol=1e-5)


def test_a_sequence_that_was_not_started_is_refused(ask: Any) -> None:
    x = np.zeros((1, 2, 3), np.float32)
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        ask("stream", {"input": x}, sequence_id=4711)


def test_a_second_start_begins_anew(models: dict[str, Any], ask: Any) -> None:
    x = np.ones((1, 2, 3), np.float32)
    first = ask("stream", {"input": x}, sequence_id=5, sequence_start=True)
    second = ask("stream", {"input": x}, sequence_id=5, sequence_start=True)
    np.testing.assert_array_equal(first.as_numpy("output"), second.as_numpy("output"))


def test_inputs_and_outputs_with_no_axis_but_that_of_the_rows(
    models: dict[str, Any], ask: Any
) -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((3, 4, 3)).astype(np.float32)
    weight = random.standard_normal((3, 1)).astype(np.float32)
    answer = ask("weighted", {"x": x, "weight": weight}).as_numpy("output")
    expected = models["weighted"](torch.from_numpy(x), torch.from_numpy(weight[:, 0]))
    assert answer.shape == (3, 1)
    np.testing.assert_allclose(answer[:, 0], expected.detach(), atol=1e-5)


def test_what_deploy_rnn_refuses_is_the_client_s_mistake(ask: Any) -> None:
    x = np.zeros((2, 6, 3), np.float32)
    with pytest.raises(InferenceServerException, match=r"`lengths` has 9 in row 0") as raised:
        ask("padded", {"input": x, "lengths": np.array([[9], [1]])})
    assert raised.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_an_output_by_name(models: dict[str, Any], addresses: Addresses) -> None:
    x = np.zeros((1, 2, 3), np.float32)
    wanted = [triton_http.InferRequestedOutput("h_n")]
    with triton_http.InferenceServerClient(addresses.http) as client:
        answer = infer(triton_http, client, "padded", {"input": x}, outputs=wanted)
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["h_n"]
