"""The application of Ray Serve, for Python (`make_application`) and for a config file of Serve (`build`)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.schema import LoggingConfig

from .replica import Replica
from .served import Scale, Served

APPLICATION = "deploy-rnn"

DEPLOYMENT = "server"

GRPC_METHODS = "deploy_rnn.serving.ray.grpc_calls:add_to_server"

ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"


def make_application(served: Served, scale: Scale | None = None) -> Application:
    """The application, to be given to `ray.serve.run`."""
    # Without a session, requests spread over all replicas. One of a session goes to its replica or waits for it.
    router = RequestRouterConfig(
        request_router_class=ROUTER, request_router_kwargs={"num_fallback_replicas": 0}
    )
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=DEPLOYMENT,
        request_router_config=router,
        logging_config=LoggingConfig(enable_access_log=False),
        **(scale or Scale()).options(),
    )
    return deployment.bind(**asdict(served), owners=f"{APPLICATION} streams")


def build(args: Mapping[str, Any]) -> Application:
    """What `import_path` of a config file names; `args` are the fields of `Served`."""
    return make_application(Served(**args))
