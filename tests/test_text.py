from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from unlearnbench.text import rouge_l_recall

PLAIN = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


@pytest.mark.parametrize(
    ("truth", "generation", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat", "the dog sat down", 2 / 3),
        ("running houses", "run house", 1.0),  # stemmed
        ("a b c d", "d c b a", 1 / 4),
        ("a b", "", 0.0),
        ("", "a b", 0.0),
        ("…", "…", 0.0),
    ],
)
def test_recall_by_hand(truth, generation, expected):
    assert rouge_l_recall(truth, generation) == pytest.approx(expected)


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_remembering_scorer_is_the_library_s(truth, generation):
    assert rouge_l_recall(truth, generation) == PLAIN.score(truth, generation)["rougeL"].recall
