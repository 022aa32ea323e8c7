"""Submits what of a plan is not finished, and follows it: a node is done when its status in the run folder says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..domain import CellStatus
from ..errors import RecordError
from ..planning.nodes import Node, Plan
from ..records.node_spec import CellSpec
from ..records.run_folder import cache_folder, read_status
from .attempts import Attempts, attempts_at, conclude, remove_orphans
from .executor import Executor, Ticket, TicketState
from .run_store import Outcome, finished, folder_of, kept, whole_status, write_status
from .works import as_works, keys_of

POLL = 1.0
"""Seconds that an executor may wait for something to happen before it says how works stand."""
ROUNDS = 3
"""How often a node is submitted in one run whose work is lost again and again."""

Observer = Callable[[Outcome, int, int], None]
"""Told of every outcome, with how many of how many nodes have ended."""


@dataclass
class Follower:
    """The nodes of a plan on their way to a status.

    Args:
        warn: told in a line what went wrong and is mended.
    """

    run: Path
    plan: Plan
    executor: Executor
    observe: Observer
    attempts: Attempts
    warn: Callable[[str], None]
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._nodes = {node.key: node for node in self.plan.nodes}
        self._open: dict[Ticket, tuple[str, set[str]]] = {}
        self._rounds: dict[str, int] = {}

    @property
    def tickets(self) -> list[Ticket]:
        """The works that have not ended."""
        return list(self._open)

    @property
    def waiting(self) -> int:
        """How many nodes have not ended."""
        return len(self.plan.nodes) - len(self.outcomes)

    def start(self) -> None:
        """Keep what is finished, take up what the executor still holds, and submit the rest.

        Raises:
            UsageError: the executor refuses.
            StorageError: the disk refused a write.
        """
        cache = cache_folder()
        for stored in kept(self.run, self.plan.nodes, cache).values():
            self._forget_failure(stored.node)
            self._conclude(stored)
        for work, ticket in self.executor.find(self.run).items():
            keys = {key for key in keys_of(self.run, work) if key in self._nodes and key not in self.outcomes}
            if keys:
                self._open[ticket] = work, keys
        held = {key for _, keys in self._open.values() for key in keys}
        rest = [node for node in self.plan.nodes if node.key not in self.outcomes and node.key not in held]
        remove_orphans(self.run, rest)
        for node in rest:
            self.attempts.retire(node, lambda folder, node=node: finished(self.run, node, cache, folder) is not None)  # type: ignore[misc]
        self._submit(rest)

    def _forget_failure(self, node: Node) -> None:
        """Remove what says that a reference model failed which is there: it was killed once it had prepared it."""

        def is_done(folder: Path) -> bool:
            status = whole_status(folder)
            return status is not None and status.status == CellStatus.DONE

        result = folder_of(self.run, node)
        if not isinstance(node.spec, CellSpec) and result.exists() and not is_done(result):
            self.attempts.retire(node, is_done)

    def follow(self, keep_on: Callable[[], None]) -> list[Outcome]:
        """Wait until every node has ended; their outcomes in the plan's order.

        Args:
            keep_on: asked again and again; it raises to stop.
        """
        while self._open:
            for ticket, state in self.executor.poll(self.tickets, POLL).items():
                self._look(ticket, state)
            keep_on()
        remove_orphans(self.run, self.plan.nodes)
        return [self.outcomes[node.key] for node in self.plan.nodes]

    def _submit(self, nodes: Sequence[Node]) -> None:
        if not nodes:
            return
        held = {key: work for work, keys in self._open.values() for key in keys}
        works = as_works(self.plan, nodes, held)
        self.executor.check(self.run, works)
        tickets = self.executor.submit(works, self.run)
        for work in works:
            self._open[tickets[work.id]] = work.id, {node.key for node in work.nodes}

    def _look(self, ticket: Ticket, state: TicketState) -> None:
        """Conclude what has ended of a work."""
        if state.state == "waiting" or ticket not in self._open:
            return
        _, keys = self._open[ticket]
        for key in sorted(keys):
            outcome = self._ended(self._nodes[key])
            if outcome:
                keys.discard(key)
                self._conclude(outcome)
        if state.over:
            del self._open[ticket]
            self._take_back([self._nodes[key] for key in sorted(keys)], state)

    def _ended(self, node: Node) -> Outcome | None:
        """How a node ended, as its result says."""
        result = folder_of(self.run, node)
        try:
            status = read_status(result)
        except RecordError as error:
            return Outcome(node, CellStatus.FAILED, str(error))
        return Outcome.of(node, status) if status else None

    def _take_back(self, nodes: Sequence[Node], state: TicketState) -> None:
        """Nodes whose work is over and that have no status: one that was running failed; the others begin again."""
        again = []
        for node in nodes:
            left = attempts_at(self.run, node)
            self._rounds[node.key] = self._rounds.get(node.key, 0) + 1
            begins = state.state == "lost" or (state.state == "ended" and not left)
            if begins and self._rounds[node.key] < ROUNDS:
                again.append(node)
                continue
            reason = state.reason or "its work ended without it"
            log = f"; see {state.log}" if state.log else ""
            outcome = Outcome(node, state.status, f"{reason}{log}")
            attempt = left[-1] if left else self.attempts.new(node)
            write_status(attempt, outcome)
            conclude(attempt, folder_of(self.run, node))
            self._conclude(outcome)
        if again:
            self.warn(f"{len(again)} nodes begin again: {state.reason or 'their work ended without them'}")
            self._submit(again)

    def _conclude(self, outcome: Outcome) -> None:
        """Keep an outcome and tell the observer of it."""
        self.outcomes[outcome.node.key] = outcome
        self.observe(outcome, len(self.outcomes), len(self.plan.nodes))
