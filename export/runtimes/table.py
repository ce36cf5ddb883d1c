"""The runtimes that a file can be checked in, by the name that `runtime=` takes."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from deploy_rnn.errors import RuntimeMissingError

ONNXRUNTIME = "onnxruntime"
"""The runtime that every file is checked in, and that needs no entry in the table."""

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
"""What Chromium, or one like it, is called on PATH."""


@dataclass(frozen=True)
class Runtime:
    """A runtime other than onnxruntime.

    Attributes:
        name: what `runtime=` takes.
        title: what its makers call it.
        opener: the module that opens files with it, one of those in this folder: `version()`, `open_file(source)`, and
            `end()` if it starts a process of its own.
        needs: the Python module that must be installed, or the programs of which one must.
        install: the command that installs it.
        reads_lengths: whether it reads the input `sequence_lens` of ONNX's operators.
        one_size: whether a file is opened for the sizes of one run, and opened again for others.
    """

    name: str
    title: str
    opener: str
    needs: str | tuple[str, ...]
    install: str
    reads_lengths: bool = False
    one_size: bool = False

    def check_installed(self) -> None:
        """Raises: RuntimeMissingError: it is not here, with what to install."""
        if isinstance(self.needs, str):
            is_there = find_spec(self.needs) is not None
            needed = f"the package `{self.needs}`"
        else:
            # Whether there is onnxruntime-web, too, turns out when it starts.
            is_there = any(map(shutil.which, self.needs))
            needed = f"the program `{self.needs[0]}`"
        if not is_there:
            raise RuntimeMissingError(
                f"`runtime` (={self.name!r}) needs {needed}, which is not installed; run: {self.install}"
            )


def _by_name(*runtimes: Runtime) -> Mapping[str, Runtime]:
    return {runtime.name: runtime for runtime in runtimes}


RUNTIMES = _by_name(
    Runtime(
        "openvino", "OpenVINO", f"{__package__}.on_openvino", "openvino", "pip install openvino"
    ),
    Runtime(
        "openvino-static",
        "OpenVINO, reshaped to static",
        f"{__package__}.on_openvino",
        "openvino",
        "pip install openvino",
        reads_lengths=True,
        one_size=True,
    ),
    Runtime(
        "onnxruntime-web",
        "onnxruntime-web, wasm in node",
        f"{__package__}.on_web",
        ("node",),
        "npm install onnxruntime-web, with node 18 or later, in this folder or one above it",
        reads_lengths=True,
    ),
    Runtime(
        "onnxruntime-web-chromium",
        "onnxruntime-web, wasm in Chromium",
        f"{__package__}.on_chromium",
        CHROMIUM,
        "apt install chromium, and npm install onnxruntime-web in this folder or one above it",
        reads_lengths=True,
    ),
    Runtime(
        "opencv",
        "OpenCV dnn",
        f"{__package__}.on_opencv",
        "cv2",
        "pip install 'opencv-python-headless>=5'",
    ),
    Runtime("mnn", "MNN", f"{__package__}.on_mnn", "MNN", "pip install MNN", one_size=True),
    Runtime("tract", "tract", f"{__package__}.on_tract", "tract", "pip install tract"),
    Runtime("tvm", "TVM", f"{__package__}.on_tvm", "tvm", "pip install apache-tvm", one_size=True),
    Runtime(
        "ncnn",
        "ncnn",
        f"{__package__}.on_ncnn",
        "ncnn",
        "pip install ncnn && pip install --no-deps pnnx",
        one_size=True,
    ),
)


def runtime_named(name: str) -> Runtime:
    """Return a runtime of the table.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in RUNTIMES:
        offered = ", ".join(map(repr, (ONNXRUNTIME, *RUNTIMES)))
        raise ValueError(f"`runtime` (={name!r}) must be one of {offered}.")
    return RUNTIMES[name]


def row_ends_for(runtime: str) -> Literal["sequence_lens", "held"]:
    """Return how form "native" writes rows of different length for a runtime."""
    if runtime == ONNXRUNTIME or runtime_named(runtime).reads_lengths:
        return "sequence_lens"
    return "held"
