"""Shared by all tests: a fixed seed, and a reason for every test that this machine cannot run."""

import shutil
from collections.abc import Iterator
from functools import cache
from typing import Any

import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch._export import utils as export_utils
from torch.onnx._internal.exporter import _constants, _registration

from deploy_rnn.runtime import CUDA
from tools.browser import Browser, find_browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


# On a machine that also does other work, the threads of a small operation wait for each other: up to 25 times slower.
torch.set_num_threads(1)

# Each `torch.onnx.export` makes the table of its operators from nothing, which takes half a second.
torchlib_registry = cache(_registration.ONNXRegistry.from_torchlib)


def copy_of_the_registry(opset_version: int = _constants.TORCHLIB_OPSET) -> Any:
    made_once = torchlib_registry(opset_version)
    registry: Any = _registration.ONNXRegistry()
    registry._opset_version = made_once._opset_version
    registry.functions = {target: list(decomps) for target, decomps in made_once.functions.items()}
    return registry


torch_registry: Any = _registration.ONNXRegistry
torch_registry.from_torchlib = staticmethod(copy_of_the_registry)

# Each decomposition looks up thousands of operators by name, once for every namespace; new ones are looked up still.
look_up_operators = export_utils._materialize_cpp_cia_ops
known_operators: set[str] = set()


def look_up_new_operators() -> None:
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
    if not known_operators.issuperset(names):
        look_up_operators()
        known_operators.update(names)


export_utils._materialize_cpp_cia_ops = look_up_new_operators

# hypothesis says nothing of an example that it took long.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# On a GPU, compare with PyTorch's own kernels: cuDNN's tanh and sigmoid in float32 are 1e-5 from the exact values
# (tests/deploy_rnn/nn/test_cudnn.py).
torch.backends.cudnn.enabled = False


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """For tests that compile: drop what was compiled before; skip the test without a C++ compiler."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def onnxruntime_cuda() -> None:
    """For tests that run onnxruntime on the GPU."""
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {CUDA}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("Chromium is not installed")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
