"""A Ray cluster of several machines on this one, on loopback, for tests: a process of its own that takes orders.

``python ray_cluster.py N`` prints the cluster's address, and kills or adds a machine for every line that it reads.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import IO, cast

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_memory_monitor_refresh_ms": "0",
}


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    return "" if importlib.util.find_spec("ray") else "the package ray is not installed"


class RayCluster:
    """Use as a context manager; ``environment`` is what commands need to find the cluster."""

    def __init__(self, path: str, nodes: int = 2) -> None:
        self._words = [sys.executable, __file__, str(nodes)]
        paths = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))
        self._variables = {**os.environ, **ENVIRONMENT, "PYTHONPATH": paths}

    def __enter__(self) -> RayCluster:
        self._process = subprocess.Popen(
            self._words, env=self._variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.environment = {"RAY_ADDRESS": self._answer(), **ENVIRONMENT}
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def kill_node(self) -> None:
        """As when a machine dies, with all that ran on it."""
        self._order("kill")

    def add_node(self) -> None:
        self._order("add")

    def _order(self, word: str) -> None:
        orders = cast(IO[str], self._process.stdin)
        orders.write(f"{word}\n")
        orders.flush()
        self._answer()

    def _answer(self) -> str:
        return cast(IO[str], self._process.stdout).readline().strip()


def main() -> None:
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": 80 * 2**20}
    head = {**size, "num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=2, num_gpus=0, **size) for _ in range(int(sys.argv[1]))]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        else:
            nodes.append(cluster.add_node(num_cpus=2, num_gpus=0, **size))
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
