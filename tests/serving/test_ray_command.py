"""`deploy-rnn serve --engine ray`: what its options mean. test_ray.py runs it; here, Ray is not needed."""

import json
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy_rnn.cli import main
from deploy_rnn.console import UsageError
from deploy_rnn.errors import BundleError
from deploy_rnn.serving import Limits
from deploy_rnn.serving.ray.command import check_ports, make_served, version_of
from deploy_rnn.serving.ray.served import Scale
from tests.serving.on_ray import free_port

MANIFEST: dict[str, Any] = {
    "version": 2, "name": "sum", "producer": "deploy-rnn 0.2.0", "opset": 18,
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["B", "T", 3], "batch": 0, "time": 1}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["B", "T", 4], "batch": 0, "time": 1}],
    "lengths": {}, "states": {},
    "graphs": [
        {"file": "scan.onnx", "form": "scan", "steps": None, "nodes": 9, "milliseconds": 0.25, "precision": "float32"}
    ],
    "sha256": {"scan.onnx": "0" * 64},
}  # fmt: skip


def write_manifest(folder: Path, **fields: Any) -> None:
    folder.mkdir(exist_ok=True)
    text = json.dumps(MANIFEST | fields)
    (folder / "manifest.json").write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one bundle, as far as the command looks at it."""
    (tmp_path / "bundles").mkdir()
    write_manifest(tmp_path / "bundles" / "sum")
    return tmp_path / "bundles"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replicas", "2"], "`--replicas` needs `--engine ray`."),
        (["--write-config", "x.yaml"], "`--write-config` needs `--engine ray`."),
        (["--engine", "ray", "--idle-seconds", "5"], "`--idle-seconds` has no meaning with `--engine ray`"),
        (["--engine", "ray", "--refuse-restart"], "`--refuse-restart` has no meaning with"),
        (["--engine", "ray", "--http-port", "0"], "ports must be numbers other than 0"),
        (["--engine", "ray", "--replicas", "3", "--max-replicas", "2"],
         "`--max-replicas` (=2) must be at least `--replicas` (=3)."),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(options: list[str], message: str, folder: Path) -> None:
    result = CliRunner().invoke(main, ["serve", str(folder), *options])
    assert result.exit_code == 2
    assert message in result.output


def test_what_each_replica_serves(folder: Path) -> None:
    options: dict[str, Any] = {
        "max_rows": 7, "max_bytes": 1000, "threads": 3, "idle_seconds": 75.0, "refuse_restart": False,
        "allowed_hosts": (), "pages": (Path("page"),), "token": None, "drain_seconds": 5.0,
    }  # fmt: skip
    served = make_served(folder, "127.0.0.1", options, in_file=True)
    assert served.bundles == str(folder.resolve())
    assert served.limits == {"max_rows": 7}
    assert Limits(**served.limits).max_rows == 7
    assert served.settings == {
        "max_bytes": 1000, "pages": [str(Path("page").resolve())], "drain_seconds": 5.0,
    }  # fmt: skip
    assert served.model == {"threads": 3}
    assert served.local_only


@pytest.mark.parametrize(
    ("host", "token", "local_only"),
    [("127.0.0.1", None, True), ("::1", None, True), ("localhost", None, True), ("0.0.0.0", None, False),
     ("127.0.0.1", "secret", False)],
)  # fmt: skip
def test_who_may_ask(host: str, token: str | None, local_only: bool, folder: Path) -> None:
    served = make_served(folder, host, {"token": token}, in_file=False)
    assert served.local_only == local_only
    assert served.settings.get("token") == token


def test_a_token_does_not_stand_in_a_file(folder: Path) -> None:
    with pytest.raises(
        UsageError, match="set DEPLOY_RNN_TOKEN in the environment of every machine"
    ):
        make_served(folder, "0.0.0.0", {"token": "secret"}, in_file=True)


def test_another_bundle_is_another_version(folder: Path, tmp_path: Path) -> None:
    before = version_of(folder)
    assert version_of(folder) == before
    assert version_of(folder / "sum") != before
    shutil.copytree(folder / "sum", folder / "other")
    two = version_of(folder)
    write_manifest(folder / "other", sha256={"scan.onnx": "1" * 64})
    assert len({before, two, version_of(folder)}) == 3
    file = tmp_path / "model.onnx"
    file.write_bytes(b"1")
    one = version_of(file)
    file.write_bytes(b"2")
    assert version_of(file) != one
    with pytest.raises(BundleError, match="there is no bundle at"):
        version_of(tmp_path / "nowhere")
    (folder / "other" / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match="is not a manifest"):
        version_of(folder)


def test_a_port_that_another_server_shares_is_refused() -> None:
    """As Ray's own proxies do."""
    if not hasattr(socket, "SO_REUSEPORT"):
        pytest.skip("ports are not shared here")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        for ports, option in (((port, free_port()), "http"), ((free_port(), port), "grpc")):
            with pytest.raises(UsageError, match=rf"port {port} of .*; give another `--{option}-"):
                check_ports("127.0.0.1", ports, seconds=0.3)
        with ThreadPoolExecutor(1) as other:
            waits = other.submit(check_ports, "127.0.0.1", (port, free_port()), seconds=60)
            listener.close()
        waits.result()
    with pytest.raises(UsageError, match=r"cannot listen on port 1 of 203\.0\.113\.9"):
        check_ports("203.0.113.9", (1, 1))


def test_the_number_of_replicas() -> None:
    assert Scale(replicas=3).options()["num_replicas"] == 3
    options = Scale(replicas=2, max_replicas=9, target_requests=5, threads=4).options()
    assert "num_replicas" not in options
    assert options["autoscaling_config"] == {
        "min_replicas": 2, "max_replicas": 9, "target_ongoing_requests": 5,
    }  # fmt: skip
    assert options["ray_actor_options"] == {"num_cpus": 4}
