"""`deploy-rnn serve --engine ray`: from the options of the command to replicas that answer, and to their end."""

import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve

from deploy_rnn.files import replace_file

from ..process import StopSignals
from .application import APPLICATION, DEPLOYMENT, GRPC_METHODS, make_application
from .served import Scale, Served


def start(
    served: Served, scale: Scale, host: str, http_port: int, grpc_port: int, signals: StopSignals
) -> Callable[[], None]:
    """Start the replicas, and return once they are ready.

    Ray itself is started, too, unless the variable RAY_ADDRESS names a cluster; the application of that is replaced, if
    it has one of ours.

    Returns:
        Waits for a signal, has what was accepted answered, and stops what was started.
    """
    stop = threading.Event()
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, namespace=APPLICATION)
    else:
        most = scale.max_replicas or scale.replicas
        num_cpus = max(os.cpu_count() or 1, most * scale.threads)
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, namespace=APPLICATION)
    # Ray has its own by now.
    signals.renew()
    signals.ask(stop.set)
    serve.start(**_proxies(host, http_port, grpc_port))
    serve.run(make_application(served, scale), name=APPLICATION, route_prefix="/")

    def wait_and_stop() -> None:
        stop.wait()
        # Ray's proxies stay until the replicas have answered what they have.
        serve.delete(APPLICATION)
        if not address:
            serve.shutdown()
        ray.shutdown()

    return wait_and_stop


def _proxies(host: str, http_port: int, grpc_port: int) -> dict[str, Any]:
    """Options of Ray Serve for what stands in front of the replicas, on every machine that has one."""
    grpc = {
        "port": grpc_port,
        "grpc_servicer_functions": [GRPC_METHODS],
        # The protocol's messages are not where it looks for them.
        "enable_reflection": False,
    }
    http = {"host": host, "port": http_port}
    return {"proxy_location": "EveryNode", "http_options": http, "grpc_options": grpc}


def write_config(
    path: Path, served: Served, scale: Scale, host: str, http_port: int, grpc_port: int
) -> None:
    """Write a config file of Ray Serve, for `serve deploy`."""
    config = make_config(served, scale, host, http_port, grpc_port)
    text = "# Written by `deploy-rnn serve --engine ray --write-config`. Run: serve deploy FILE\n"
    text += yaml.safe_dump(config, sort_keys=False)
    replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))


def make_config(
    served: Served, scale: Scale, host: str, http_port: int, grpc_port: int
) -> dict[str, Any]:
    """What a config file of Ray Serve has."""
    deployment = {"name": DEPLOYMENT, **scale.options()}
    application = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": "deploy_rnn.serving.ray.application:build",
        "args": {name: value for name, value in asdict(served).items() if value},
        "deployments": [deployment],
    }
    return {**_proxies(host, http_port, grpc_port), "applications": [application]}
