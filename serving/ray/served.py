"""`Served` and `Scale`: what replicas serve, and how many there are. Ray itself is not needed to say so."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, and what each may take.

    Attributes:
        replicas: how many there are; with `max_replicas`, at least.
        max_replicas: at most; None if the number does not change by itself.
        target_requests: requests of a replica, those that wait in it included, beyond which Ray starts another one.
        max_requests: of one replica; further ones wait in Ray's proxies.
        threads: cores of one replica.
        drain_seconds: time for accepted requests when a replica stops.
    """

    replicas: int = 1
    max_replicas: int | None = None
    target_requests: int = 16
    max_requests: int = 2048
    threads: int = 1
    drain_seconds: float = 30.0

    def options(self) -> dict[str, Any]:
        """As Ray Serve has them, for a deployment."""
        options: dict[str, Any] = {
            "max_ongoing_requests": self.max_requests,
            "graceful_shutdown_timeout_s": self.drain_seconds,
            "graceful_shutdown_wait_loop_s": 0.5,
            "health_check_period_s": 2,
            "health_check_timeout_s": 30,
            "ray_actor_options": {"num_cpus": self.threads},
        }
        if self.max_replicas is None:
            return options | {"num_replicas": self.replicas}
        autoscaling = {
            "min_replicas": self.replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_requests,
        }
        return options | {"autoscaling_config": autoscaling}


@dataclass(frozen=True)
class Served:
    """What each replica serves; as the `args` of an application in a config file.

    Attributes:
        bundles: the path of a bundle, of an .onnx file, or of a folder of bundles, the same on every machine.
        limits, settings, model: keyword arguments of `Limits`, `Settings` and `Model`.
        local_only: whether only clients of the same machine are answered. Ray's gRPC listens on all addresses.
        version: of the bundles; Ray replaces the replicas if it is another one.
    """

    bundles: str
    limits: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    local_only: bool = False
    version: str = ""
