"""Score, forgetting and utility of a row: means over its seeds, with what rows and seeds leave uncertain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from unlearnbench.domain import NUMBERS
from unlearnbench.metrics.places import Place, places
from unlearnbench.metrics.statistics import Floats, expanded_interval, half_width, run_variance, run_weights
from unlearnbench.records.balance import Estimate, References
from unlearnbench.records.run_folder import StoredCell

COLLAPSED = 0.5
"""The utility below which a row has lost it."""


@dataclass(frozen=True)
class Number:
    """One of the three numbers, as a mean over seeds: measured, or NaN with a reason.

    Args:
        resamples: (R,) means over seeds, of resampled rows; None where the number is missing.
        seed_variance: variance of the mean that seeds explain; 0 for one seed, which does not show it.
        freedom: degrees of freedom behind ``seed_variance``; infinite for one seed.
        interval: 95 %, over rows and seeds.
        n: rows behind the part of it that has fewest.
        over_rows: standard deviation of one run's value over resampled rows, the mean over runs.
        by_run: the seed of each run's reference model, and the run's value.
    """

    value: float
    reason: str = ""
    resamples: Floats | None = None
    seed_variance: float = 0.0
    freedom: float = math.inf
    interval: tuple[float, float] | None = None
    n: int = 0
    over_rows: float = 0.0
    by_run: tuple[tuple[int, float], ...] = ()


def numbers_of(cells: Sequence[StoredCell], references: References) -> dict[str, Number]:
    """The three numbers of a row, from its cells that have records."""
    balances = [(cell.identity.seed, references.balance(cell)) for cell in cells if cell.record]
    return {name: _number([(seed, getattr(found, name)) for seed, found in balances]) for name in NUMBERS}


def _number(estimates: Sequence[tuple[int, Estimate]]) -> Number:
    """The mean over reference models, each with the mean over what was unlearned from it."""
    reason = next((estimate.reason for _, estimate in estimates if estimate.resamples is None), "")
    if reason or not estimates:
        return Number(math.nan, reason or "no seed has a record")
    seeds, values = [seed for seed, _ in estimates], [estimate.value for _, estimate in estimates]
    weights = run_weights(seeds)
    spread, freedom = run_variance(seeds, values)
    drawn = np.asarray([estimate.resamples for _, estimate in estimates])  # (runs, R)
    number = Number(
        float(weights @ values),
        resamples=weights @ drawn,
        seed_variance=spread,
        freedom=freedom,
        n=min(estimate.n for _, estimate in estimates),
        over_rows=float(drawn.std(axis=1).mean()),
        by_run=tuple(zip(seeds, values, strict=True)),
    )
    return with_interval(number)


def with_interval(number: Number) -> Number:
    """The number with its 95 % interval: of resampled rows for one seed, by Student's t where seeds vary too."""
    if number.resamples is None:
        return number
    if math.isinf(number.freedom):
        return replace(number, interval=expanded_interval(number.resamples, number.n))
    half = half_width(number.resamples, number.seed_variance, number.freedom)
    return replace(number, interval=(max(0.0, number.value - half), min(1.0, number.value + half)))


def pooled(rows: Sequence[Number]) -> list[Number]:
    """Numbers of rows that are compared, with seed variances of at least the mean over all rows.

    Two or three seeds say little about one row's variance, and by chance some rows show none.
    """
    varied = [number for number in rows if math.isfinite(number.freedom)]
    if not varied:
        return list(rows)
    typical, freedom = fmean(number.seed_variance for number in varied), sum(number.freedom for number in varied)
    return [
        with_interval(replace(number, seed_variance=max(number.seed_variance, typical), freedom=freedom))
        for number in rows
    ]


def places_of(scores: Sequence[Number]) -> list[Place]:
    """The places of rows by their pooled scores, none of which is missing."""
    return places(
        [score.value for score in scores],
        np.asarray([score.resamples for score in scores]),
        [score.seed_variance for score in scores],
        min(score.freedom for score in scores),
        min(score.n for score in scores),
    )
