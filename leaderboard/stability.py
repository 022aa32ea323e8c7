"""What varies between the runs of a table's rows, and how stable their places are over reference models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev

import numpy as np
from scipy import stats

from unlearnbench.metrics.statistics import Floats, variance_components

from .rows import TableRow


@dataclass(frozen=True)
class Variation:
    """What the score of one row varies by, as standard deviations of one run's score.

    Args:
        over_rows: of resampled rows.
        over_runs: between runs.
        reference, unlearning: the parts of it that training the reference model and that unlearning add; None unless
            unlearning is repeated from several reference models.
        places: the row's place among the ranked rows, by the score that each reference model gives.
    """

    row: TableRow
    over_rows: float
    over_runs: float
    reference: float | None
    unlearning: float | None
    places: tuple[int, ...]


@dataclass(frozen=True)
class Stability:
    """Variations of ranked rows, and the agreement of their order over reference models.

    Args:
        seeds: of the reference models, in the order of the places.
        agreement: Kendall's tau between the orders of two reference models, the mean over all pairs of them; None for
            one reference model or one row. 1 says that the orders are equal, 0 that they have nothing in common.
    """

    seeds: tuple[int, ...]
    agreement: float | None
    rows: tuple[Variation, ...]


def stability(placed: Sequence[TableRow], shown: Sequence[TableRow]) -> Stability | None:
    """The stability of ranked rows, with variations of those that are shown; None where rows have one run."""
    if not placed or len(placed[0].numbers["score"].by_run) < 2:
        return None
    seeds = tuple(sorted({seed for seed, _ in placed[0].numbers["score"].by_run}))
    scores = np.asarray([_by_seed(row, seeds) for row in placed])  # (rows, seeds)
    order = {id(row): number for number, row in enumerate(placed)}
    return Stability(
        seeds,
        _agreement(scores),
        tuple(_variation(row, scores, order[id(row)]) for row in shown if id(row) in order),
    )


def _by_seed(row: TableRow, seeds: Sequence[int]) -> list[float]:
    runs = row.numbers["score"].by_run
    return [fmean(value for own, value in runs if own == seed) for seed in seeds]


def _agreement(scores: Floats) -> float | None:
    pairs = list(combinations(scores.T, 2)) if len(scores) > 1 else []
    found = [float(stats.kendalltau(one, other).statistic) for one, other in pairs]
    known = [tau for tau in found if not math.isnan(tau)]
    return fmean(known) if known else None


def _variation(row: TableRow, scores: Floats, number: int) -> Variation:
    score = row.numbers["score"]
    seeds, values = [seed for seed, _ in score.by_run], [value for _, value in score.by_run]
    parts = variance_components(seeds, values)
    return Variation(
        row,
        score.over_rows,
        stdev(values),
        math.sqrt(parts[0]) if parts else None,
        math.sqrt(parts[1]) if parts else None,
        tuple(int(place) for place in 1 + (scores > scores[number]).sum(axis=0)),
    )
