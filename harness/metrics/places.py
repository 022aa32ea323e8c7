"""Places with their uncertainty: which rows of a table are above which others, and what that says of their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .statistics import LEVEL, Floats

BLOCK = 256
"""Rows that are compared with all others at a time, which bounds memory."""


@dataclass(frozen=True)
class Place:
    """The place of a row: 1 for the best by value; the range that its uncertainty leaves; its group, 1 for the best.

    Rows with equal values share a place. A group holds the rows that cannot be told from the best of it.
    """

    place: int
    best: int
    worst: int
    group: int

    @property
    def range(self) -> str:
        """The range in words: ``2`` or ``2–5``."""
        return str(self.best) if self.best == self.worst else f"{self.best}–{self.worst}"


def places(
    values: Sequence[float],
    resamples: Floats,
    extra_variance: Sequence[float] | None = None,
    freedom: float = np.inf,
    rows: float = np.inf,
    level: float = LEVEL,
) -> list[Place]:
    """Places of rows by value, with the rows that each is told apart from.

    Row i is above row j where their difference is significant in the paired resamples, after Holm's correction over
    all pairs of the table (Holm 1979). A thousand resamples cannot count to a level of 0.05 / 105 pairs, so that the
    test is the difference divided by its resampled standard error, against Student's t.

    Args:
        values: (n,) scores, larger being better.
        resamples: (n, R) the same scores over resamples that are shared by all rows.
        extra_variance: (n,) variances of the scores from other sources than rows, such as seeds.
        freedom: degrees of freedom behind ``extra_variance``.
        rows: how many were resampled. The fewer, the less of their variance resamples show: it is multiplied by
            rows / (rows − 1), and Student's t has at most rows − 1 degrees of freedom.
        level: of the family of all comparisons together.
    """
    scores = np.asarray(values, dtype=float)
    if not len(scores):
        return []
    extra = np.zeros(len(scores)) if extra_variance is None else np.asarray(extra_variance, dtype=float)
    order = np.argsort(-scores, kind="stable")
    # In this order only pairs (earlier, later) can differ in the right direction.
    drawn = np.asarray(resamples, dtype=np.float32)[order]
    if np.isfinite(rows):
        drawn = drawn * np.float32(np.sqrt(rows / max(rows - 1, 1)))
    ratios = _ratios(scores[order], drawn, extra[order])
    bar = _holm(ratios, len(scores) * (len(scores) - 1) // 2, 1 - level, min(freedom, max(rows - 1, 1)))
    above, below = _counts_beyond(ratios, bar)
    groups = _groups(ratios, bar)
    found: list[Place] = [Place(0, 0, 0, 0)] * len(scores)
    first = 0
    for position, row in enumerate(order):
        if scores[row] != scores[order[first]]:
            first = position
        found[row] = Place(first + 1, int(above[position]) + 1, len(scores) - int(below[position]), groups[position])
    return found


def _ratios(scores: Floats, resamples: NDArray[np.float32], extra: Floats) -> list[NDArray[np.float32]]:
    """Differences divided by their standard errors, of each block of rows from all rows that are not before the block.

    0 for a row from itself and from rows before it.
    """
    rows, draws = resamples.shape
    centred = resamples - resamples.mean(axis=1, keepdims=True)
    variance = (centred**2).sum(axis=1, dtype=np.float64) / max(draws - 1, 1) + extra
    found = []
    for begin in range(0, rows, BLOCK):
        mine = slice(begin, min(begin + BLOCK, rows))
        shared = centred[mine] @ centred[begin:].T / max(draws - 1, 1)  # (block, later) covariances
        error = np.sqrt(np.maximum(variance[mine, None] + variance[None, begin:] - 2 * shared, 0.0))
        gap = scores[mine, None] - scores[None, begin:]
        # Rounding leaves a difference of 1e-9, and an error of 1e-5, between rows with equal resamples.
        ratio = np.where(gap > 1e-9, gap / np.maximum(error, 1e-5), 0.0)
        found.append(np.triu(ratio, 1).astype(np.float32))
    return found


def _holm(ratios: Sequence[NDArray[np.float32]], pairs: int, share: float, freedom: float) -> float:
    """The least ratio that Holm's step-down rejects: infinite where it rejects none."""
    rejected = 0
    while rejected < pairs:
        bar = float(stats.t.isf(share / 2 / (pairs - rejected), freedom))
        more = sum(int((block >= bar).sum()) for block in ratios)
        if more == rejected:
            return bar if rejected else np.inf
        rejected = more
    return float(stats.t.isf(share / 2, freedom))


def _counts_beyond(ratios: Sequence[NDArray[np.float32]], bar: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row the number of rows that are above it, and below it."""
    above = np.zeros(ratios[0].shape[1], dtype=np.int64)
    below = np.concatenate([(block >= bar).sum(axis=1) for block in ratios])
    for block in ratios:
        above[len(above) - block.shape[1] :] += (block >= bar).sum(axis=0)
    return above, below


def _groups(ratios: Sequence[NDArray[np.float32]], bar: float) -> list[int]:
    """The group of each row: the rows that cannot be told from the best of those without a group, again and again."""
    group = np.zeros(ratios[0].shape[1], dtype=int)
    number = 0
    while not group.all():
        number += 1
        leader = int(np.argmin(group > 0))
        # In the leader's block, columns begin with the block's first row.
        alike = ratios[leader // BLOCK][leader % BLOCK, leader % BLOCK :] < bar
        rest = group[leader:]
        rest[(rest == 0) & alike] = number
    return [int(each) for each in group]
