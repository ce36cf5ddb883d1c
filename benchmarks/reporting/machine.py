"""What a figure was measured on, and how a result is written down."""

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from deploy_rnn.runtime import usable_cores


def describe() -> dict[str, Any]:
    """Processor, GPU and driver if there is one, and the versions of all that takes part."""
    return {
        "cpu": _cpu(),
        "cores": usable_cores(),
        **_gpu(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "onnxruntime", "onnx", "onnxscript", "openvino", "deploy-rnn")},
    }


def publish(result: dict[str, Any], output: Path | None) -> dict[str, Any]:
    """`result` with the machine named, also written to `output` as JSON if that is given."""
    result = {**result, "machine": describe()}
    if output:
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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


def _version(name: str) -> str:
    for candidate in (name, f"{name}-gpu"):
        try:
            return metadata.version(candidate).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return "absent"
