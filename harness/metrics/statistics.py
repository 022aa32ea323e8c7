"""Statistics of scores, in float64. An undefined statistic is NaN, never a default."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..domain import RESAMPLES, Score

Floats = NDArray[np.float64]
LEVEL = 0.95


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN without values."""
    return float(np.mean(np.asarray(values, dtype=float))) if len(values) else math.nan


def run_weights(seeds: Sequence[int]) -> Floats:
    """(n,) weights of runs in a mean over reference models, each with the mean over what was unlearned from it.

    Args:
        seeds: of each run's reference model.
    """
    counts = Counter(seeds)
    return np.asarray([1 / (len(counts) * counts[seed]) for seed in seeds])


def run_variance(seeds: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """What runs explain of the variance of the mean that ``run_weights`` gives, and the degrees of freedom behind it.

    0 and infinite for one run, which does not show how runs vary.
    """
    by_seed = _by_seed(seeds, values)
    # What varies: reference models where there are several, otherwise the runs of unlearning from the one.
    with np.errstate(over="ignore", invalid="ignore"):
        varied = [float(np.mean(own)) for own in by_seed] if len(by_seed) > 1 else by_seed[0]
        if len(varied) == 1:
            return 0.0, math.inf
        return float(np.var(varied, ddof=1)) / len(varied), len(varied) - 1


def _by_seed(seeds: Sequence[int], values: Sequence[float]) -> list[list[float]]:
    groups: dict[int, list[float]] = {}
    for seed, value in zip(seeds, values, strict=True):
        groups.setdefault(seed, []).append(value)
    return list(groups.values())


def half_width(resamples: Floats, extra_variance: float, freedom: float, level: float = LEVEL) -> float:
    """Half of a two-sided interval by Student's t, from resampled rows and from variance that they do not show."""
    error = math.sqrt(float(resamples.var()) + extra_variance)
    return error * float(stats.t.isf((1 - level) / 2, freedom))


def variance_components(seeds: Sequence[int], values: Sequence[float]) -> tuple[float, float] | None:
    """Variances that reference models and that unlearning add to one run's value.

    None unless several runs start from each of several reference models. Analysis of variance with one random effect:
    the variance within a reference model is unlearning's, and what the means of reference models vary beyond it is
    theirs, at least 0 (Searle, Casella and McCulloch 1992, section 3.6).
    """
    groups, total = _by_seed(seeds, values), len(values)
    if len(groups) < 2 or total == len(groups):
        return None
    within = sum((value - fmean(own)) ** 2 for own in groups for value in own) / (total - len(groups))
    middle = fmean(values)
    between = sum(len(own) * (fmean(own) - middle) ** 2 for own in groups) / (len(groups) - 1)
    size = (total - sum(len(own) ** 2 for own in groups) / total) / (len(groups) - 1)
    return max(0.0, (between - within) / size), within


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of non-negative values; 0 where one is 0, NaN where one is missing."""
    array = np.asarray(values, dtype=float)
    if not len(array) or np.isnan(array).any():
        return math.nan
    return 0.0 if (array == 0).any() else float(len(array) / np.sum(1 / array))


def auc(above: Sequence[float], below: Sequence[float]) -> float:
    """P(below < above) + ½ P(below = above) over all pairs: the area under the ROC curve; NaN without pairs."""
    if not len(above) or not len(below):
        return math.nan
    ranks = stats.rankdata(np.concatenate([np.asarray(above, dtype=float), np.asarray(below, dtype=float)]))
    n = len(above)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(below)))


def resampled_auc(
    above: Sequence[float], below: Sequence[float], draws_above: NDArray[np.int64], draws_below: NDArray[np.int64]
) -> Floats:
    """(R,) areas under the ROC curve of values resampled by (R, n) indices on either side."""
    first, second = np.asarray(above, dtype=float)[:, None], np.asarray(below, dtype=float)[None, :]
    wins = (second < first) + 0.5 * (second == first)  # (n above, n below)
    pairs = draws_above.shape[1] * draws_below.shape[1]
    areas: Floats = np.einsum("ra,ab,rb->r", _counts(draws_above), wins, _counts(draws_below), optimize=True) / pairs
    return areas


def _counts(draws: NDArray[np.int64]) -> Floats:
    """(R, n) counts of how often each row is drawn."""
    rounds, size = draws.shape
    counts = np.zeros((rounds, size))
    np.add.at(counts, (np.arange(rounds)[:, None], draws), 1)
    return counts


def ks_pvalue(a: Sequence[float], b: Sequence[float]) -> float:
    """p-value of the two-sided two-sample Kolmogorov–Smirnov test, scipy's defaults; NaN without values."""
    if not len(a) or not len(b) or np.isnan(a).any() or np.isnan(b).any():
        return math.nan
    return float(stats.ks_2samp(a, b).pvalue)


def bootstrap_draws(size: int, seed: int = 0) -> NDArray[np.int64]:
    """(R, size) row indices, with replacement; they depend on the number of rows and the seed alone."""
    return np.random.default_rng(seed).integers(0, size, (RESAMPLES, size))


def bootstrap(size: int, statistic: Callable[[NDArray[np.int64]], Floats], seed: int = 0) -> Floats | None:
    """(R,) values of a statistic over resampled rows; None for fewer than two rows.

    Args:
        size: number of rows.
        statistic: (R, size) row indices → (R,) values.
    """
    return statistic(bootstrap_draws(size, seed)) if size > 1 else None


LEAST_CLUSTERS = 10
"""Fewer clusters than this say too little about how clusters vary: rows are then resampled by themselves."""


def resampled_means(values: Floats, seed: int = 0, clusters: Sequence[Hashable] = ()) -> Floats:
    """(R,) means of resampled rows, or of resampled clusters of rows where there are ``LEAST_CLUSTERS`` of them.

    Two models that answered the same rows get the same draws, so that their values compare resample by resample.

    Args:
        values: (n,) one value for each row.
        clusters: the cluster of each row, for example its author; empty where every row stands alone.
    """
    _, place = np.unique([str(cluster) for cluster in clusters], return_inverse=True)
    count = int(place.max()) + 1 if len(place) else 0
    if not LEAST_CLUSTERS <= count < len(values):
        rows: Floats = values[bootstrap_draws(len(values), seed)].mean(axis=1)
        return rows
    times = _counts(bootstrap_draws(count, seed))  # (R, clusters)
    sums, sizes = np.bincount(place, values), np.bincount(place)
    means: Floats = (times @ sums) / (times @ sizes)
    return means


def mean_score(
    metric: str,
    values: Sequence[float],
    edition: str | None = None,
    bounds: tuple[float, float] | None = None,
    undefined: str = "rows have no defined value",
    seed: int = 0,
    clusters: Sequence[Hashable] = (),
) -> Score:
    """The mean of one value per row, for at least one row, with its interval; missing where a value is NaN.

    Args:
        bounds: the least and the greatest value that a row can have, if bounded: the interval then allows for values
            that no row shows.
        undefined: why rows have no value, after their number.
        seed: of the draws; metrics of the same rows share it, and metrics of other rows have another.
        clusters: the cluster of each row, for ``resampled_means``; the interval resamples rows.
    """
    array = np.asarray(values, dtype=float)
    absent = int(np.isnan(array).sum())
    if absent:
        reason = f"{absent} of {len(array)} {undefined}"
        return Score(metric, math.nan, len(array), tuple(values), None, edition, reason)
    resampled = resampled_means(array, seed, clusters) if len(array) > 1 else None
    spread = None
    if resampled is not None:
        spread = (
            percentile_interval(bounded_means(array, bounds)) if bounds else expanded_interval(resampled, len(array))
        )
    return Score(metric, mean(values), len(array), tuple(values), spread, edition, resamples=resampled)


def bounded_means(values: Floats, bounds: tuple[float, float], seed: int = 0) -> Floats:
    """(R,) resampled means of the rows and one more row at each bound.

    Resampling the rows alone cannot draw a value that no row shows. If one row in thirty differs from the others,
    forty rows miss it in 30 % of cases, and their interval covers the mean in 70 % (simulated; with the two further
    rows in at least 95 %, for every population of bounded rows that was tried). Agresti and Coull 1998 do this for
    proportions.
    """
    rows = np.append(values, bounds)
    means: Floats = rows[bootstrap_draws(len(rows), seed)].mean(axis=1)
    return means


def expanded_interval(values: Floats, rows: int, level: float = LEVEL) -> tuple[float, float] | None:
    """The central ``level`` of resampled values, widened for few rows by Student's t.

    Source: the expanded percentile interval of Hesterberg 2015, arXiv:1411.5279, §4.3.
    """
    return percentile_interval(values, 1 - 2 * expanded_share(rows, (1 - level) / 2))


def expanded_share(rows: int, share: float) -> float:
    """The quantile level of resampled values that gives the level ``share`` of the statistic for so few rows."""
    if rows < 2:
        return share
    return float(stats.norm.cdf(math.sqrt(rows / (rows - 1)) * stats.t.ppf(share, rows - 1)))


def percentile_interval(values: Floats | None, level: float = LEVEL) -> tuple[float, float] | None:
    """The central ``level`` of resampled values; its ends may be infinite where values are.

    None where ``values`` is None or holds a NaN.
    """
    if values is None or np.isnan(values).any():
        return None
    # Interpolation between two infinities gives NaN.
    method: Literal["linear", "nearest"] = "linear" if np.isfinite(values).all() else "nearest"
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method=method)
    return float(low), float(high)
