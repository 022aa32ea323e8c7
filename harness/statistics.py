"""Statistics of scores, in float64. Undefined is NaN, never a default."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .domain import Score

Floats = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    return float(np.mean(np.asarray(values, dtype=float))) if len(values) else math.nan


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of non-negative values; 0 where one is 0, NaN where one is missing."""
    array = np.asarray(values, dtype=float)
    if not len(array) or np.isnan(array).any():
        return math.nan
    return 0.0 if (array == 0).any() else float(len(array) / np.sum(1 / array))


def auc(above: Sequence[float], below: Sequence[float]) -> float:
    """P(below < above) + ½ P(below = above) over all pairs: the area under the ROC curve; NaN of nothing."""
    if not len(above) or not len(below):
        return math.nan
    ranks = stats.rankdata(np.concatenate([np.asarray(above, dtype=float), np.asarray(below, dtype=float)]))
    n = len(above)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(below)))


def resampled_auc(
    above: Sequence[float], below: Sequence[float], draws_above: NDArray[np.int64], draws_below: NDArray[np.int64]
) -> Floats:
    """(R,) areas under the ROC curve of resampled values, drawn by (R, n) indices on either side."""
    first, second = np.asarray(above, dtype=float)[:, None], np.asarray(below, dtype=float)[None, :]
    wins = (second < first) + 0.5 * (second == first)  # (n above, n below)
    pairs = draws_above.shape[1] * draws_below.shape[1]
    found: Floats = np.einsum("ra,ab,rb->r", _counts(draws_above), wins, _counts(draws_below), optimize=True) / pairs
    return found


def _counts(draws: NDArray[np.int64]) -> Floats:
    """(R, n) how often each row was drawn."""
    rounds, size = draws.shape
    counts = np.zeros((rounds, size))
    np.add.at(counts, (np.arange(rounds)[:, None], draws), 1)
    return counts


def ks_pvalue(a: Sequence[float], b: Sequence[float]) -> float:
    """p-value of the two-sided two-sample Kolmogorov–Smirnov test, scipy's defaults; NaN of nothing."""
    if not len(a) or not len(b) or np.isnan(a).any() or np.isnan(b).any():
        return math.nan
    return float(stats.ks_2samp(a, b).pvalue)


def draws(size: int, seed: int = 0) -> NDArray[np.int64]:
    """(R, size) row indices, with replacement; they depend on the number of rows and the seed alone."""
    return np.random.default_rng(seed).integers(0, size, (RESAMPLES, size))


def bootstrap(size: int, statistic: Callable[[NDArray[np.int64]], Floats], seed: int = 0) -> Floats | None:
    """(R,) values of a statistic over resampled rows; None of fewer than two rows.

    Args:
        size: number of rows.
        statistic: (R, size) row indices → (R,) values.
    """
    return statistic(draws(size, seed)) if size > 1 else None


def mean_score(metric: str, values: Sequence[float], edition: str | None = None) -> Score:
    """The mean of at least one value a row, with its interval over rows."""
    array = np.asarray(values, dtype=float)
    resampled = bootstrap(len(array), lambda rows: array[rows].mean(axis=1))
    return Score(metric, mean(values), len(array), tuple(values), interval(resampled), edition, resamples=resampled)


def interval(values: Floats | None, level: float = LEVEL) -> tuple[float, float] | None:
    """The central ``level`` of resampled values; ends may be infinite where values are.

    None where there are no values, or one of them is undefined.
    """
    if values is None or np.isnan(values).any():
        return None
    # Between two infinities nothing can be interpolated.
    method: Literal["linear", "nearest"] = "linear" if np.isfinite(values).all() else "nearest"
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method=method)
    return float(low), float(high)


def resampled_ks_pvalue(a: Sequence[float], b: Sequence[float]) -> Floats | None:
    """(R,) values of ``ks_pvalue`` for two models on the **same rows**, which are resampled together.

    None where there are fewer than two rows, or one of the values is undefined.
    """
    n = len(a)
    if len(b) != n:
        raise ValueError(f"{n} and {len(b)} values: the rows must be the same")
    pooled = np.concatenate([np.asarray(a, dtype=float), np.asarray(b, dtype=float)])
    if n < 2 or np.isnan(pooled).any():
        return None
    order = np.argsort(pooled, kind="stable")
    # The empirical distributions are compared only after the last of equal values.
    ends = np.append(pooled[order][1:] != pooled[order][:-1], True)
    sign = np.where(order < n, 1, -1)
    steps = np.cumsum(_counts(draws(n))[:, order % n] * sign, axis=1)[:, ends]  # (R, distinct values)
    distances = np.abs(steps).max(axis=1)  # n times the KS statistic
    return np.array([_equal_size_pvalue(int(d), n) for d in distances])


@lru_cache(maxsize=65536)
def _equal_size_pvalue(steps: int, n: int) -> float:
    """The p-value of D = steps / n with n values on both sides, by scipy on a pair of samples with that D."""
    grid = np.arange(n, dtype=float)
    return float(stats.ks_2samp(grid, grid + steps - 0.5 if steps else grid).pvalue)
