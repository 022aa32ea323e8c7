"""Executors of tests, whose nodes do nothing: what is seen is how nodes are run."""

from __future__ import annotations

from noop_worker import WORKER

from unlearnbench import ExecutorSpec
from unlearnbench.running.local_executor import LocalExecutor
from unlearnbench.running.ray_executor import RayExecutor
from unlearnbench.running.slurm_executor import SlurmExecutor


class NoopLocal(LocalExecutor):
    worker = WORKER


class NoopRay(RayExecutor):
    worker = WORKER


class NoopSlurm(SlurmExecutor):
    worker = WORKER


def unlearnbench_executors():
    return [
        ExecutorSpec("noop-local", "noop_plugin:NoopLocal", "nodes that do nothing, on this machine"),
        ExecutorSpec("noop-ray", "noop_plugin:NoopRay", "nodes that do nothing, on Ray"),
        ExecutorSpec("noop-slurm", "noop_plugin:NoopSlurm", "nodes that do nothing, on Slurm"),
    ]
