"""Forgetting, utility and score: doing nothing is nothing, the retained model is one, and more is never less."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearnbench.metrics.balance import balanced, distance, forgetting, hypervolume, told_apart, utility

PARTS = {
    "rouge": SimpleNamespace(better="lower", span=1.0, two_sided=False),
    "bleu": SimpleNamespace(better="target", span=100.0, two_sided=True),
    "ratio": SimpleNamespace(better="higher", span=1.0, two_sided=True),
}
KEPT = {
    "accuracy": SimpleNamespace(better="higher", span=1.0, two_sided=False),
    "perplexity": SimpleNamespace(better="lower", span=1.0, two_sided=False),
}
ORIGINAL = {"rouge": 0.9, "bleu": 80.0, "ratio": 0.4, "accuracy": 0.6, "perplexity": 20.0}
RETAINED = {"rouge": 0.3, "bleu": 10.0, "ratio": 0.7, "accuracy": 0.6, "perplexity": 20.0}
models = st.fixed_dictionaries(
    {
        "rouge": st.floats(0, 1),
        "bleu": st.floats(0, 100),
        "ratio": st.floats(0, 1),
        "accuracy": st.floats(0, 1),
        "perplexity": st.floats(1, 1e6),
    }
)


def score(model):
    return float(balanced(forgetting(model, ORIGINAL, RETAINED, PARTS), utility(model, ORIGINAL, KEPT)))


def test_the_ends_of_the_scale():
    assert forgetting(ORIGINAL, ORIGINAL, RETAINED, PARTS) == 0.0
    assert forgetting(RETAINED, ORIGINAL, RETAINED, PARTS) == 1.0
    assert utility(ORIGINAL, ORIGINAL, KEPT) == 1.0
    assert score(ORIGINAL) == 0.0
    assert score(RETAINED) == 1.0
    collapsed = {**RETAINED, "accuracy": 0.0}
    assert score(collapsed) == 0.0
    assert score({**RETAINED, "perplexity": float("inf")}) == 0.0


def test_a_distance_by_hand():
    model = {**ORIGINAL, "rouge": 0.1, "bleu": 5.0, "ratio": 0.5}
    # Less ROUGE than the retained model is no leak; BLEU and the ratio count on both sides.
    assert distance(model, RETAINED, PARTS) == pytest.approx(0.0 + 5 / 100 + 0.2)
    assert distance(ORIGINAL, RETAINED, PARTS) == pytest.approx(0.6 + 0.7 + 0.3)
    assert forgetting(model, ORIGINAL, RETAINED, PARTS) == pytest.approx(1 - 0.25 / 1.6)


def test_utility_by_hand():
    model = {"accuracy": 0.3, "perplexity": 40.0}
    assert utility(model, ORIGINAL, KEPT) == pytest.approx(0.5)
    assert utility({"accuracy": 0.9, "perplexity": 10.0}, ORIGINAL, KEPT) == 1.0, "no more than the original's"


@given(models)
def test_a_score_lies_between_nothing_and_all(model):
    assert 0.0 <= score(model) <= 1.0


@given(models, st.floats(0, 1))
def test_a_score_is_monotone_in_every_part(model, share):
    """On the way from any model to the retained one, in any part, the score never falls."""
    for name in RETAINED:
        nearer = {**model, name: model[name] + share * (RETAINED[name] - model[name])}
        if name in PARTS or (model[name] <= RETAINED[name]) == (name == "accuracy"):
            assert score(nearer) >= score(model) - 1e-12


@given(models)
def test_a_copy_of_the_original_is_above_nothing(model):
    assert score(ORIGINAL) <= score(model)


@given(st.floats(0, 30))
def test_going_beyond_the_retained_model_falls_again_where_there_is_a_target(beyond):
    over = {**RETAINED, "bleu": RETAINED["bleu"] - min(beyond, 10.0)}
    assert score(over) <= score(RETAINED)
    assert score({**RETAINED, "rouge": 0.0}) == score(RETAINED)


def test_resamples_give_what_their_values_give():
    rng = np.random.default_rng(0)
    drawn = [{name: rng.random(50) * (100 if name == "bleu" else 1) for name in PARTS} for _ in range(3)]
    together = forgetting(*drawn, PARTS)
    for place in range(50):
        one = [{name: float(values[place]) for name, values in some.items()} for some in drawn]
        assert together[place] == forgetting(*one, PARTS)


def test_references_are_told_apart_by_more_than_chance():
    """Between equal models in at most 5 % of cases, although a distance is never negative."""
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(400):
        rows = {name: rng.normal(0.5, 0.2, (2, 60)) for name in PARTS}
        draws = rng.integers(0, 60, (500, 60))
        one, other = ({name: rows[name][side][draws].mean(axis=1) for name in PARTS} for side in (0, 1))
        found += told_apart(one, other, PARTS)
    assert found / 400 <= 0.065
    far = {name: np.full(10, 0.9) for name in PARTS}
    near = {name: np.full(10, 0.1) for name in PARTS}
    assert told_apart(far, near, PARTS)
    assert not told_apart(near, far, {"rouge": PARTS["rouge"]}), "an original that knows less has nothing to forget"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6))
def test_the_area_that_settings_reach(points):
    """Against a count of a fine grid, and never smaller for one setting more."""
    across, up = np.array(points).T
    area = float(hypervolume(across, up))
    grid = (np.arange(200) + 0.5) / 200
    reached = np.zeros((200, 200), dtype=bool)
    for x, y in points:
        reached |= (grid[:, None] <= x) & (grid[None, :] <= y)
    assert area == pytest.approx(reached.mean(), abs=0.02)
    assert float(hypervolume(across[:-1], up[:-1])) <= area + 1e-12 if len(points) > 1 else True
    assert hypervolume(np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])) == 0.0
