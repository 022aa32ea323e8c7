"""Drawn answers: from the model's own distribution, the same for a row alone and among others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from unlearnbench.domain import Sampling
from unlearnbench.engine import decoding
from unlearnbench.engine.decoding import Request, Sampler
from unlearnbench.engine.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))
from architectures import ARCHITECTURES

PROMPTS = [(3, 4, 5), (7, 8), (9, 10, 11, 12, 13)]
ENDS = (0,)


def draws(model, prompts, samples=4, temperature=1.0, seed=0, tokens=6, ends=ENDS):
    return Engine().sample(model, prompts, tokens, ends, Sampling(samples, temperature), seed)


def test_a_row_draws_the_same_alone_and_among_others(tiny_model):
    together = draws(tiny_model, PROMPTS)
    assert together == [draws(tiny_model, [prompt])[0] for prompt in PROMPTS]
    assert len({tuple(answer) for answers in together for answer in answers}) > 6


def test_more_samples_keep_the_first_and_another_seed_draws_others(tiny_model):
    few, many, other = (draws(tiny_model, PROMPTS, samples, seed=seed) for samples, seed in ((2, 0), (5, 0), (2, 1)))
    assert few == [answers[:2] for answers in many]
    assert few != other


def test_a_low_temperature_is_greedy(tiny_model):
    greedy = Engine().generate(tiny_model, PROMPTS, 6, ENDS)
    assert draws(tiny_model, PROMPTS, 2, temperature=1e-4) == [[line, line] for line in greedy]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_first_tokens_follow_the_softmax_of_the_logits(tiny_model, temperature):
    # Larger embeddings, so that some tokens are likely enough to be counted.
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight.mul_(4)
    prompt, samples = PROMPTS[0], 4000
    found = [answer[0] for answer in draws(tiny_model, [prompt], samples, temperature, tokens=1, ends=())[0]]
    chances = (tiny_model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1).tolist()
    likely = [token for token, chance in enumerate(chances) if chance * samples >= 5]
    assert len(likely) > 3
    counts, expected = [found.count(token) for token in likely], [samples * chances[token] for token in likely]
    rest = samples - sum(expected)
    if rest >= 5:
        counts, expected = [*counts, samples - sum(counts)], [*expected, rest]
    else:
        expected = [number * sum(counts) / sum(expected) for number in expected]
    assert chisquare(counts, expected).pvalue > 1e-3


def test_an_end_token_ends_a_drawn_answer_and_is_no_part_of_it(tiny_model):
    free = draws(tiny_model, PROMPTS, ends=())
    end = free[0][0][2]
    ended = draws(tiny_model, PROMPTS, ends=(end,))
    for whole, cut in zip(free, ended, strict=True):
        for answer, kept in zip(whole, cut, strict=True):
            assert kept == (answer[: answer.index(end)] if end in answer else answer)


def test_inversion_takes_the_first_token_whose_cumulative_probability_reaches_the_number():
    logits = torch.tensor([[0.1, 0.2, 0.7]]).log()
    sampler = Sampler(1.0, 0)
    chosen = [int(sampler.choose(logits, torch.tensor([[number]]))) for number in (0.0, 0.09, 0.11, 0.29, 0.31, 0.9999)]
    assert chosen == [0, 0, 1, 1, 2, 2]


def test_a_model_that_keeps_no_cache_draws_the_same(tiny_model):
    expected = draws(tiny_model, PROMPTS)
    engine = Engine()
    able = engine.capabilities(tiny_model)
    able.batched.fits = able.shared.fits = False
    found = engine.sample(tiny_model, PROMPTS, 6, ENDS, Sampling(4), 0)
    assert found == expected
    assert "each row alone and without a cache" in engine.counters.as_dict()["generation"]


def test_a_way_that_draws_otherwise_than_the_row_alone_is_not_taken(tiny_model, monkeypatch):
    expected = draws(tiny_model, PROMPTS)
    batched = decoding._Decoder.next
    monkeypatch.setattr(
        decoding._Decoder,
        "next",
        lambda self, *arguments: (batched(self, *arguments) + 1) % tiny_model.config.vocab_size,
    )
    engine = Engine()
    assert engine.sample(tiny_model, PROMPTS, 6, ENDS, Sampling(4), 0) == expected
    assert not engine.capabilities(tiny_model).batched.fits


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral-window", "gpt2", "deepseek-v3", "mamba", "jamba"])
@pytest.mark.parametrize("shared", [0, 40])
def test_a_prompt_that_is_read_once_for_all_its_answers_gives_those_of_the_row_alone(name, shared):
    model = ARCHITECTURES[name]()
    prompts = [tuple(range(3, 3 + shared)) + prompt for prompt in PROMPTS]
    engine, alone = Engine(), Engine()
    able = alone.capabilities(model)
    able.batched.fits = able.shared.fits = False
    asked = (prompts, 6, ENDS, Sampling(5), 0)
    assert engine.sample(model, *asked) == alone.sample(model, *asked)


def test_a_prompt_is_read_once_for_all_its_answers(tiny_model):
    read = []
    handle = tiny_model.get_input_embeddings().register_forward_hook(lambda _, args, __: read.append(args[0].shape))
    draws(tiny_model, PROMPTS, samples=16)
    handle.remove()
    assert (3, 5) in read
    assert (48, 1) in read
    assert all(rows <= 3 for rows, columns in read if columns > 1)


def test_numbers_belong_to_the_request_alone():
    sampler = Sampler(1.0, 3)
    one, other = Request((1, 2), (), 5, 0), Request((1, 2), (), 5, 1)
    assert sampler.uniforms(one) == sampler.uniforms(Request((1, 2), (), 5, 0)) != sampler.uniforms(other)
    assert len(sampler.uniforms(one)) == 5
