"""Runs the nodes of a plan, each after those it needs, in the slots of an executor; one failure never stops another."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..domain import CellStatus
from ..errors import RecordError, StorageError
from ..planning.nodes import Node, Plan
from ..records.chosen import unattackable
from ..records.node_spec import CellSpec, write_spec
from ..records.run_folder import LEFT, read_status
from .executor import Executor, Job, JobState, Slot
from .run_store import (
    Outcome,
    conclude_attempt,
    finished,
    folder_of,
    new_attempt,
    remove_attempts,
    retire,
    write_status,
)

POLL = 0.02
"""Seconds that the scheduler waits at most before it looks at limits again."""

Observer = Callable[[Outcome, int, int], None]
"""Told of every outcome, with how many of how many nodes have ended."""


def execute(run: Path, plan: Plan, cache: Path, observe: Observer, executor: Executor) -> list[Outcome]:
    """Run every node that is not finished.

    Raises:
        KeyboardInterrupt: after every running node was stopped; what is finished stays finished.
        StorageError: the disk refused a write.
    """
    schedule = _Schedule(run, plan, cache, observe, executor)
    remove_attempts(run)
    schedule.take_finished()
    try:
        while schedule.waiting or schedule.running:
            schedule.start_ready()
            schedule.collect()
    finally:
        for job in schedule.running:
            executor.cancel(job)
    return [schedule.outcomes[node.key] for node in plan.nodes]


@dataclass(frozen=True)
class _Attempt:
    """A node that runs: in which folder, and in which slot."""

    node: Node
    folder: Path
    slot: Slot


@dataclass
class _Schedule:
    """What waits, what runs and how each node ended."""

    run: Path
    plan: Plan
    cache: Path
    observe: Observer
    executor: Executor
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    running: dict[Job, _Attempt] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = {node.key: node for node in self.plan.nodes}
        self.free = list(self.executor.slots(self.plan.study.run))

    def take_finished(self) -> None:
        """Conclude every node that an earlier run has done."""
        for node in self.plan.nodes:
            stored = finished(self.run, node, self.cache)
            if stored:
                del self.waiting[node.key]
                self.conclude(stored)

    def start_ready(self) -> None:
        """Start every node whose needs are done, while there are slots; fail those whose needs failed."""
        for node in list(self.waiting.values()):
            failed = next((key for key in node.needs if key in self.outcomes and not self._done(key)), None)
            if failed:
                del self.waiting[node.key]
                self.fail(node, self._blocked(node, self.outcomes[failed]))
            elif self.free and all(key in self.outcomes for key in (*node.needs, *node.after)):
                del self.waiting[node.key]
                left_out = self._left_out(node)
                if left_out:
                    self.fail(node, left_out)
                else:
                    self._start(node, self._take_slot())

    def collect(self) -> None:
        """Conclude every job that ended or overstepped a limit."""
        if not self.running:
            return
        for job, state in self.executor.poll(list(self.running), POLL).items():
            attempt = self.running[job]
            outcome = self._over_limit(attempt.node, state) if state.running else self._ended(attempt, state)
            if outcome is None:
                continue
            if state.running:
                self.executor.cancel(job)
                write_status(attempt.folder, outcome)
            result = folder_of(self.run, attempt.node)
            if not conclude_attempt(attempt.folder, result):
                other = read_status(result)
                outcome = Outcome.of(attempt.node, other, cached=True) if other else outcome
            del self.running[job]
            self.free.append(attempt.slot)
            self.conclude(outcome)

    def conclude(self, outcome: Outcome) -> None:
        """Keep an outcome and tell the observer of it."""
        self.outcomes[outcome.node.key] = outcome
        self.observe(outcome, len(self.outcomes), len(self.plan.nodes))
        self._forget_models(outcome.node)

    def _forget_models(self, node: Node) -> None:
        """Remove the weights that a cell left, once nothing waits for the cell any more."""
        for key in (node.key, *node.after):
            folder = self.run / "cells" / key / LEFT
            if folder.exists() and not any(key in other.after for other in self._unended()):
                shutil.rmtree(folder, ignore_errors=True)

    def _unended(self) -> Iterator[Node]:
        yield from self.waiting.values()
        yield from (attempt.node for attempt in self.running.values())

    def fail(self, node: Node, outcome: Outcome) -> None:
        """Conclude a node that was never started."""
        attempt, result = new_attempt(self.run, node), folder_of(self.run, node)
        write_status(attempt, outcome)
        retire(result)
        conclude_attempt(attempt, result)
        self.conclude(outcome)

    def _take_slot(self) -> Slot:
        """A slot of the device that has the most of them free."""
        devices = [slot.device for slot in self.free]
        return self.free.pop(max(range(len(devices)), key=lambda place: devices.count(devices[place])))

    def _done(self, key: str) -> bool:
        return self.outcomes[key].status == CellStatus.DONE

    def _start(self, node: Node, slot: Slot) -> None:
        retire(folder_of(self.run, node))
        folder = new_attempt(self.run, node)
        write_spec(folder, node.spec.started(self.cache, slot.device, slot.threads))
        self.running[self.executor.submit(folder, slot)] = _Attempt(node, folder, slot)

    def _blocked(self, node: Node, cause: Outcome) -> Outcome:
        reason = f"needs {cause.node.title}, which ended as {cause.status}: {cause.reason}"
        status = cause.status if cause.status == CellStatus.NOT_APPLICABLE else CellStatus.FAILED
        return Outcome(node, status, reason, exit_code=cause.exit_code)

    def _left_out(self, node: Node) -> Outcome | None:
        """The outcome of an attack that is not run; None of a node that is."""
        if not isinstance(node.spec, CellSpec) or node.spec.attack is None:
            return None
        try:
            reason = unattackable(self.run / node.spec.folder, node.spec)
        except RecordError as error:
            return Outcome(node, CellStatus.FAILED, str(error))
        return Outcome(node, CellStatus.NOT_APPLICABLE, reason) if reason else None

    def _over_limit(self, node: Node, state: JobState) -> Outcome | None:
        """The outcome of a job that takes more than the study allows; None of one that may go on."""
        settings = self.plan.study.run
        if settings.timeout and state.seconds > settings.timeout:
            reason = f"took longer than --timeout {settings.timeout:g} s"
            return Outcome(node, CellStatus.TIMED_OUT, reason, state.seconds)
        if settings.memory_limit and state.memory > settings.memory_limit * 2**30:
            reason = f"used more than --memory-limit {settings.memory_limit:g} GiB"
            return Outcome(node, CellStatus.OUT_OF_MEMORY, reason, state.seconds)
        return None

    def _ended(self, attempt: _Attempt, state: JobState) -> Outcome:
        """The outcome that a node wrote, or why it wrote none."""
        node = attempt.node
        # Where the disk could not even take the log line, writing the status below fails and says so.
        if state.refused.startswith("cannot write"):
            raise StorageError(state.refused)
        try:
            status = read_status(attempt.folder)
            reason = state.reason
        except RecordError as error:
            status, reason = None, str(error)
        if status is not None:
            return Outcome.of(node, status)
        # Files that are named here move to where the result is.
        reason = reason.replace(str(attempt.folder), str(folder_of(self.run, node)))
        outcome = Outcome(node, CellStatus.FAILED, reason, state.seconds)
        write_status(attempt.folder, outcome)
        return outcome
