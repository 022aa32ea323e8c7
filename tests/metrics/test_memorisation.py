"""Memorisation, membership and fluency against closed forms, and what a pass gives of each token against plain ones."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr
from scipy.stats import entropy

from unlearnbench.data.encoder import EncodedRow
from unlearnbench.engine.budgets import Mechanisms
from unlearnbench.engine.engine import Engine
from unlearnbench.metrics.memorisation import (
    answer_divergence,
    exact_memorisation,
    extraction_strength,
    min_k_plus_plus,
    ngram_entropy,
    repetition,
    zlib_ratio,
)

ROWS = [EncodedRow((5, 9, 20, 31, 7, 8), 2), EncodedRow((5, 9, 11, 12), 2), EncodedRow((40, 41, 42, 43, 44), 0)]


# -- by hand -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_extraction_strength_is_found_by_trying_every_beginning(greedy):
    shortest = next(k for k in range(len(greedy) + 1) if all(greedy[k:]))
    suffix = len(greedy) - shortest
    assert extraction_strength(suffix, len(greedy)) == pytest.approx(1 - shortest / len(greedy))
    assert exact_memorisation(sum(greedy), len(greedy)) == pytest.approx(np.mean(greedy))


def test_an_answer_of_which_nothing_is_written_has_less_than_one_whose_last_token_is():
    assert extraction_strength(0, 10) == 0.0
    assert extraction_strength(1, 10) == 0.1
    assert math.isnan(extraction_strength(0, 0))
    assert math.isnan(exact_memorisation(0, 0))


def test_min_k_plus_plus_by_hand():
    logprobs, means, variances = (-1.0, -4.0, -2.0, -9.0), (-2.0, -2.0, -2.0, -3.0), (1.0, 4.0, 0.25, 4.0)
    # Standardised: 1, -1, 0, -3; half of them are the two least.
    assert min_k_plus_plus(logprobs, means, variances, 0.5) == pytest.approx(2.0)
    assert min_k_plus_plus(logprobs, means, (1.0, 4.0, 0.25, 0.0), 0.25) == pytest.approx(1.0)
    assert min_k_plus_plus(logprobs[:1], means[:1], variances[:1], 0.4) is None
    assert math.isnan(min_k_plus_plus((math.nan, -1.0), means[:2], variances[:2], 1.0))


def test_zlib_by_hand():
    assert zlib_ratio(12.0, "abc" * 50) == 12.0 / len(zlib.compress(b"abc" * 50))


def test_fluency_by_hand():
    assert repetition("a b c a b c") == pytest.approx(1 - 3 / 4)
    assert repetition("a b c d") == 0.0
    assert math.isnan(repetition("a b"))
    # Four different bigrams and three different trigrams.
    assert ngram_entropy("a b c d e") == pytest.approx((2 / 3 * math.log2(4) + 4 / 3 * math.log2(3)) / 2)
    assert ngram_entropy("a a a a a") == 0.0
    counts = {("a", "b"): 2, ("b", "a"): 2}
    expected = entropy(list(counts.values()), base=2)
    assert ngram_entropy("a b a b a") == pytest.approx((2 / 3 * expected + 4 / 3 * entropy([2, 1], base=2)) / 2)


@given(st.lists(st.floats(0, 20), min_size=2, max_size=6), st.randoms())
def test_the_divergence_of_answers_is_scipy_s(losses, rng):
    reference = [rng.uniform(0, 20) for _ in losses]
    mine, theirs = (np.exp(-np.asarray(values)) / np.exp(-np.asarray(values)).sum() for values in (losses, reference))
    assert answer_divergence(losses, reference) == pytest.approx(rel_entr(theirs, mine).sum(), abs=1e-9)
    assert answer_divergence(losses, losses) == pytest.approx(0.0, abs=1e-12)


def test_answers_of_no_probability_at_all_have_a_divergence():
    assert answer_divergence([1e5, 0.0], [0.0, 1e5]) == pytest.approx(1e5)
    assert answer_divergence([0.0, 1e5], [0.0, 1e5]) == pytest.approx(0.0)
    assert math.isnan(answer_divergence([math.nan, 1.0], [0.0, 1.0]))


# -- of a model --------------------------------------------------------------------------------------------------------


def plain(model, row):
    """Log-probabilities (N, V) that predict a row's scored tokens, by one plain forward pass, and these tokens."""
    logp = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    first = max(row.start, 1)
    return logp[first - 1 : len(row.ids) - 1], torch.tensor(row.ids[first:])


@pytest.mark.parametrize("head", [True, False], ids=["a head in pieces", "all logits at once"])
def test_what_is_read_of_each_token_is_what_a_plain_pass_gives(tiny_model, head):
    engine = Engine(mechanisms=Mechanisms(chunked_head=head))
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight.mul_(5)
    for row, read in zip(ROWS, engine.read(tiny_model, ROWS), strict=True):
        logp, targets = plain(tiny_model, row)
        chances = logp.exp()
        mean = (chances * logp).sum(-1)
        assert read.logprobs == pytest.approx(logp.gather(1, targets[:, None])[:, 0].tolist())
        assert list(read.greedy) == (logp.argmax(-1) == targets).tolist()
        assert read.means == pytest.approx(mean.tolist())
        assert read.variances == pytest.approx(((logp - mean[:, None]) ** 2 * chances).sum(-1).tolist())


def test_moments_survive_a_vocabulary_in_many_pieces(tiny_model):
    from dataclasses import replace

    from unlearnbench.engine.budgets import CPU

    small = Engine(budgets=replace(CPU, head_piece=8, head_block=8))
    assert small.capabilities(tiny_model).head
    for one, other in zip(small.read(tiny_model, ROWS), Engine().read(tiny_model, ROWS), strict=True):
        assert one.means == pytest.approx(other.means, rel=1e-9)
        assert one.variances == pytest.approx(other.variances, rel=1e-6)


def test_first_choices_are_counted_as_a_plain_pass_has_them(tiny_model):
    written = Engine().generate(tiny_model, [(5, 9)], 5, ())[0]
    rows = [*ROWS, EncodedRow((5, 9, *written), 2), EncodedRow((5, 9, *written[:2], 3, *written[3:]), 2)]
    for row, found in zip(rows, Engine().score(tiny_model, rows), strict=True):
        logp, targets = plain(tiny_model, row)
        greedy = (logp.argmax(-1) == targets).tolist()
        assert found.greedy == sum(greedy)
        assert found.greedy_suffix == len(greedy) - max(
            (place + 1 for place, hit in enumerate(greedy) if not hit), default=0
        )
    assert Engine().score(tiny_model, rows)[3].greedy_suffix == 5


def test_gradient_norms_are_autograd_s_and_leave_the_model_as_it_was(tiny_model):
    tiny_model.requires_grad_(False)
    found = Engine().gradient_norms(tiny_model, ROWS)
    assert not any(weight.requires_grad or weight.grad is not None for weight in tiny_model.parameters())
    tiny_model.requires_grad_(True)
    for row, norm in zip(ROWS, found, strict=True):
        tiny_model.zero_grad()
        logp, targets = plain(tiny_model, row)
        (-logp.gather(1, targets[:, None]).mean()).backward()
        squares = [float(weight.grad.pow(2).sum()) for weight in tiny_model.parameters() if weight.grad is not None]
        assert norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)
