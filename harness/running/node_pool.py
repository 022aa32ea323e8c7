"""Runs nodes on this machine, each after those it needs; one failure never stops another.

The whole of a study where it runs here, or a pack of it within a cluster's allocation. Whether a node may start is
told by its neighbours' statuses in the run folder, whoever wrote them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..data.model_folder import REFERENCE, prepared_folder
from ..domain import CellStatus
from ..errors import RecordError, StorageError
from ..planning.nodes import Node
from ..records.chosen import Choices
from ..records.node_spec import CellSpec, ReferenceSpec, RunSettings, read_spec, write_spec
from ..records.run_folder import LEFT, NodeStatus, read_status
from .attempts import Attempts, conclude
from .node_processes import NodeProcess, NodeProcesses, ProcessState, kill, wait_for_one
from .run_store import Outcome, folder_of, whole_status, write_status

POLL = 0.02
"""Seconds that a pool waits at most before it looks at limits again."""


@dataclass(frozen=True)
class Slot:
    """A place for one node at a time: the device that it runs on (as ``run.device`` names one) and its CPU threads."""

    device: str = "auto"
    threads: int = 0


@dataclass(frozen=True)
class _Running:
    """A node that runs."""

    node: Node
    process: NodeProcess
    slot: Slot


class NodePool:
    """Nodes that wait, and those that run, in slots; use as a context manager.

    Args:
        cache: the folder of prepared reference models on this machine.
        worker: as of ``NodeProcesses``.
    """

    def __init__(self, run: Path, cache: Path, settings: RunSettings, slots: Sequence[Slot], worker: str) -> None:
        self._run, self._cache, self._settings = run, cache, settings
        self._free = list(slots)
        self._processes = NodeProcesses(worker, settings.memory_limit > 0)
        self._attempts = Attempts(run)
        self._waiting: dict[str, Node] = {}
        self._unmet: dict[str, int] = {}
        self._ready: list[str] = []
        self._running: dict[str, _Running] = {}
        self._followers: dict[str, list[str]] = {}
        self._references: dict[str, Node] = {}
        self._seen: dict[str, NodeStatus] = {}
        self._choices = Choices(run / CellSpec.folder)

    def __enter__(self) -> NodePool:
        self._attempts.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for running in list(self._running.values()):
            self.cancel(running.node.key)
        self._attempts.__exit__()

    @property
    def busy(self) -> bool:
        """Whether a node waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def running(self) -> frozenset[str]:
        """The keys of the nodes that run."""
        return frozenset(self._running)

    def add(self, nodes: Iterable[Node], references: Iterable[Node] = ()) -> None:
        """Let nodes wait for their turn.

        Args:
            nodes: those among them that others need come first, as in a plan.
            references: reference models that were prepared elsewhere, to be prepared here where this cache lacks one.
        """
        self._references.update((node.key, node) for node in references)
        added = list(nodes)
        self._waiting.update((node.key, node) for node in added)
        for node in added:
            here = {key for key in (*node.needs, *node.after) if key in self._waiting or key in self._running}
            self._unmet[node.key] = len(here)
            for key in here:
                self._followers.setdefault(key, []).append(node.key)
            if not here:
                self._ready.append(node.key)

    def step(self, seconds: float = POLL) -> list[Node]:
        """Start what may start, wait for a node to end for so many seconds at most; the nodes that ended.

        Each has its status in the run folder then, unless one that it needs has none there: such a node cannot start.

        Raises:
            StorageError: the disk refused a write.
        """
        ended = list(self._start_ready())
        if self._running and not ended:
            wait_for_one([running.process for running in self._running.values()], seconds)
        for running in list(self._running.values()):
            if self._has_ended(running):
                ended.append(running.node)
        for node in ended:
            self._end(node)
        return ended

    def cancel(self, key: str) -> None:
        """Stop a node, whose attempt stays as it is; does nothing for one that is not here."""
        self._waiting.pop(key, None)
        running = self._running.pop(key, None)
        if running:
            kill(running.process)
            self._free.append(running.slot)

    def _end(self, node: Node) -> None:
        """Let those start that waited for a node."""
        for key in self._followers.pop(node.key, ()):
            self._unmet[key] -= 1
            if not self._unmet[key]:
                self._ready.append(key)
        self._forget_models(node)

    def _start_ready(self) -> Iterator[Node]:
        """Start nodes while there are slots; those that ended without being started."""
        ready, self._ready = self._ready, []
        for place, key in enumerate(ready):
            node = self._waiting.get(key)
            if node is None:
                continue
            try:
                outcome = self._ends_at_once(node)
            except _Missing:
                del self._waiting[key]
                yield node
                continue
            if outcome is None and self._waits_for_models(node):
                continue
            if outcome is None and not self._free:
                self._ready = ready[place:] + self._ready
                return
            del self._waiting[key]
            if outcome is None:
                self._start(node)
            else:
                if not outcome.cached:
                    self._attempts.note(outcome)
                yield node

    def _ends_at_once(self, node: Node) -> Outcome | None:
        """The outcome of a node that need not or cannot run; None of one that may start.

        Raises:
            _Missing: what it needs has not ended.
        """
        if self._has_result(node):
            # Another attempt at it, of which this pool could not know.
            return Outcome(node, CellStatus.DONE, cached=True)
        for key in node.needs:
            status = self._status(key)
            if status.status != CellStatus.DONE:
                return self._blocked(node, key, status)
        for key in node.after:
            self._status(key)
        return self._left_out(node)

    def _has_result(self, node: Node) -> bool:
        """Whether the node has ended already; a reference model has where it is in this cache, or failed."""

        def holds(folder: Path) -> bool:
            status = whole_status(folder)
            return status is not None and status.content == node.content

        result = folder_of(self._run, node)
        if not result.exists():
            return False
        if not holds(result):
            self._attempts.retire(node, holds)
            return False
        return isinstance(node.spec, CellSpec) or self._is_prepared(node.key) or not self._is_done(node.key)

    def _is_prepared(self, key: str) -> bool:
        return (prepared_folder(self._cache, key) / REFERENCE).exists()

    def _is_done(self, key: str) -> bool:
        return self._status(key).status == CellStatus.DONE

    def _status(self, key: str) -> NodeStatus:
        """How a node ended. Raises _Missing where it has not."""
        known = self._seen.get(key)
        for kind in (CellSpec.folder, ReferenceSpec.folder):
            try:
                known = known or read_status(self._run / kind / key)
            except RecordError as error:
                known = NodeStatus(status=CellStatus.FAILED, reason=str(error))
        if known is None and self._is_prepared(key):
            # By another study, whose models are in the same cache.
            known = NodeStatus(status=CellStatus.DONE)
        if known is None:
            raise _Missing(key)
        self._seen[key] = known
        return known

    def _blocked(self, node: Node, key: str, cause: NodeStatus) -> Outcome:
        title = key
        for kind in (CellSpec.folder, ReferenceSpec.folder):
            with suppress(RecordError):
                title = read_spec(self._run / kind / key).title
        reason = f"needs {title}, which ended as {cause.status}: {cause.reason}"
        status = cause.status if cause.status == CellStatus.NOT_APPLICABLE else CellStatus.FAILED
        return Outcome(node, status, reason, exit_code=cause.exit_code)

    def _left_out(self, node: Node) -> Outcome | None:
        """The outcome of a cell that is not run, by what came before it; None of a node that is."""
        if not isinstance(node.spec, CellSpec):
            return None
        try:
            reason = self._choices.left_out(node.spec)
        except RecordError as error:
            return Outcome(node, CellStatus.FAILED, str(error))
        return Outcome(node, CellStatus.NOT_APPLICABLE, reason) if reason else None

    def _waits_for_models(self, node: Node) -> bool:
        """Whether reference models that are in another machine's cache alone must be prepared here first."""
        models = node.spec.models.values() if isinstance(node.spec, CellSpec) else ()
        lacking = [key for key in models if key in self._references and not self._is_prepared(key)]
        for key in lacking:
            # Once: where this fails, the cell says what it lacks.
            self.add([self._references.pop(key)])
        here = [key for key in models if key in self._waiting or key in self._running]
        self._unmet[node.key] = len(here)
        for key in here:
            self._followers.setdefault(key, []).append(node.key)
        return bool(here)

    def _start(self, node: Node) -> None:
        slot = self._take_slot()
        folder = self._attempts.new(node)
        write_spec(folder, node.spec.started(self._cache, slot.device, slot.threads))
        self._running[node.key] = _Running(node, self._processes.start(folder), slot)

    def _take_slot(self) -> Slot:
        """A slot of the device that has the most of them free."""
        devices = [slot.device for slot in self._free]
        return self._free.pop(max(range(len(devices)), key=lambda place: devices.count(devices[place])))

    def _has_ended(self, running: _Running) -> bool:
        """Conclude a node whose process ended, or overstepped a limit."""
        state = self._processes.state(running.process)
        attempt = running.process.folder
        if state.running:
            outcome = self._over_limit(running.node, state)
            if outcome is None:
                return False
            kill(running.process)
            write_status(attempt, outcome)
        else:
            self._complete(running, state)
        conclude(attempt, folder_of(self._run, running.node))
        del self._running[running.node.key]
        self._free.append(running.slot)
        return True

    def _over_limit(self, node: Node, state: ProcessState) -> Outcome | None:
        """The outcome of a node that takes more than the study allows; None of one that may go on."""
        settings = self._settings
        if settings.timeout and state.seconds > settings.timeout:
            reason = f"took longer than --timeout {settings.timeout:g} s"
            return Outcome(node, CellStatus.TIMED_OUT, reason, state.seconds)
        if settings.memory_limit and state.memory > settings.memory_limit * 2**30:
            reason = f"used more than --memory-limit {settings.memory_limit:g} GiB"
            return Outcome(node, CellStatus.OUT_OF_MEMORY, reason, state.seconds)
        return None

    def _complete(self, running: _Running, state: ProcessState) -> None:
        """Write the status of a node that wrote none."""
        attempt = running.process.folder
        # Where the disk could not even take the log line, writing the status below fails and says so.
        if state.refused.startswith("cannot write"):
            raise StorageError(state.refused)
        try:
            if read_status(attempt) is not None:
                return
            reason = state.reason
        except RecordError as error:
            reason = str(error)
        # Files that are named here move to where the result is.
        reason = reason.replace(str(attempt), str(folder_of(self._run, running.node)))
        write_status(attempt, Outcome(running.node, CellStatus.FAILED, reason, state.seconds))

    def _forget_models(self, node: Node) -> None:
        """Remove the weights that a cell left, once no attack waits for the cell any more."""
        for key in (node.key, *node.after):
            folder = self._run / "cells" / key / LEFT
            if folder.exists() and not any(key in other.after for other in self._unended()):
                shutil.rmtree(folder, ignore_errors=True)

    def _unended(self) -> Iterator[Node]:
        yield from self._waiting.values()
        yield from (running.node for running in self._running.values())


class _Missing(Exception):
    """A node that another one needs has not ended."""
