"""Runs nodes on this machine: a process each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..planning.estimates import refuse_too_large
from ..records.node_spec import RunSettings
from ..records.provenance import device_kind, device_memory, devices, usable_cores
from ..records.run_folder import cache_folder
from .executor import Ticket, TicketState
from .node_pool import NodePool, Slot
from .works import WORKER, Work


class LocalExecutor:
    """A pool of nodes in this process, which ends with it."""

    detached = False
    worker = WORKER

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._pool: NodePool | None = None
        self._left: dict[str, set[str]] = {}
        self._work_of: dict[str, str] = {}

    def device(self) -> str:
        """A GPU where there is one."""
        return device_kind("auto")

    def check(self, run: Path, works: Sequence[Work]) -> None:
        """Refuse what the GPUs of this machine have no room for."""
        nodes = [node.spec for work in works for node in work.nodes]
        if any(spec.device_kind == "cuda" for spec in nodes):
            available = device_memory(self._settings.device)
            if available is not None:
                refuse_too_large(nodes, available)

    def submit(self, works: Sequence[Work], run: Path) -> Mapping[str, Ticket]:
        """Let nodes wait for a slot."""
        if self._pool is None:
            slots = slots_here(self._settings)
            self._pool = NodePool(run, cache_folder(), self._settings, slots, self.worker).__enter__()
        self._pool.add([node for work in works for node in work.nodes])
        for work in works:
            self._left[work.id] = {node.key for node in work.nodes}
            self._work_of.update((node.key, work.id) for node in work.nodes)
        return {work.id: work.id for work in works}

    def find(self, run: Path) -> Mapping[str, Ticket]:
        """Nothing goes on when this process ends."""
        return {}

    def poll(self, tickets: Sequence[Ticket], seconds: float) -> Mapping[Ticket, TicketState]:
        """The works that run, and those that ended."""
        if self._pool is None:
            return {}
        states: dict[Ticket, TicketState] = {}
        for node in self._pool.step():
            work = self._work_of.pop(node.key)
            self._left[work].discard(node.key)
            states[work] = TicketState("running" if self._left[work] else "ended")
        self._rest()
        return states

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Stop the nodes of works."""
        if self._pool is None:
            return
        for key in [key for key, work in self._work_of.items() if work in tickets]:
            self._pool.cancel(key)
            del self._work_of[key]
        self._rest()

    def _rest(self) -> None:
        """Leave nothing behind once nothing waits."""
        if self._pool and not self._pool.busy:
            self._pool.__exit__()
            self._pool = None


def slots_here(settings: RunSettings) -> list[Slot]:
    """``run.jobs`` on every device that the study allows; a node that takes several devices has them all."""
    one = settings.processes == 1
    places = devices(settings.device) if one else [device_kind(settings.device)]
    count = settings.jobs * len(places)
    threads = settings.threads or max(1, usable_cores() // (count * settings.processes))
    return [Slot(place, threads) for _ in range(settings.jobs) for place in places]
