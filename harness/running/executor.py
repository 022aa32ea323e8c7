"""What runs a study's nodes, as the session sees it: this machine, a cluster, wherever ``run-nodes FILE`` can run.

An executor is given works: packs of nodes with what they need and the works that must have ended before. It submits
them, says how each stands, and cancels. It knows no benchmark, and never tells a score: a node is done when its status
in the run folder says so, whoever wrote that.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from ..domain import CellStatus
from .works import Work

Ticket = Hashable
"""An executor's own name for a work that it was given: the id of a cluster's job."""


@dataclass(frozen=True)
class TicketState:
    """How a work stands.

    Args:
        state: ``ended`` after it ran: what ran then and has no status failed, what had not begun is submitted again.
            ``lost`` where that is no fault of its nodes, such as a machine that died or a job that was preempted: all
            that has not ended is submitted again. ``cancelled``: none of it is.
        reason: why it ended, for the status of a node that came to write none.
        place: the machine that runs it, where that is known.
        log: the file of what its processes printed, where that is known.
        status: of a node that came to write none.
    """

    state: Literal["waiting", "running", "ended", "lost", "cancelled"]
    reason: str = ""
    place: str = ""
    log: str = ""
    status: CellStatus = CellStatus.FAILED

    @property
    def over(self) -> bool:
        return self.state not in ("waiting", "running")


@runtime_checkable
class Executor(Protocol):
    """Runs works. A plugin offers one with ``ExecutorSpec``; its target is called with the study's ``RunSettings``."""

    @property
    def detached(self) -> bool:
        """Whether works go on when the process that submitted them ends."""
        ...

    def device(self) -> str:
        """What ``run.device = "auto"`` is where nodes run: ``cpu`` or ``cuda``."""
        ...

    def check(self, run: Path, works: Sequence[Work]) -> None:
        """Refuse what cannot work, before anything is submitted. Raises UsageError with the remedy."""
        ...

    def submit(self, works: Sequence[Work], run: Path) -> Mapping[str, Ticket]:
        """Start works, or queue them, each after those that it needs; a ticket by each one's id.

        A work's nodes are run by the command ``unlearnbench run-nodes`` with the file that ``work.write(run)`` writes.
        """
        ...

    def find(self, run: Path) -> Mapping[str, Ticket]:
        """The works of a run folder, by id, that an earlier process submitted and that have not ended."""
        ...

    def poll(self, tickets: Sequence[Ticket], seconds: float) -> Mapping[Ticket, TicketState]:
        """How works stand, after waiting for something to happen for so many seconds at most.

        Those left out stand as they stood, or wait.

        Raises:
            StorageError: the disk refused a write.
        """
        ...

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Stop works and all that they started; they have ended when this returns."""
        ...
