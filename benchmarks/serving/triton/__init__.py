"""A real Triton from the wheel nvidia-pytriton, in an environment of its own: neither Docker nor a GPU is needed.

The wheel has Triton's server and its Python backend, and no other backend; onnxruntime runs in the Python backend, in
two processes for each model (two instances).
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

VENV = Path("build") / "triton-venv"
INSTANCES = 2
_ASK = """
import importlib.util, json, pathlib, sys, sysconfig
from importlib import metadata
packages = pathlib.Path(importlib.util.find_spec("pytriton").origin).parents[1]
print(json.dumps({
    "packages": str(packages),
    "python": "%d.%d" % sys.version_info[:2],
    "library": sysconfig.get_config_var("LIBDIR"),
    "versions": {name: metadata.version(name) for name in ("nvidia-pytriton", "onnxruntime")},
}))
"""


class Installation:
    """What an environment has of Triton.

    Raises:
        FileNotFoundError: there is no such environment, or it has no Triton for its Python.
    """

    def __init__(self, venv: Path) -> None:
        self._venv = venv.absolute()
        python = self._venv / "bin" / "python"
        if not python.exists():
            raise FileNotFoundError(f"{venv} is missing; `make serving-bench` makes it")
        asked = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=False)
        if asked.returncode:
            raise FileNotFoundError(f"{venv} has no nvidia-pytriton")
        found = json.loads(asked.stdout)
        self.versions: dict[str, str] = found["versions"]
        self._packages = Path(found["packages"])
        self._library = found["library"]
        self._root = self._packages / "pytriton" / "tritonserver"
        stubs = self._root / "python_backend_stubs"
        self._stub = stubs / found["python"] / "triton_python_backend_stub"
        if not self._stub.exists():
            raise FileNotFoundError(f"nvidia-pytriton has no stub for Python {found['python']}")

    def command(
        self, repository: Path, backends: Path, http_port: int, grpc_port: int
    ) -> list[str]:
        """Say how to start Triton.

        Args:
            repository: folder of its models; its path must not have a space.
            backends: a new folder, to which the Python backend is written.
        """
        # The backend looks for the stub beside itself; the wheel keeps one for each Python elsewhere.
        backend = backends / "python"
        shutil.copytree(self._root / "backends" / "python", backend)
        shutil.copy(self._stub, backend)
        address = "127.0.0.1"
        return [
            str(self._root / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--cache-directory={self._root / 'caches'}",
            f"--http-address={address}",
            f"--http-port={http_port}",
            f"--grpc-address={address}",
            f"--grpc-port={grpc_port}",
            "--allow-metrics=false",
        ]

    @property
    def environment(self) -> dict[str, str]:
        """The stub needs libpython, the server the libraries of its wheel, and the models the packages."""
        libraries = (self._library, str(self._packages / "nvidia_pytriton.libs"))
        return {
            **os.environ,
            "PATH": f"{self._venv / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(self._packages),
            "LD_LIBRARY_PATH": ":".join(libraries),
        }


def write_models(repository: Path, bundles: Sequence[Path]) -> None:
    """Write a model for each of the benchmark's bundles, by its name."""
    for bundle in bundles:
        _write_model(repository / bundle.name, bundle)


def _write_model(folder: Path, bundle: Path) -> None:
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("model.py"), folder / "1" / "model.py")
    config = f"""
name: "{bundle.name}"
backend: "python"
max_batch_size: 0
input [ {{ name: "characters" data_type: TYPE_INT64 dims: [ -1, -1 ] }} ]
output [ {{ name: "output" data_type: TYPE_FP32 dims: [ -1, -1, -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: {INSTANCES} }} ]
parameters {{ key: "path" value: {{ string_value: "{bundle / "native.onnx"}" }} }}
"""
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
