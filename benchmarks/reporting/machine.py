"""The machine that a result was measured on, and how a result is written."""

import json
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from deploy_rnn.runtime import processor_name, usable_cores

PACKAGES = ("torch", "onnxruntime", "onnx", "onnxscript", "openvino", "deploy-rnn")


def describe() -> dict[str, Any]:
    """Processor, GPU and driver if there is one, and the versions of every package that is measured."""
    return {
        "cpu": processor_name() or platform.machine(),
        "cores": usable_cores(),
        **_gpu(),
        "python": platform.python_version(),
        **versions(PACKAGES),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each package; "absent" if there is none."""
    return {package: _version(package) for package in packages}


def publish(result: dict[str, Any], output: Path | None) -> dict[str, Any]:
    """Add the machine to `result`, and write it to `output` as JSON if that is given."""
    result = {**result, "machine": describe()}
    if output:
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {}
    return {"gpu": torch.cuda.get_device_name(), "driver": _driver(), "cuda": torch.version.cuda}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return "driver " + subprocess.check_output(command, text=True).splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "driver unknown"


def _version(package: str) -> str:
    # onnxruntime's GPU build is a package with another name, which hides the other where both are installed.
    for candidate in (f"{package}-gpu", package):
        try:
            return metadata.version(candidate).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return "absent"
