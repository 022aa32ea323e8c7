from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from unlearnbench.statistics import (
    bootstrap,
    harmonic_mean,
    interval,
    ks_pvalue,
    mean,
    mean_score,
    resampled_ks_pvalue,
)


def test_means_of_nothing_are_missing():
    assert math.isnan(mean([]))
    assert math.isnan(harmonic_mean([]))
    assert math.isnan(ks_pvalue([], [1.0]))


def test_the_harmonic_mean():
    assert harmonic_mean([1.0, 2.0, 4.0]) == pytest.approx(12 / 7)
    assert harmonic_mean([0.0, 1.0]) == 0.0
    assert math.isnan(harmonic_mean([math.nan, 1.0]))


def test_ks_accepts_infinities_and_refuses_nan():
    assert ks_pvalue([1.0, math.inf], [1.0, math.inf]) == 1.0
    assert math.isnan(ks_pvalue([1.0, math.nan], [1.0, 2.0]))


@pytest.mark.parametrize("seed", range(3))
def test_the_resampled_p_values_are_scipys(seed):
    """The interval is computed without calling scipy a thousand times; here it is called a thousand times."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, 30).round(1), rng.normal(0.4, 1, 30).round(1)  # rounded, so that values tie
    draws = np.random.default_rng(0).integers(0, 30, (1000, 30))
    values = [stats.ks_2samp(a[draw], b[draw]).pvalue for draw in draws]
    assert resampled_ks_pvalue(a, b) == pytest.approx(np.array(values), rel=1e-9)
    assert interval(resampled_ks_pvalue(a, b)) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), rel=1e-9)


def test_the_interval_of_equal_models_is_one():
    assert interval(resampled_ks_pvalue([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])) == (1.0, 1.0)


def test_different_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="3 and 2"):
        resampled_ks_pvalue([1.0, 2.0, 3.0], [1.0, 2.0])


def test_a_bootstrap_interval_covers_the_mean_of_a_sample():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = interval(bootstrap(400, lambda rows: values[rows].mean(axis=1)))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06)
    assert bootstrap(1, lambda rows: rows.mean(axis=1)) is None
    assert interval(None) is None


def test_resamples_of_equally_many_rows_draw_the_same_rows():
    values = np.random.default_rng(1).normal(5, 2, 40)
    first, second = mean_score("a", list(values)), mean_score("b", list(values + 1))
    assert np.asarray(second.resamples) - np.asarray(first.resamples) == pytest.approx(np.ones(1000))
