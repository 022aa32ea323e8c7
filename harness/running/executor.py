"""What runs nodes, as the scheduler sees it: on this machine, on a cluster, wherever ``run-cell FOLDER`` can run.

An executor is given folders that hold a ``spec.json``. Each job runs ``unlearnbench run-cell FOLDER`` or the like, and
leaves ``status.json`` there; its exit status is 0 where the node is done. The scheduler decides what runs when; it
reads statuses itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..records.node_spec import RunSettings

Job = Hashable
"""An executor's own name for a node that it was given: a process, the id of a cluster's job."""


@dataclass(frozen=True)
class Slot:
    """A place for one node at a time: the device that it runs on (as ``run.device`` names one) and its CPU threads."""

    device: str = "auto"
    threads: int = 0


@dataclass(frozen=True)
class JobState:
    """How a job stands.

    Args:
        running: False once it has ended, in whatever way.
        reason: why it ended, where it did not come to write a status.
        seconds: for how long it has run; waiting in a queue does not count.
        memory: resident bytes, where they are known.
        refused: what it said when the disk refused its status.
    """

    running: bool
    reason: str = ""
    seconds: float = 0.0
    memory: int = 0
    refused: str = ""


@runtime_checkable
class Executor(Protocol):
    """Runs nodes. A plugin offers one with ``ExecutorSpec``; its target is called without arguments."""

    def slots(self, settings: RunSettings) -> Sequence[Slot]:
        """What the executor can hold: a slot for every node that may run at a time."""
        ...

    def submit(self, folder: Path, slot: Slot) -> Job:
        """Start the node whose ``spec.json`` lies in ``folder``; the spec names the slot's device already."""
        ...

    def poll(self, jobs: Sequence[Job], seconds: float) -> Mapping[Job, JobState]:
        """The state of every job, after waiting until one has ended, for ``seconds`` at most."""
        ...

    def cancel(self, job: Job) -> None:
        """Stop a job and all that it started; it has ended when this returns."""
        ...
