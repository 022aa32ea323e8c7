"""Counts which of several ways the engine took. They agree up to rounding, and the record says which ran."""

from __future__ import annotations

from collections import Counter


class Counters:
    """For each kind of work, how often it was done in which way."""

    def __init__(self) -> None:
        self._ways: dict[str, Counter[str]] = {}

    def count(self, work: str, way: str) -> None:
        """Count one more time that some work was done in this way."""
        self._ways.setdefault(work, Counter())[way] += 1

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Every kind of work with its ways, in order of their names."""
        return {work: dict(sorted(ways.items())) for work, ways in sorted(self._ways.items())}
