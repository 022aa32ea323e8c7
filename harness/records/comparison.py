"""Two results side by side, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..metrics.statistics import Floats
from .gates import Gate


@dataclass(frozen=True)
class Difference:
    """One metric of one pairing.

    ``worsening`` is how much worse the candidate is in the metric's own direction; below 0 it is better. Intervals
    are 95 %. ``paired`` is False where one side has no samples: then the interval takes the two for independent.
    """

    metric: str
    label: str
    edition: str
    baseline: float
    candidate: float
    difference: float
    interval: tuple[float, float] | None
    worsening: float
    paired: bool
    n: int
    reason: str = ""
    resampled_worsening: Floats | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Pair:
    """One cell on both sides."""

    identity: Mapping[str, Any]
    metrics: tuple[Difference, ...]
    costs: Mapping[str, tuple[float | None, float | None]]

    @property
    def title(self) -> str:
        i = self.identity
        return f"{i['method']} × {i['benchmark']} × {i['model']} seed {i['seed']}"


@dataclass(frozen=True)
class Comparison:
    """What stands on both sides, and what on one alone (with its status)."""

    baseline: str
    candidate: str
    pairs: tuple[Pair, ...]
    only_baseline: tuple[Mapping[str, Any], ...]
    only_candidate: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()


# -- gates ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One pairing that a gate looked at."""

    gate: Gate
    title: str
    tripped: bool
    message: str
