"""Differences of two rows of a table with paired intervals, which a page loads when a reader compares them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from unlearnbench.domain import NUMBERS
from unlearnbench.metrics.statistics import half_width

from .numbers import Number
from .rows import TableRow


def paired(one: Number, other: Number) -> tuple[float, float, float] | None:
    """The difference ``other`` − ``one`` with the ends of its 95 % interval; None where a number is missing.

    Rows are resampled for both at once, so that what they share cancels, and what seeds explain of either is added, as
    for places; this is one comparison, without the correction for all pairs of a table.
    """
    if one.resamples is None or other.resamples is None:
        return None
    n = min(one.n, other.n)
    drawn = (other.resamples - one.resamples) * math.sqrt(n / max(n - 1, 1))
    freedom = min(one.freedom, other.freedom, max(n - 1, 1))
    half = half_width(drawn, one.seed_variance + other.seed_variance, freedom)
    difference = other.value - one.value
    return difference, difference - half, difference + half


def pairs(rows: Sequence[TableRow]) -> dict[str, list[Any]]:
    """The differences of score, forgetting and utility of all pairs of rows, by their places: ``"0.3"``."""
    found = {}
    for (i, one), (j, other) in combinations(enumerate(rows), 2):
        if one.numbers and other.numbers:
            differences = [paired(one.numbers[name], other.numbers[name]) for name in NUMBERS]
            found[f"{i}.{j}"] = [each and [round(value, 4) for value in each] for each in differences]
    return found
