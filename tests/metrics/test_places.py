"""Places: ranges of rows that cannot be told apart, from paired resamples; scipy's bootstrap is the oracle."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from unlearnbench.metrics.places import places
from unlearnbench.metrics.statistics import LEAST_CLUSTERS, resampled_means


def answers(rng, means, rows=200, shared=0.3, own=0.1):
    """(models, rows) values: what is hard for one model is hard for all."""
    hard = rng.normal(0, shared, rows)
    return np.array([mean + hard + rng.normal(0, own, rows) for mean in means])


def placed(values, **more):
    return places(values.mean(axis=1), np.array([resampled_means(row) for row in values]), **more)


def test_a_row_is_placed_by_its_value_and_a_range_says_what_is_sure():
    found = placed(answers(np.random.default_rng(0), [0.5, 0.9, 0.505, 0.1]))
    assert [place.place for place in found][1] == 1
    assert found[1].range == "1"
    assert found[3].range == "4"
    assert found[0].range == found[2].range == "2–3"
    assert [place.group for place in found] == [2, 1, 2, 3]


def test_pairs_cancel_what_rows_share():
    """Rows that differ by less than either's interval are told apart where every answer differs alike."""
    values = answers(np.random.default_rng(1), [0.50, 0.53], shared=1.0, own=0.02)
    assert [place.range for place in placed(values)] == ["2", "1"]
    independent = np.array([resampled_means(values[0], 0), resampled_means(values[1], 1)])
    assert [place.range for place in places(values.mean(axis=1), independent)] == ["1–2", "1–2"]


def test_the_standard_error_is_that_of_scipy_s_paired_bootstrap():
    rng = np.random.default_rng(2)
    one, other = answers(rng, [0.5, 0.52])
    ours = (resampled_means(one) - resampled_means(other)).std(ddof=1)
    theirs = stats.bootstrap(
        (one, other), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), paired=True, n_resamples=4000, rng=rng
    ).standard_error
    assert ours == pytest.approx(theirs, rel=0.08)


def test_clusters_are_resampled_whole():
    """Against scipy's bootstrap of the clusters' means; rows alone would say a third of it."""
    rng = np.random.default_rng(3)
    authors = np.repeat(np.arange(20), 20)
    values = rng.normal(0, 1, 20)[authors] + rng.normal(0, 0.5, 400)
    ours = resampled_means(values, 0, authors).std(ddof=1)
    of_author = values.reshape(20, 20).mean(axis=1)
    theirs = stats.bootstrap((of_author,), np.mean, n_resamples=4000, rng=rng).standard_error
    assert ours == pytest.approx(theirs, rel=0.08)
    assert resampled_means(values).std(ddof=1) < ours / 3


def test_clusters_of_unequal_size_weigh_by_their_rows():
    clusters = np.repeat(np.arange(12), np.arange(1, 13))
    values = (clusters == 11).astype(float)
    found = resampled_means(values, 0, clusters)
    assert found.mean() == pytest.approx(values.mean(), abs=0.03)
    assert set(np.unique(found)) != {0.0, 1.0}


@pytest.mark.parametrize("clusters", [[0] * 30, list(range(30)), list(range(LEAST_CLUSTERS - 1)) * 4])
def test_rows_stand_alone_where_clusters_say_too_little(clusters):
    values = np.random.default_rng(4).random(len(clusters))
    assert (resampled_means(values, 0, clusters) == resampled_means(values, 0)).all()


def test_the_order_of_rows_changes_nothing():
    values = answers(np.random.default_rng(5), [0.1, 0.2, 0.2, 0.5, 0.9, 0.9])
    order = np.random.default_rng(6).permutation(6)
    found, again = placed(values), placed(values[order])
    assert [found[place] for place in order] == again


def test_equal_rows_share_place_range_and_group():
    values = answers(np.random.default_rng(7), [0.5])[[0, 0, 0]]
    found = placed(values)
    assert {(place.place, place.range, place.group) for place in found} == {(1, "1–3", 1)}


def test_what_never_varies_is_told_apart_by_any_difference():
    """A row that is 0 in every resample, such as a copy of the original, and one that never is."""
    flat = np.zeros((3, 1000))
    flat[2] = 0.2
    assert [place.range for place in places([0.0, 0.0, 0.2], flat)] == ["2–3", "2–3", "1"]


def test_one_row_and_none():
    assert places([], np.zeros((0, 1000))) == []
    (only,) = places([0.5], np.zeros((1, 1000)))
    assert (only.place, only.range, only.group) == (1, "1", 1)


def test_other_variance_widens_ranges():
    values = answers(np.random.default_rng(8), [0.5, 0.6])
    assert [place.range for place in placed(values)] == ["2", "1"]
    assert [place.range for place in placed(values, extra_variance=[0.01, 0.01])] == ["1–2", "1–2"]
    assert [place.range for place in placed(values, extra_variance=[4e-4, 4e-4], freedom=1.0)] == ["1–2", "1–2"]


def test_holm_s_correction_is_that_of_its_definition():
    """Against a step-down over all pairs, written out."""
    rng = np.random.default_rng(9)
    means = np.linspace(0.4, 0.6, 12)
    values = answers(rng, means, rows=80, own=0.25)
    resamples = np.array([resampled_means(row) for row in values])
    scores = values.mean(axis=1)
    pairs = [(i, j) if scores[i] > scores[j] else (j, i) for i, j in combinations(range(12), 2)]
    ratio = {(i, j): (scores[i] - scores[j]) / (resamples[i] - resamples[j]).std(ddof=1) for i, j in pairs}
    chances = sorted((2 * stats.norm.sf(ratio[pair]), pair) for pair in pairs)
    above = set()
    for step, (chance, pair) in enumerate(chances):
        if chance > 0.05 / (len(pairs) - step):
            break
        above.add(pair)
    found = places(scores, resamples)
    assert 5 < len(above) < len(pairs) - 5
    for row in range(12):
        assert found[row].best == 1 + sum(loser == row for _, loser in above)
        assert found[row].worst == 12 - sum(winner == row for winner, _ in above)


def test_models_that_are_alike_are_seldom_told_apart():
    """In at most 5 % of tables of ten equal models is anything told apart."""
    rng = np.random.default_rng(10)
    tables = [placed(answers(rng, [0.5] * 10, rows=100)) for _ in range(200)]
    assert sum(any(place.range != "1–10" for place in table) for table in tables) / 200 <= 0.08


MEMORY = """
import re, time
import numpy as np
from unlearnbench.metrics.places import places
rng = np.random.default_rng(0)
true = rng.random(10_000)
resamples = (true[:, None] + 0.05 * rng.standard_normal((10_000, 1_000), dtype=np.float32)).astype(np.float32)
began = time.perf_counter()
found = places(true, resamples)
assert len(found) == 10_000
# The peak of this program: a resource usage would keep that of the process which started it.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)
print(time.perf_counter() - began, int(peak) / 2**20)
"""


def test_ten_thousand_rows_are_placed_in_ten_seconds_and_one_gibibyte():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    seconds, gibibytes = map(float, done.stdout.split())
    assert seconds < 10
    assert gibibytes < 1.0
