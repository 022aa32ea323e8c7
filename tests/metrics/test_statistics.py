from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from unlearnbench.metrics.statistics import (
    bootstrap,
    harmonic_mean,
    ks_pvalue,
    mean,
    mean_score,
    percentile_interval,
    run_variance,
    run_weights,
    variance_components,
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


def test_a_bootstrap_interval_covers_the_mean_of_a_sample():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = percentile_interval(bootstrap(400, lambda rows: values[rows].mean(axis=1)))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06)
    assert bootstrap(1, lambda rows: rows.mean(axis=1)) is None
    assert percentile_interval(None) is None


def test_resamples_of_equally_many_rows_draw_the_same_rows():
    values = np.random.default_rng(1).normal(5, 2, 40)
    first, second = mean_score("a", list(values)), mean_score("b", list(values + 1))
    assert np.asarray(second.resamples) - np.asarray(first.resamples) == pytest.approx(np.ones(1000))


# -- what an interval claims -------------------------------------------------------------------------------------------


def _rouge(rng, size):
    kind = rng.choice(3, size, p=[0.2, 0.2, 0.6])
    return np.where(kind == 0, 0.0, np.where(kind == 1, 1.0, rng.beta(2, 3, size)))


# Populations of a row's value between 0 and 1: of models that know, that forgot, and that did so but for a few rows.
POPULATIONS = {
    "ROUGE": _rouge,
    "a probability near 1": lambda rng, size: np.exp(-rng.gamma(0.6, 0.05, size)),
    "a small probability": lambda rng, size: np.minimum(1.0, np.exp(rng.normal(-4, 1.5, size))),
    "known, 3 % forgotten": lambda rng, size: np.where(rng.random(size) < 0.03, 0.02, rng.beta(60, 2, size)),
    "97 % at 0": lambda rng, size: np.where(rng.random(size) < 0.03, rng.beta(2, 2, size), 0.0),
    "accuracy": lambda rng, size: (rng.random(size) < 0.75).astype(float),
}
REPEATS = 400


def covered(intervals, truth):
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.parametrize("size", [40, 200, 400])
@pytest.mark.parametrize("name", POPULATIONS)
def test_the_interval_of_a_mean_covers_what_it_claims(name, size):
    """Never less than 93 %; of bounded rows that are mostly alike it claims too little rather than too much."""
    population = POPULATIONS[name]
    truth = population(np.random.default_rng(0), 2_000_000).mean()
    rng = np.random.default_rng(size)
    share = covered(
        [mean_score("m", list(population(rng, size)), bounds=(0.0, 1.0)).interval for _ in range(REPEATS)], truth
    )
    assert share >= 0.93
    if name in ("ROUGE", "accuracy"):
        assert share <= 0.985


@pytest.mark.parametrize("apart", [0.0, 0.02, 3.5], ids=["an AUC of .5", "still there", "almost all of it"])
def test_the_interval_of_an_auc_covers_what_it_claims(apart):
    from unlearnbench.benchmarks.muse.metrics import _bounded_auc

    rng = np.random.default_rng(3)
    truth = stats.norm.cdf(apart / math.sqrt(2))
    found = [percentile_interval(_bounded_auc(rng.normal(apart, 1, 100), rng.normal(0, 1, 100))) for _ in range(200)]
    assert 0.93 <= covered(found, truth) <= 1.0


@pytest.mark.parametrize("gap", [0.0, 3.0])
@pytest.mark.parametrize("size", [40, 300])
def test_the_interval_of_a_gap_covers_one_of_none(gap, size):
    """Of an absolute difference no resample is below 0: resamples alone never reach a true gap of 0."""
    from unlearnbench.benchmarks.hp.metrics import _gap

    rng = np.random.default_rng(size)
    found = []
    for _ in range(300):
        base = rng.gamma(2.0, 3.0, size), rng.beta(3, 5, size)
        other = base[0] + rng.normal(gap, 4, size), base[1] + rng.normal(0, 0.1, size)
        found.append(_gap((list(other[0]), list(other[1])), (list(base[0]), list(base[1])), "paper").interval)
    assert 0.93 <= covered(found, gap) <= 1.0


def test_the_interval_of_a_perplexity_covers_what_it_claims():
    from unlearnbench.benchmarks.hp.metrics import _perplexity_interval

    rng = np.random.default_rng(5)

    def texts(size):
        words = rng.integers(50, 800, size)
        return -words * rng.normal(2.7, 0.5, size), words

    logs, words = texts(1_000_000)
    truth = math.exp(-logs.sum() / words.sum())
    assert 0.93 <= covered([_perplexity_interval(*texts(62)) for _ in range(300)], truth) <= 0.985


def test_model_utility_covers_what_it_claims():
    from unlearnbench.benchmarks.tofu.metric_list import TERMS, UTILITY_PARTS
    from unlearnbench.benchmarks.tofu.metrics import _model_utility

    rng = np.random.default_rng(6)
    drawn = {"rouge": _rouge, "probability": lambda r, n: r.beta(2, 3, n), "truth_ratio": lambda r, n: r.beta(1, 2, n)}
    means = {term: drawn[term](rng, 1_000_000).mean() for term in TERMS}
    truth = 3 * len(TERMS) / sum(3 / mean for mean in means.values())
    found = []
    for _ in range(100):
        values = {(part, term, "paper"): list(drawn[term](rng, 100)) for part in UTILITY_PARTS for term in TERMS}
        found.append(_model_utility(values, (), "paper").interval)
    assert 0.92 <= covered(found, truth) <= 1.0


def test_a_p_value_has_no_interval():
    """Between equal models it is anything from 0 to 1 however many rows there are: there is nothing to cover."""
    from unlearnbench.benchmarks.tofu.metrics import scores
    from unlearnbench.domain import Measurement

    rng = np.random.default_rng(0)

    def model():
        return Measurement(tuple(
            {"part": "forget", "prompt": str(i), "truth": "a", "generation": "a", "answer": [1.0, 3],
             "paraphrase": [float(rng.normal(1, 0.2)), 3], "perturbed": [[2.0, 3]]} for i in range(40)
        ))  # fmt: skip

    found = {score.metric: score for score in scores(model(), model())}
    for name in ("forget_quality", "forget_quality_log10"):
        assert math.isfinite(found[name].value)
        assert found[name].interval is None
        assert found[name].resamples is None


def test_runs_count_equally_within_a_reference_model_and_reference_models_equally():
    seeds, values = [0, 0, 0, 1], [1.0, 2.0, 3.0, 6.0]
    assert run_weights(seeds) @ values == pytest.approx((2 + 6) / 2)
    assert run_variance(seeds, values) == pytest.approx((np.var([2, 6], ddof=1) / 2, 1))
    assert run_variance([0, 0], [1.0, 3.0]) == pytest.approx((1.0, 1))
    assert run_variance([0], [1.0]) == (0.0, math.inf)


def test_training_and_unlearning_are_told_apart():
    """Reference models that vary by 2 and unlearning that varies by 1, estimated from many small studies."""
    rng = np.random.default_rng(0)
    seeds, found = [seed for seed in range(6) for _ in range(4)], []
    for _ in range(400):
        values = np.repeat(rng.normal(0, 2, 6), 4) + rng.normal(0, 1, 24)
        found.append(variance_components(seeds, list(values)))
    reference, unlearning = np.mean(found, axis=0)
    assert reference == pytest.approx(4, rel=0.1)
    assert unlearning == pytest.approx(1, rel=0.05)


def test_unlearning_s_variance_is_scipy_s_error_of_one_way_analysis():
    rng = np.random.default_rng(1)
    seeds, values = [0] * 3 + [1] * 5 + [2] * 2, list(rng.normal(0, 1, 10))
    groups = [np.asarray(values[:3]), np.asarray(values[3:8]), np.asarray(values[8:])]
    reference, unlearning = variance_components(seeds, values)
    ratio = stats.f_oneway(*groups).statistic
    size = (10 - (9 + 25 + 4) / 10) / 2
    assert reference == pytest.approx(max(0.0, (ratio - 1) * unlearning / size))


@pytest.mark.parametrize("seeds", [[0], [0, 0], [0, 1, 2]])
def test_what_is_not_repeated_has_no_components(seeds):
    assert variance_components(seeds, [float(seed) for seed in seeds]) is None
