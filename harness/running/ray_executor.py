"""Runs works as tasks of a Ray cluster, which places them, starts them once what they need has ended, and again when a
worker or a machine dies.

Tasks belong to an actor that outlives the process that submitted them: Ray ends the tasks of a driver with the driver.
Each task runs in a worker process of its own, which starts a process for every node.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import AGAIN, UsageError
from ..records.node_spec import Resources, RunSettings
from .executor import Ticket, TicketState
from .run_nodes import run_nodes
from .works import WORKER, Work, run_name

NAMESPACE = "unlearnbench"
UNDER_WAY = ("waiting", "running")
RETRIES = 3
"""How often a task begins again whose worker or machine died."""
PASSED_ON = ("UNLEARNBENCH_", "HF_", "TOKENIZERS_")
"""Beginnings of the variables of the environment that tasks are given as they are here."""


class RayExecutor:
    """Tasks of the cluster that the settings or ``RAY_ADDRESS`` name; otherwise of one that is started here."""

    worker = WORKER

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._address = settings.ray.address or os.environ.get("RAY_ADDRESS", "")
        self._supervisor: Any = None

    @property
    def detached(self) -> bool:
        """A cluster that was there before goes on; one that was started here ends with this process."""
        return bool(self._address)

    def device(self) -> str:
        """``cuda`` where the cluster has GPUs."""
        return "cuda" if self._ray().cluster_resources().get("GPU") else "cpu"

    def check(self, run: Path, works: Sequence[Work]) -> None:
        """Refuse works that fit on no machine."""
        machines = [machine["Resources"] for machine in self._ray().nodes() if machine["Alive"]]
        for work in works:
            wanted = {
                "CPU": self._cores(work),
                "GPU": work.resources.gpus,
                "memory": _bytes(work.resources, self._at_once(work)),
            }
            for name, value in wanted.items():
                most = max((machine.get(name, 0) for machine in machines), default=0)
                if value > most:
                    unit = 2**30 if name == "memory" else 1
                    shown = {"CPU": "cores", "GPU": "GPUs", "memory": "GiB of memory"}[name]
                    raise UsageError(
                        f"{work.title} asks for {value / unit:g} {shown}, and no machine of the cluster has more than "
                        f"{most / unit:.3g}; see [resources] and run.jobs"
                    )

    def submit(self, works: Sequence[Work], run: Path) -> Mapping[str, Ticket]:
        """A task for each work, in the hands of the run's actor."""
        ray, supervisor = self._ray(), self._actor(run, create=True)
        environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        given = [
            {
                "id": work.id,
                "needs": list(work.needs),
                "file": str(work.write(run.resolve(), self.worker)),
                "options": {
                    "num_cpus": self._cores(work),
                    "num_gpus": work.resources.gpus,
                    "memory": _bytes(work.resources, self._at_once(work)) or None,
                },
            }
            for work in works
        ]
        ray.get(supervisor.submit.remote(given, environment))
        return {work.id: work.id for work in works}

    def find(self, run: Path) -> Mapping[str, Ticket]:
        """The works that the run's actor has and that have not ended."""
        supervisor = self._actor(run, create=False)
        if supervisor is None:
            return {}
        states = self._ray().get(supervisor.states.remote())
        self._rest(states)
        return {work: work for work, (state, *_) in states.items() if state in UNDER_WAY}

    def poll(self, tickets: Sequence[Ticket], seconds: float) -> Mapping[Ticket, TicketState]:
        """How tasks stand, as the actor says; where it has died, its tasks have too."""
        time.sleep(seconds)
        ray = self._ray()
        try:
            states = ray.get(self._supervisor.states.remote())
        except ray.exceptions.RayActorError:
            self._supervisor = None
            return {ticket: TicketState("lost", "the machine of the run's actor died") for ticket in tickets}
        self._rest(states)
        return {ticket: TicketState(*states[ticket]) for ticket in tickets if ticket in states}

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """End tasks, and their processes with them."""
        if self._supervisor is not None and tickets:
            self._ray().get(self._supervisor.cancel.remote(list(tickets)))

    def _rest(self, states: Mapping[str, tuple[str, str, str]]) -> None:
        """End an actor whose tasks have ended; what is submitted later gets another."""
        if not any(state in UNDER_WAY for state, *_ in states.values()):
            self._ray().kill(self._supervisor)
            self._supervisor = None

    def _cores(self, work: Work) -> int:
        return max(1, work.resources.processors) * self._at_once(work)

    def _at_once(self, work: Work) -> int:
        return min(self._settings.jobs, len(work.nodes))

    def _ray(self) -> Any:
        """The library, connected."""
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray
        except ImportError:
            raise UsageError("--executor ray needs the package ray: pip install 'unlearnbench[ray]'") from None
        if ray.is_initialized():
            return ray
        if self._address:
            _see(self._address)
        try:
            ray.init(
                address=self._address or "local",
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level="ERROR",
                **({} if self._address else {"include_dashboard": False}),
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(_nobody(self._address or "this machine", error)) from None
        return ray

    def _actor(self, run: Path, create: bool) -> Any:
        """The actor of a run folder; None where there is none and none is made."""
        ray = self._ray()
        name = f"unlearnbench-{run_name(run)}"
        if self._supervisor is None:
            try:
                self._supervisor = ray.get_actor(name)
            except ValueError:
                if create:
                    lifetime = "detached" if self.detached else None
                    # Where the cluster's own state is, so that no other machine's death ends it.
                    made = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(_Supervisor)
                    self._supervisor = made.options(name=name, lifetime=lifetime).remote(name)
        return self._supervisor


def _see(address: str) -> None:
    """Raises UsageError where nobody listens; Ray itself asks for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UsageError(_nobody(address, error)) from None


def _nobody(address: str, error: Exception) -> str:
    return f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}; see run.ray.address and RAY_ADDRESS"


def _bytes(resources: Resources, at_once: int) -> int:
    return round(resources.memory * at_once * 2**30)


class _Supervisor:
    """The actor that a run's tasks belong to."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: dict[str, Any] = {}
        self._states: dict[str, tuple[str, str, str]] = {}

    def submit(self, works: Sequence[Mapping[str, Any]], environment: Mapping[str, str]) -> None:
        """Start tasks, each after those that it needs, however they end."""
        import ray

        task = ray.remote(max_calls=1, max_retries=RETRIES)(_run)
        for work in works:
            needed = [self._tasks[need] for need in work["needs"] if need in self._tasks]
            started = task.options(name=f"unlearnbench-{work['id']}", **work["options"])
            self._tasks[work["id"]] = started.remote(self._name, work["id"], work["file"], environment, *needed)
            self._states[work["id"]] = "waiting", "", ""

    def began(self, work: str, place: str) -> None:
        """A task says that it runs."""
        if work in self._states:
            self._states[work] = "running", "", place

    def states(self) -> dict[str, tuple[str, str, str]]:
        """State, reason and machine of every work."""
        import ray

        left = [self._tasks[work] for work, (state, *_) in self._states.items() if state in UNDER_WAY]
        over, _ = ray.wait(left, num_returns=len(left), timeout=0) if left else ([], [])
        ended = set(over)
        for work, task in self._tasks.items():
            if task in ended:
                self._states[work] = self._end(task, self._states[work][2])
        return dict(self._states)

    def cancel(self, works: Sequence[str]) -> None:
        """End tasks; those that have ended stay as they are."""
        import ray

        for work in works:
            ray.cancel(self._tasks[work], force=True)
        ray.wait([self._tasks[work] for work in works], num_returns=len(works), timeout=60)

    def _end(self, task: Any, place: str) -> tuple[str, str, str]:
        import ray

        try:
            code = ray.get(task)
        except ray.exceptions.TaskCancelledError:
            return "cancelled", "its task was cancelled", place
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
            return "lost", f"Ray: {type(error).__name__}", place
        except ray.exceptions.OutOfMemoryError:
            return "ended", "its task was killed for memory; ask for more: --set resources.memory=", place
        except ray.exceptions.RayError as error:
            return "ended", f"its task ended with {str(error).strip().splitlines()[-1]}", place
        return (
            ("lost", "it was stopped, or what it needs has not ended", place) if code == AGAIN else ("ended", "", place)
        )


def _run(supervisor: str, work: str, file: str, environment: Mapping[str, str], *needed: object) -> int:
    """A task: run the nodes of a work's file; returns what ``run-nodes`` exits with."""
    import ray

    os.environ.update(environment)
    cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(cores)))
    ray.get_actor(supervisor, namespace=NAMESPACE).began.remote(work, socket.gethostname())
    return run_nodes(Path(file))
