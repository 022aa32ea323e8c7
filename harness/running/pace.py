"""When a run will be done: the plan's estimates, corrected by what nodes of each kind have taken so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from ..planning.estimates import estimated
from ..planning.nodes import Node, Plan
from ..records.node_spec import CellSpec
from .run_store import Outcome


class Pace:
    """What is left of a run.

    A node weighs what the plan estimates, or as much as the others where it cannot tell. What nodes of a kind took,
    beside what they weigh, corrects the rest of that kind: a plan's estimates are of a GPU, and most attacks and later
    runs that a sweep plans end at once, because their setting was not chosen.
    """

    def __init__(self, plan: Plan, now: float) -> None:
        costs = {node.key: estimated(node.spec) for node in plan.nodes}
        known = [cost.seconds for cost in costs.values() if cost]
        usual = sum(known) / len(known) if known else 1.0
        self._kinds = {node.key: _kind(node) for node in plan.nodes}
        self._weights = {key: cost.seconds if cost else usual for key, cost in costs.items()}
        self._left = set(self._weights)
        self._began = now
        self._took: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def ended(self, outcome: Outcome) -> None:
        """Count a node as done; one that was kept took no time, and says nothing of others."""
        key = outcome.node.key
        self._left.discard(key)
        if not outcome.cached:
            for kind in (self._kinds[key], ""):
                self._took[kind][0] += outcome.seconds
                self._took[kind][1] += self._weights[key]

    def left(self, now: float, running: Mapping[str, float]) -> float | None:
        """Seconds until the run is done; None before a node has ended.

        Args:
            running: for how many seconds each node has run that runs.
        """
        spent, weighed = self._took[""]
        if not weighed or spent <= 0:
            return None
        # What has just ended may still be among what runs.
        running = {key: seconds for key, seconds in running.items() if key in self._left}
        work = 0.0
        for key in self._left:
            seconds, weight = self._took.get(self._kinds[key], (spent, weighed))
            # A node that weighs nothing trains for no epoch.
            takes = self._weights[key] * seconds / weight if weight else 0.0
            work += max(takes - running.get(key, 0.0), 0.0)
        # As many nodes as have run at once so far will.
        at_once = max((spent + sum(running.values())) / max(now - self._began, 1e-9), 1.0)
        return work / at_once


def _kind(node: Node) -> str:
    """What nodes share that take alike: reference models, cells, runs of a chosen setting, and each attack."""
    if node.id.attack:
        return f"attack {node.id.attack}"
    is_chosen = isinstance(node.spec, CellSpec) and node.spec.rivals
    return "run of a chosen setting" if is_chosen else node.kind


def in_words(seconds: float) -> str:
    """A time that is still to come, no more exact than it is known."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60 // 10 * 10} min"
