from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from rouge_score.tokenize import tokenize

from unlearnbench.metrics.overlap import rouge_l_recall

PLAIN = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


@pytest.mark.parametrize(
    ("truth", "generation", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat", "the dog sat down", 2 / 3),
        ("running houses", "run house", 1.0),  # stemmed
        ("a b c d", "d c b a", 1 / 4),
        ("a b", "", 0.0),
        ("a b", "…", 0.0),
        ("", "a b", math.nan),
        ("…", "…", math.nan),
        ("日本", "日本", math.nan),
    ],
)
def test_recall_by_hand(truth, generation, expected):
    assert rouge_l_recall(truth, generation) == pytest.approx(expected, nan_ok=True)


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_remembering_scorer_is_the_library_s(truth, generation):
    found = rouge_l_recall(truth, generation)
    assert math.isnan(found) or found == PLAIN.score(truth, generation)["rougeL"].recall
    assert math.isnan(found) == (not tokenize(truth, None))
