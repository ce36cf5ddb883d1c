"""`runtime`: what differs between execution providers is in one table."""

from typing import Any

import onnxruntime
import pytest

from deploy_rnn import runtime
from deploy_rnn.runtime import (
    CPU,
    CUDA,
    OPENVINO,
    PROVIDERS,
    Provider,
    open_session,
    provider_named,
)

MADE_UP = "MadeUpExecutionProvider"


def test_the_table_is_by_name() -> None:
    assert list(PROVIDERS) == [CPU, CUDA, OPENVINO]
    assert [provider.name for provider in PROVIDERS.values()] == [CPU, CUDA, OPENVINO]
    assert provider_named(CUDA) is PROVIDERS[CUDA]
    assert provider_named(MADE_UP) == Provider(MADE_UP)
    assert PROVIDERS[CPU].present()


def test_options_of_a_session() -> None:
    assert PROVIDERS[CPU].session_options(2, capture_runs=False) == {}
    assert PROVIDERS[CUDA].session_options(2, capture_runs=False) == {"use_tf32": 0}
    assert PROVIDERS[CUDA].session_options(None, capture_runs=True) == {
        "use_tf32": 0,
        "enable_cuda_graph": 1,
    }
    provider = Provider(MADE_UP, options={"precision": "FP32"}, threads_option="num_of_threads")
    assert provider.session_options(None, capture_runs=True) == {"precision": "FP32"}
    assert provider.session_options(3, capture_runs=False) == {
        "precision": "FP32",
        "num_of_threads": 3,
    }
    assert provider.options == {"precision": "FP32"}


class RecordedSession:
    """Stands in for onnxruntime's session, and keeps what it was opened with."""

    def __init__(
        self, path: str, options: Any, providers: list[tuple[str, dict[str, Any]]]
    ) -> None:
        self.threads = options.intra_op_num_threads
        self.providers = providers

    def disable_fallback(self) -> None:
        pass

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.providers]


@pytest.mark.parametrize(
    ("entry", "options", "threads"),
    [
        (Provider(MADE_UP), {}, 3),
        (Provider(MADE_UP, options={"device_type": "CPU"}), {"device_type": "CPU"}, 3),
        (
            Provider(MADE_UP, threads_option="num_of_threads"),
            {"num_of_threads": 3},
            0,
        ),  # 0: onnxruntime's default
    ],
)
def test_an_entry_is_all_that_a_provider_needs(
    entry: Provider, options: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[str] = []
    provider = Provider(**{**vars(entry), "prepare": lambda: prepared.append(entry.name)})
    monkeypatch.setitem(runtime.PROVIDERS, MADE_UP, provider)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [MADE_UP])
    monkeypatch.setattr(onnxruntime, "InferenceSession", RecordedSession)
    session = open_session("a.onnx", MADE_UP, threads=3)
    assert session.providers == [(MADE_UP, options)]
    assert session.threads == threads
    assert prepared == [MADE_UP]
