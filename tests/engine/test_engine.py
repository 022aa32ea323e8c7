"""Scoring and generation: the fast passes give what plain forward passes give."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from unlearnbench._compat import cache_keyword
from unlearnbench.data.encoder import EncodedRow
from unlearnbench.engine import runtime
from unlearnbench.engine.budgets import CPU, Budgets
from unlearnbench.engine.decoding import bytes_per_token, cache_bytes, token_budget
from unlearnbench.engine.engine import Engine
from unlearnbench.engine.logprobs import answer_logprobs
from unlearnbench.engine.runtime import Runtime
from unlearnbench.engine.scoring import Likelihood
from unlearnbench.methods.whp import Contrast

GENERATOR = torch.Generator().manual_seed(3)


def random_rows(count, vocabulary):
    rows = []
    for _ in range(count):
        length = int(torch.randint(3, 25, (1,), generator=GENERATOR))
        ids = torch.randint(2, vocabulary, (length,), generator=GENERATOR).tolist()
        rows.append(EncodedRow(tuple(ids), int(torch.randint(1, length - 1, (1,), generator=GENERATOR))))
    return rows


def answered(row, generator, vocabulary):
    """Another answer to the same prompt, which begins as the first."""
    length = int(torch.randint(1, 12, (1,), generator=generator))
    ids = torch.randint(2, vocabulary, (length,), generator=generator).tolist()
    return EncodedRow((*row.ids[: (row.start + len(row.ids)) // 2], *ids), row.start)


def plain_likelihood(model, row):
    logp = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return -sum(logp[place - 1, row.ids[place]].item() for place in range(row.start, len(row.ids)))


@pytest.mark.parametrize("budget", [40, 2048])
def test_scores_are_those_of_single_forward_passes_in_the_order_given(tiny_model, budget):
    rows = random_rows(30, tiny_model.config.vocab_size)
    rows += [answered(row, GENERATOR, tiny_model.config.vocab_size) for row in rows[:10]]  # in trees with theirs
    rows += rows[:3]  # equal rows are computed once and returned twice
    found = Engine(budgets=Budgets(positions=budget)).score(tiny_model, rows)
    for row, value in zip(rows, found, strict=True):
        assert value.tokens == row.answer_tokens
        assert value.nll == pytest.approx(plain_likelihood(tiny_model, row), rel=1e-9)
    assert found[-3:] == found[:3]


def test_tokens_that_the_model_would_have_written_are_counted(tiny_model):
    rows = random_rows(10, tiny_model.config.vocab_size)
    for row in rows:
        prompt = row.ids[: row.start]
        written = plain_greedy(tiny_model, prompt, 6, ())
        other = (written[4] + 1) % tiny_model.config.vocab_size
        answers = [EncodedRow((*prompt, *written), row.start), EncodedRow((*prompt, *written[:4], other, 3), row.start)]
        assert [found.greedy_prefix for found in Engine().score(tiny_model, answers)] == [6, 4]


def test_a_constant_added_to_the_logits_changes_no_likelihood_and_no_text(tiny_model):
    rows = random_rows(8, tiny_model.config.vocab_size)
    prompts = [row.ids for row in rows]
    before = Engine().score(tiny_model, rows), Engine().generate(tiny_model, prompts, 6, [])
    head = tiny_model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, logits: logits + 7.3)
    after = Engine().score(tiny_model, rows), Engine().generate(tiny_model, prompts, 6, [])
    handle.remove()
    assert [value.nll for value in after[0]] == pytest.approx([value.nll for value in before[0]], rel=1e-9)
    assert after[1] == before[1]


def test_an_answer_without_tokens_has_no_loss():
    assert math.isnan(Likelihood(0.0, 0).loss)


def plain_greedy(model, prompt, limit, eos):
    ids = list(prompt)
    for _ in range(limit):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in eos:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("budget", [60, 32768])
def test_generation_is_that_of_single_rows_without_a_cache(tiny_model, budget):
    prompts = [row.ids for row in random_rows(14, tiny_model.config.vocab_size)]
    prompts += prompts[:2]
    first = [plain_greedy(tiny_model, prompt, 3, ()) for prompt in prompts]
    # Ends chosen among what is written, so that rows leave the batch at different steps.
    eos = [tokens[step] for step, tokens in enumerate(first[:3])]
    found = Engine(budgets=Budgets(cached_tokens=budget)).generate(tiny_model, prompts, 12, eos)
    expected = [plain_greedy(tiny_model, prompt, 12, eos) for prompt in prompts]
    assert found == expected
    assert len({len(tokens) for tokens in expected}) > 1


def test_what_is_known_to_come_is_not_generated_again(tiny_model):
    engine = Engine()
    prompts = [row.ids for row in random_rows(6, tiny_model.config.vocab_size)]
    whole = engine.generate(tiny_model, prompts, 9, [])
    eos = whole[5][7]
    expected = [plain_greedy(tiny_model, prompt, 9, (eos,)) for prompt in prompts]
    # Nothing, a few tokens, all of them, more than may be written, and two that hold the end.
    known = [(), whole[1][:3], whole[2], (*whole[3], 5), (*expected[4], eos), (*expected[5], eos, 7)]
    read = []
    handle = tiny_model.register_forward_pre_hook(
        lambda module, args, inputs: read.append(inputs["input_ids"].shape), with_kwargs=True
    )
    found = engine.generate(tiny_model, prompts, 9, [eos], [tuple(tokens) for tokens in known])
    handle.remove()
    assert found == expected
    assert read[0][0] <= 3, "rows whose end is known are not read"


def test_rows_leave_while_others_are_written(tiny_model):
    prompts = [row.ids for row in random_rows(14, tiny_model.config.vocab_size)]
    eos = [plain_greedy(tiny_model, prompt, 2, ())[1] for prompt in prompts[:4]]
    longest = max(map(len, prompts)) + 12
    engine = Engine(budgets=Budgets(cached_tokens=5 * longest))
    engine.capabilities(tiny_model)
    shapes = []
    handle = tiny_model.register_forward_pre_hook(
        lambda module, args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    found = engine.generate(tiny_model, prompts, 12, eos)
    handle.remove()
    assert found == [plain_greedy(tiny_model, prompt, 12, eos) for prompt in prompts]
    batches = [rows for rows, tokens in shapes if tokens > 1][: len(prompts)]
    assert batches[0] == 5
    assert all(rows <= 5 * longest // (min(map(len, prompts)) + 12) for rows, _ in shapes)
    assert any(after[1] == 1 and after[0] < before[0] for before, after in itertools.pairwise(shapes)), (
        "a step has fewer rows than before"
    )


def test_generation_stops_at_the_cap(tiny_model):
    assert [len(tokens) for tokens in Engine().generate(tiny_model, [(3, 4), (5, 6, 7)], 5, [])] == [5, 5]
    assert Engine().generate(tiny_model, [], 5, []) == []


@pytest.mark.parametrize("heads", [None, 2])
def test_memory_of_a_token_covers_what_its_cache_takes(heads):
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=50)
    model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=heads, **sizes)).eval()
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.arange(10)[None], **{cache_keyword(model): cache}, use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // 10
    states = 4 * (8 * 32 + 3 * 48)
    assert bytes_per_token(model) == kept + states
    pair = Contrast(model, model, alpha=1.0)
    assert bytes_per_token(pair) == 2 * kept + states
    assert bytes_per_token(model.bfloat16()) == (kept + states) // 2


def test_a_gpu_batch_is_bounded_by_its_free_memory(tiny_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 2 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 10**8)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 10**8)
    assert token_budget(Runtime("cuda"), tiny_model) == int(0.6 * 1.2e9 / bytes_per_token(tiny_model))
    assert token_budget(Runtime("cpu"), tiny_model) == CPU.cached_tokens
    weights = sum(weight.nbytes for weight in tiny_model.parameters())
    for bounds, bytes_ in (((0, 100 * cache_bytes(tiny_model)), 100 * cache_bytes(tiny_model)),
                           ((0, 2**40), 2 * weights), ((4 * weights, 2**40), 4 * weights)):  # fmt: skip
        bounded = Runtime("cpu", Budgets(cache_bytes=bounds))
        assert token_budget(bounded, tiny_model) == bytes_ // cache_bytes(tiny_model)


class Crowded:
    """Runs out of memory where a pass has more than so many positions, as a device does."""

    def __init__(self, positions):
        self.positions = positions
        self.refused = 0

    def __call__(self, module, args, inputs):
        if inputs["input_ids"].numel() > self.positions:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_scoring_and_generation_go_on_in_smaller_batches_where_memory_runs_out(tiny_model):
    engine = Engine(budgets=Budgets(cached_tokens=600))
    rows = random_rows(30, tiny_model.config.vocab_size)
    prompts = [row.ids for row in rows]
    expected = engine.score(tiny_model, rows), engine.generate(tiny_model, prompts, 6, [])
    crowded = Crowded(120)
    handle = tiny_model.register_forward_pre_hook(crowded, with_kwargs=True)
    found = engine.score(tiny_model, rows)
    assert [value.nll for value in found] == pytest.approx([value.nll for value in expected[0]], rel=1e-9)
    assert crowded.refused > 0
    crowded.refused = 0
    assert engine.generate(tiny_model, prompts, 6, []) == expected[1]
    assert crowded.refused > 0
    crowded.positions = 1
    with pytest.raises(torch.OutOfMemoryError):
        engine.score(tiny_model, rows)
    handle.remove()


def test_memory_that_runs_out_while_a_head_is_tried_out_says_nothing_of_the_head(tiny_model, monkeypatch):
    failures = [torch.OutOfMemoryError("CUDA out of memory")]
    narrowed = runtime.logits_at

    def once(model, inputs, where, narrow):
        if narrow and failures:
            raise failures.pop()
        return narrowed(model, inputs, where, narrow)

    monkeypatch.setattr(runtime, "logits_at", once)
    engine = Engine()
    engine.score(tiny_model, random_rows(3, tiny_model.config.vocab_size))
    assert not failures
    assert engine.capabilities(tiny_model).narrows


@pytest.mark.parametrize("kind", ["one model", "two models"])
def test_no_pass_keeps_keys_and_values_that_nobody_reads(tiny_model, kind, monkeypatch):
    """At 7B they take more than the pass itself."""
    model = tiny_model if kind == "one model" else Contrast(tiny_model, copy.deepcopy(tiny_model), alpha=1.0)

    def kept(self, *_, **__):
        raise AssertionError("keys and values were kept")

    monkeypatch.setattr(DynamicCache, "update", kept)
    rows, engine = random_rows(6, tiny_model.config.vocab_size), Engine()
    engine.score(model, rows)
    engine.read(model, rows)
    (logp,) = answer_logprobs(model, engine.collate(rows))
    logp.sum().backward()
