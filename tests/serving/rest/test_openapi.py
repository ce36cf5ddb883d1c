"""The server against openapi.json."""

import json
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

import deploy_rnn.serving
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.rest.app import make_app

PATHS = json.loads(
    (Path(deploy_rnn.serving.__file__).parent / "rest" / "openapi.json").read_text(encoding="utf-8")
)["paths"]
OPERATIONS = [(path, method) for path, methods in PATHS.items() for method in methods]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_as_described(path: str, method: str, repository: Repository) -> None:
    operation = schemathesis.openapi.from_asgi("/openapi.json", make_app(repository))[path][method]

    @settings(
        max_examples=30 if method == "post" else 5,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(operation.as_strategy())
    def check(case: Any) -> None:
        if "load" not in path:
            case.path_parameters = {
                name: {"model": "sum", "version": "1"}[name] for name in case.path_parameters or {}
            }
        case.call_and_validate(
            excluded_checks=[positive_data_acceptance]
        )  # no schema says that data fits a shape

    check()


def test_every_route_is_described(repository: Repository) -> None:
    app: Any = make_app(repository)
    routes = {
        (route.path, method.lower())
        for route in app._app._app._router.routes
        for method in route.methods - {"HEAD"}
        if not any(part in route.path for part in ("sharedmemory", "trace", "logging"))
        and route.path != "/"
        and not route.path.startswith("/page/")
    }
    assert routes == set(OPERATIONS)
