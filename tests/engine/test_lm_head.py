"""The output head in pieces of the vocabulary gives what all logits at once give."""

from __future__ import annotations

import copy

import pytest
import torch

from unlearnbench.data.encoder import EncodedRow
from unlearnbench.engine.budgets import CPU, Budgets, Mechanisms
from unlearnbench.engine.engine import Engine
from unlearnbench.engine.lm_head import LMHead


@pytest.fixture(params=["with a bias", "without"])
def head(request):
    made = torch.Generator().manual_seed(0)
    bias = torch.randn(700, generator=made, dtype=torch.float64) if request.param == "with a bias" else None
    return torch.randn(700, 16, generator=made, dtype=torch.float64), bias


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize("piece", [1, 2**12, 2**20], ids=["blocks", "pieces", "all at once"])
def test_pieces_give_what_all_logits_give(head, count, piece):
    head = LMHead(*head, Budgets(head_piece=piece, head_block=64))
    made = torch.Generator().manual_seed(count)
    states = torch.randn(count, 16, generator=made, dtype=torch.float64)
    logits = torch.nn.functional.linear(states, head.weight, head.bias)
    assert torch.allclose(head.logits(states), logits, atol=1e-12)
    # A token of every piece, several of one row, and the likeliest of each.
    places = torch.arange(count).repeat(12)
    targets = torch.cat([torch.randint(700, (11 * count,), generator=made), logits.argmax(-1)])
    logp, likeliest = head.token_logprobs(states, targets, places)
    assert torch.allclose(logp, logits.log_softmax(-1)[places, targets], atol=1e-12)
    assert likeliest.tolist() == (targets == logits.argmax(-1)[places]).tolist()


@pytest.mark.parametrize("other", [1, 699], ids=["in one block", "in another piece"])
def test_a_token_as_likely_as_another_is_not_the_likeliest(head, other):
    weight = head[0].clone()
    weight[0] = weight[other] = 10
    states = torch.ones(3, 16, dtype=torch.float64)
    tied = LMHead(weight, None, Budgets(head_piece=1, head_block=64))
    _, likeliest = tied.token_logprobs(states, torch.tensor([0, other, 5]), torch.arange(3))
    assert likeliest.tolist() == [False, False, False]


def test_scores_and_texts_are_those_of_the_model_s_own_logits(tiny_model):
    rows = [EncodedRow((1, 2, 3, 4, 5), 2), EncodedRow((1, 2, 6), 2), EncodedRow((7, 8, 9, 3), 1)]
    assert Engine.probe(tiny_model).capabilities(tiny_model).head
    prompts = [(1, 2, 3), (4, 5), (6, 7, 8, 9)]
    by_head = Engine().score(tiny_model, rows), Engine().generate(tiny_model, prompts, 6, [0])
    plain = Engine(mechanisms=Mechanisms(chunked_head=False))
    by_logits = plain.score(tiny_model, rows), plain.generate(tiny_model, prompts, 6, [0])
    assert by_head[1] == by_logits[1]
    for one, other in zip(by_head[0], by_logits[0], strict=True):
        assert one.nll == pytest.approx(other.nll, abs=1e-12)
        assert (one.tokens, one.greedy_prefix) == (other.tokens, other.greedy_prefix)


@pytest.mark.parametrize("bound", [0.5, 1e3], ids=["at once", "once they grow"])
def test_a_model_that_bounds_its_logits_keeps_its_own_head(bound):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = dict(vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config = Gemma2Config(num_key_value_heads=1, head_dim=8, final_logit_softcapping=bound, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config).eval()
    rows = [EncodedRow((1, 2, 3, 4), 1)]
    assert not Engine.probe(model).capabilities(model).head
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3, 4]])).logits[0, :-1]
    nll = -logits.log_softmax(-1)[torch.arange(3), torch.tensor([2, 3, 4])].sum()
    assert Engine().score(model, rows)[0].nll == pytest.approx(float(nll), abs=1e-5)


def test_a_model_in_half_precision_keeps_its_own_head(tiny_model):
    assert LMHead.of(tiny_model, CPU) is not None
    assert LMHead.of(copy.deepcopy(tiny_model).bfloat16(), CPU) is None
