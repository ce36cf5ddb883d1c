"""A Ray cluster of two nodes on this machine, on which `deploy-rnn serve --engine ray` serves bundles.

It runs with the Python of an environment that has Ray (`make ray`), and does what it is told: each line of stdin is a
JSON list, the name of a method of `Cluster` and its arguments; each line of stdout that begins with ANSWER is the
result.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import cluster_utils, serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from deploy_rnn.serving.ray.application import APPLICATION, DEPLOYMENT
from deploy_rnn.serving.ray.command import make_served
from deploy_rnn.serving.ray.running import make_config
from deploy_rnn.serving.ray.served import Scale

ANSWER = "ANSWER "

SECONDS = 240

OWNERS = "deploy-rnn streams"


class Cluster:
    """
    Args:
        bundles: what is served.
        http_port, grpc_port: of the proxies of both nodes, which share them.
    """

    def __init__(self, bundles: str, http_port: str, grpc_port: str) -> None:
        self._cluster = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 8, "include_dashboard": False, "object_store_memory": 2e8},
        )
        self._node: Any = None
        self.add_node()
        os.environ["RAY_ADDRESS"] = self._cluster.address
        self._served = make_served(Path(bundles), "127.0.0.1", {}, in_file=False)
        self._scale = Scale(replicas=2)
        self._ports = (int(http_port), int(grpc_port))
        self._command = [sys.executable, "-m", "deploy_rnn", "serve", bundles, "--engine", "ray"]
        self._command += ["--replicas", "2", "--http-port", http_port, "--grpc-port", grpc_port]
        self.start()
        ray.init(address=self._cluster.address, namespace=APPLICATION)

    def start(self) -> None:
        """Start the command, and wait until it serves."""
        self._server = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert "2 replicas on Ray" in line, line

    def add_node(self) -> None:
        """The second one, which has room for as many replicas."""
        self._node = self._cluster.add_node(num_cpus=8, object_store_memory=2e8)

    def remove_node(self) -> None:
        """Lose the second one, with everything on it."""
        self._cluster.remove_node(self._node, allow_graceful=False)

    def scale(self, replicas: int) -> None:
        """Have this many, and wait until the others have ended."""
        self._scale = replace(self._scale, replicas=replicas, max_replicas=None)
        self._deploy()
        wait_for(lambda: len(self.replicas()) == replicas == self.running())

    def scale_by_itself(self, least: int, most: int) -> None:
        """Let the number follow the requests."""
        self._scale = replace(self._scale, replicas=least, max_replicas=most, target_requests=2)
        self._deploy()

    def update(self, bundles: str) -> None:
        """Replace the bundles, and wait until only replicas of the new ones are there."""
        self._served = make_served(Path(bundles), "127.0.0.1", {}, in_file=False)
        before = set(self.replicas())
        self._deploy()
        wait_for(lambda: not before & set(self.replicas()))

    def run_config(self, file: str) -> None:
        """Have Ray's own command deploy what a config file says, and wait until nothing else is there."""
        before = set(self.replicas())
        command = [str(Path(sys.executable).with_name("serve")), "run", "--non-blocking"]
        address = ["--address", self._cluster.address]
        subprocess.run([*command, *address, file], check=True, stdout=sys.stderr, timeout=SECONDS)
        wait_for(lambda: not before & set(self.replicas()) and self.running() == 2)

    def _deploy(self) -> None:
        """As `serve deploy` does, which needs a dashboard: replicas that serve the same stay."""
        config = make_config(self._served, self._scale, "127.0.0.1", *self._ports)
        schema = ServeDeploySchema.model_validate(config)
        _get_global_client().deploy_apps(schema, _blocking=True)

    def replicas(self) -> list[int]:
        """The processes of those that are alive."""
        actors = ray._private.state.actors().values()
        name = f"ServeReplica:{APPLICATION}:{DEPLOYMENT}"
        return [
            actor["Pid"]
            for actor in actors
            if actor["ActorClassName"] == name and actor["State"] == "ALIVE"
        ]

    def running(self) -> int:
        """How many replicas Serve counts on."""
        status = serve.status().applications[APPLICATION].deployments[DEPLOYMENT]
        return int(status.replica_states.get("RUNNING", 0))

    def kill_replica(self) -> None:
        os.kill(self.replicas()[0], signal.SIGKILL)

    def lose_the_record(self) -> None:
        """Kill the actor that knows which replica has which stream, and wait until there is another."""
        actor = ray.get_actor(OWNERS, namespace="deploy-rnn")
        ray.kill(actor, no_restart=False)
        wait_for(lambda: not ray.get(actor.claim.remote([("confirm", "x", "y")]))[0])

    def answered(self) -> dict[str, dict[str, int]]:
        """Replica -> model -> how many requests it has answered."""
        handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
        return dict(handle.broadcast("answered").results())

    def stop(self) -> int:
        """SIGTERM to the command; its exit code."""
        self._server.terminate()
        return self._server.wait(SECONDS)

    def close(self) -> None:
        if self._server.poll() is None:
            self.stop()
        ray.shutdown()
        self._cluster.shutdown()


def wait_for(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + SECONDS
    while not is_met(condition):
        assert time.monotonic() < ends_at
        time.sleep(0.2)


def is_met(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except ray.exceptions.RayActorError:  # it is being started again
        return False


def main() -> None:
    cluster = Cluster(*sys.argv[1:])
    print(f"{ANSWER}null", flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        result = getattr(cluster, name)(*arguments)
        print(f"{ANSWER}{json.dumps(result)}", flush=True)
        if name == "close":
            return


if __name__ == "__main__":
    main()
