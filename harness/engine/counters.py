"""Which of several ways the engine took in this process: they agree up to rounding, and the record says which ran."""

from __future__ import annotations

from collections import Counter

_taken: dict[str, Counter[str]] = {}


def count(work: str, way: str) -> None:
    """Count one more time that some work was done in this way."""
    _taken.setdefault(work, Counter())[way] += 1


def counts() -> dict[str, dict[str, int]]:
    """For each kind of work the ways in which it was done since the process began, and how often."""
    return {work: dict(sorted(ways.items())) for work, ways in sorted(_taken.items())}
