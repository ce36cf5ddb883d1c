"""KServe's own package: its clients ask our server, and its models read our manifests. `make kserve` installs it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.scheduling.model import Model

pytestmark = pytest.mark.kserve

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PYTHON = os.environ.get("KSERVE_PYTHON", str(ROOT / "build" / "kserve-venv" / "bin" / "python"))
TOKENS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
"""Rows of unlike length."""


def run_script(name: str, *args: object) -> str:
    command = [PYTHON, HERE / name, *map(str, args)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def answers(real_bundles: Path, run_server: Any) -> Any:
    """What the clients of each protocol were told."""
    repository = Repository(real_bundles, lambda path, name: Model(path, name=name, threads=1))
    repository.load_all()
    with run_server(repository) as server:
        told = run_script(
            "clients.py", server.http_address, server.grpc_address, json.dumps(TOKENS)
        )
    repository.close(10)
    return json.loads(told)


@pytest.fixture
def expected(real_models: dict[str, nn.Module]) -> list[np.ndarray]:
    """PyTorch's answer to each row."""
    return [real_models["tagger"](torch.tensor([row]))[0].detach().numpy() for row in TOKENS]


@pytest.mark.parametrize(
    ("protocol", "kind"), [("v2", "JSON"), ("v2", "binary"), ("grpc", "typed"), ("grpc", "raw")]
)
def test_infer(
    answers: dict[str, Any], expected: list[np.ndarray], protocol: str, kind: str
) -> None:
    output = answers[protocol][kind]
    assert (output["name"], output["shape"]) == ("output", [1, 3, 10])
    values = np.array(output["values"]).reshape(1, 3, 10)
    np.testing.assert_allclose(values[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["predict", "predict objects"])
def test_predict(answers: dict[str, Any], expected: list[np.ndarray], kind: str) -> None:
    for prediction, row in zip(answers["v1"][kind], expected, strict=True):
        np.testing.assert_allclose(prediction, row, atol=1e-5)


def test_what_is_ready(answers: dict[str, Any]) -> None:
    for protocol in ("v2", "grpc"):
        assert [answers[protocol][key] for key in ("server live", "server ready", "ready")] == [
            True
        ] * 3
        assert answers[protocol]["unknown model"] is False
    assert (answers["v1"]["ready"], answers["v1"]["unknown model"]) == (True, 404)


def test_errors(answers: dict[str, Any]) -> None:
    said = "there is no input `nothing`; the inputs are tokens."
    assert answers["v1"]["bad"] == f"400 instances[0]: {said}"
    assert answers["v2"]["bad"] == f"400 {said}"
    assert answers["grpc"]["bad"] == f"INVALID_ARGUMENT {said}"


def test_manifests() -> None:
    manifests = sorted((ROOT / "deploy" / "kserve").glob("*.yaml"))
    assert len(manifests) == 2
    assert run_script("manifests.py", *manifests).strip() == ""


def test_faults_of_manifests_are_found(tmp_path: Path) -> None:
    """The check itself can fail: a field that is unknown, one that is missing, and one of another type."""
    service = (ROOT / "deploy" / "kserve" / "inference-service.yaml").read_text(encoding="utf-8")
    changed = service.replace("minReplicas: 2", "minReplicas: two").replace(
        "maxReplicas", "mostReplicas"
    )
    runtime = (ROOT / "deploy" / "kserve" / "serving-runtime.yaml").read_text(encoding="utf-8")
    without_name = runtime.replace("- name: kserve-container\n      image", "- image")
    assert without_name != runtime
    for name, text in (("service", changed), ("runtime", without_name)):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    told = run_script("manifests.py", tmp_path / "service.yaml", tmp_path / "runtime.yaml")
    assert told.splitlines() == [
        "InferenceService.spec.predictor has no field `mostReplicas`",
        "InferenceService.spec.predictor.minReplicas (='two') must be int",
        "ServingRuntime.spec.containers[0] lacks `name`",
    ]
