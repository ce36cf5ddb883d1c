"""The Dockerfile, the compose file and the manifests of Kubernetes. There need be neither Docker nor a cluster.

`make image` installs hadolint and kubernetes-validate, and runs all of these: the Dockerfile is built from Debian's
packages, and the server is started in a `chroot` with nothing else in it.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from deploy_rnn.cli import main
from deploy_rnn.serving import Settings
from tests.packaging import debian
from tests.packaging.dockerfile import (
    Build,
    Stage,
    health_command,
    inside,
    parse,
    server_command,
)

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
KUBERNETES = ROOT / "deploy" / "kubernetes"
TOOLS = Path(os.environ.get("IMAGE_TOOLS", ROOT / "build" / "image-tools" / "bin"))
KUBERNETES_VERSION = "1.32"
MOST_MEGABYTES = 250
"""Of the whole image, on a disk; docs/docker.md says so."""

TRACE_SECONDS = 5
"""For which the last traces have time; docs/monitoring.md says so."""

needs_tools = pytest.mark.image


def manifests() -> dict[str, dict[str, Any]]:
    """Kind -> the manifest of that kind."""
    found = {}
    for path in KUBERNETES.glob("*.yaml"):
        manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "kind" in manifest:
            found[manifest["kind"]] = manifest
    return found


MANIFESTS = manifests()
POD = MANIFESTS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


def serve_options(arguments: list[str]) -> dict[str, Any]:
    """The options of `deploy-rnn serve` in the arguments of a container."""
    command = main.get_command(None, "serve")  # type: ignore[arg-type]
    assert command is not None
    return command.make_context("serve", list(arguments)).params


def test_kustomization_has_every_manifest() -> None:
    named = set(MANIFESTS["Kustomization"]["resources"])
    files = {path.name for path in KUBERNETES.glob("*.yaml")}
    assert named == files - {"kustomization.yaml", "prometheus-adapter.yaml"}
    assert MANIFESTS.keys() == {
        "Kustomization", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "ServiceMonitor",
    }  # fmt: skip


def test_manifests_mean_the_same_pods() -> None:
    labels = POD["metadata"]["labels"]
    selectors = [
        MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["Service"]["spec"]["selector"],
        MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        *(
            rule["labelSelector"]["matchLabels"]
            for rule in POD["spec"]["topologySpreadConstraints"]
        ),
    ]
    assert selectors == [labels] * 4
    monitor = MANIFESTS["ServiceMonitor"]["spec"]
    service = MANIFESTS["Service"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    # The alerts ask for this job.
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "deploy-rnn"
    ports = {port["name"] for port in CONTAINER["ports"]}
    used = {port["targetPort"] for port in service["spec"]["ports"]}
    used |= {endpoint["port"] for endpoint in monitor["endpoints"]}
    used |= {
        CONTAINER[f"{probe}Probe"]["httpGet"]["port"]
        for probe in ("startup", "readiness", "liveness")
    }
    assert used == ports == {"http", "grpc"}
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = MANIFESTS["Deployment"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])


def test_arguments_are_options_of_the_server() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    image = {one.name: one for one in parse(DOCKERFILE.read_text(encoding="utf-8"))}
    assert image["ENTRYPOINT"].words() == ["python3", "-m", "deploy_rnn", "serve"]
    for arguments in (
        image["CMD"].words(),
        CONTAINER["args"],
        compose["services"]["server"]["command"],
    ):
        options = serve_options(arguments)
        assert (options["path"], options["host"]) == (Path("/bundles"), "0.0.0.0")
    # What is limited to two cores is told so.
    assert serve_options(CONTAINER["args"])["threads"] == int(
        CONTAINER["resources"]["limits"]["cpu"]
    )
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"http": options["http_port"], "grpc": options["grpc_port"]}
    assert image["EXPOSE"].text == "8000 8001"


def test_a_pod_has_time_to_end() -> None:
    # There is no `sleep` in the image.
    *python, code = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert python == ["python3", "-c"]
    before = int(code.removeprefix("import time; time.sleep(").removesuffix(")"))
    grace = POD["spec"]["terminationGracePeriodSeconds"]
    assert grace > before + Settings().drain_seconds + TRACE_SECONDS
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    assert int(compose["services"]["server"]["stop_grace_period"].removesuffix("s")) > 35


def test_nobody_is_root_and_nothing_is_written() -> None:
    image = {one.name: one for one in parse(DOCKERFILE.read_text(encoding="utf-8"))}
    user, _, group = image["USER"].text.partition(":")
    pod = POD["spec"]["securityContext"]
    assert pod["runAsNonRoot"]
    assert (pod["runAsUser"], pod["runAsGroup"]) == (int(user), int(group))
    assert int(user) > 0
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    assert compose["services"]["server"]["read_only"]


def test_what_is_copied_is_not_ignored() -> None:
    kept = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = set()
    for instruction in parse(DOCKERFILE.read_text(encoding="utf-8")):
        if instruction.name == "COPY" and "--from" not in instruction.text:
            copied |= set(instruction.text.split()[:-1])
    assert copied == kept


@needs_tools
def test_hadolint_finds_nothing() -> None:
    result = subprocess.run([TOOLS / "hadolint", DOCKERFILE], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_tools
@pytest.mark.parametrize("kind", sorted(MANIFESTS.keys() - {"Kustomization", "ServiceMonitor"}))
def test_a_manifest_follows_its_schema(kind: str, tmp_path: Path) -> None:
    """Those of kustomize and of the Prometheus operator are not schemas of Kubernetes itself."""
    path = tmp_path / "manifest.yaml"
    manifest = MANIFESTS[kind]
    path.write_text(yaml.safe_dump(manifest), encoding="utf-8")
    command = [TOOLS / "kubernetes-validate", "-k", KUBERNETES_VERSION, "--strict", path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    manifest["spec"]["nonsense"] = 1
    path.write_text(yaml.safe_dump(manifest), encoding="utf-8")
    del manifest["spec"]["nonsense"]
    assert subprocess.run(command, capture_output=True).returncode != 0


@pytest.fixture(scope="module")
def image() -> Iterator[Stage]:
    """The last stage of the Dockerfile, built, with a bundle in it."""
    with tempfile.TemporaryDirectory(prefix="image-", dir="/tmp") as folder:
        roots = Path(folder)
        roots.chmod(0o755)
        instructions = parse(DOCKERFILE.read_text(encoding="utf-8"))
        build = Build(instructions, ROOT, roots)
        write_model(build.final.path("/bundles") / "double.onnx")
        make_readable(build.final.root)
        debian.add_devices(build.final.root)
        yield build.final


def write_model(path: Path) -> None:
    """y is twice x."""
    path.parent.mkdir()
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "T"]) for name in ("x", "y")
    ]
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    graph = helper.make_graph(nodes, "double", tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def make_readable(root: Path) -> None:
    """As a container sees its root: everybody may read, and with `--read-only` nobody may write."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod((mode | 0o444 | (0o111 if path.is_dir() else 0)) & ~0o222)


@contextmanager
def container(image: Stage) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The server of the image, as the user of the image, and its address."""
    # A bundle is a folder; the only model of this image is a file.
    command = [*server_command(image), "--http-port", "0", "--grpc-port", "0"]
    command = [f"{word}/double.onnx" if word == "/bundles" else word for word in command]
    with subprocess.Popen(
        **inside(image, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                found = re.search(r"HTTP on http://[\d.]+:(\d+)", line)
                if found:
                    yield f"127.0.0.1:{found[1]}", process
                    break
            else:
                assert process.stderr is not None
                raise AssertionError(process.stderr.read())
        finally:
            process.kill()


needs_root = pytest.mark.skipif(
    not debian.is_here() or os.geteuid() != 0,
    reason="the base image is made of Debian 12's packages, on that system, and only root may use `chroot`",
)


@needs_tools
@needs_root
def test_the_image_answers_as_a_user_without_rights(image: Stage) -> None:
    user = int(image.settings["USER"].text.partition(":")[0])
    with container(image) as (address, process):
        health = [word.replace("127.0.0.1:8000", address) for word in health_command(image)]
        assert subprocess.run(**inside(image, health)).returncode == 0
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
        answer = httpx.post(f"http://{address}/v2/models/double/infer", json=body)
        assert answer.json()["outputs"][0]["data"] == [2, 4]
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(rf"^Uid:\s+{user}\s+{user}\s", status, re.MULTILINE)
        process.terminate()
        assert process.wait(60) == 0
    written = [path for path in image.root.rglob("*") if path.lstat().st_uid == user]
    assert not written
    unhealthy = [word.replace("127.0.0.1:8000", address) for word in health_command(image)]
    assert subprocess.run(**inside(image, unhealthy), capture_output=True).returncode == 1


@needs_tools
@needs_root
def test_what_a_pod_runs_before_its_end_is_in_the_image(image: Stage) -> None:
    command = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    shorter = [word.replace("sleep(5)", "sleep(0)") for word in command]
    assert shorter != command
    assert subprocess.run(**inside(image, shorter)).returncode == 0


@needs_tools
@needs_root
def test_the_image_is_small(image: Stage) -> None:
    """Neither torch nor onnx nor pip nor a shell is in it, and its size is as docs/docker.md says."""
    names = {path.name for path in (image.root / "packages").iterdir()}
    assert "deploy_rnn" in names
    assert "onnxruntime" in names
    assert not names & {"torch", "onnx", "onnxscript", "sympy", "pip", "setuptools"}
    assert not list(image.root.glob("bin/*sh")) + list(image.root.glob("usr/bin/*sh"))
    sizes = {}
    for folder in image.root.iterdir():
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        sizes[folder.name] = sum(path.stat().st_size for path in files) / 1e6
    megabytes = sum(sizes.values())
    print(f"the image has {megabytes:.0f} MB, {sizes['packages']:.0f} of them in /packages")
    assert megabytes < MOST_MEGABYTES
