"""A beginning that all rows share is kept once, and every row attends to it as if it had its own."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from unlearnbench.engine.budgets import CPU, Budgets
from unlearnbench.engine.engine import Engine
from unlearnbench.methods.whp import Contrast

SIZES = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
BEGINNING = tuple(range(3, 3 + CPU.shared_prefix))


def llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, **changes}))


def model_of(name):
    torch.manual_seed(0)
    return {
        "llama": llama,
        "llama-eager": lambda: llama(attn_implementation="eager"),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=96)),
        "opt": lambda: OPTForCausalLM(OPTConfig(ffn_dim=48, max_position_embeddings=96, word_embed_proj_dim=32,
                                                **SIZES)),
        "pair": lambda: Contrast(llama(), llama(), alpha=2.0),
    }[name]().eval()  # fmt: skip


def one_by_one(model, prompt, limit):
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(limit):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ["llama", "llama-eager", "gpt2", "opt", "pair"])
def test_rows_after_a_shared_beginning_are_continued_as_each_alone(name):
    model = model_of(name)
    before = model.config._attn_implementation
    prompts = [(*BEGINNING, *rest) for rest in ((40, 41, 42, 43), (44, 45), (46,), (40, 47, 48))]
    longest = len(prompts[0]) + 8
    # A small budget, so that rows join others.
    engine = Engine.probe(model, budgets=Budgets(cached_tokens=3 * (longest - len(BEGINNING))))
    engine.capabilities(model).shared.found(True, longest, longest)  # so that no row is read once more to compare
    read = []
    handle = model.register_forward_pre_hook(
        lambda module, args, inputs: read.append(inputs["input_ids"].shape), with_kwargs=True
    )
    found = engine.generate(model, prompts, 8, [])
    handle.remove()
    assert found == [one_by_one(model, prompt, 8) for prompt in prompts]
    assert sum(shape[-1] >= len(BEGINNING) for shape in read) == 1, "the beginning is read once"
    assert model.config._attn_implementation == before


def test_a_model_with_a_sliding_window_reads_whole_prompts():
    engine = Engine()
    torch.manual_seed(0)
    config = MistralConfig(intermediate_size=48, num_key_value_heads=2, sliding_window=12, **SIZES)
    model = MistralForCausalLM(config).eval()
    prompts = [(*BEGINNING, *rest) for rest in ((40, 41, 42, 43), (44, 45))]
    assert engine.generate(model, prompts, 6, []) == [one_by_one(model, prompt, 6) for prompt in prompts]
    assert engine.counters.as_dict()["generation"] == {"rows together": 1}


def test_a_class_that_attends_in_its_own_way_reads_whole_prompts(monkeypatch):
    engine = Engine()
    model = model_of("llama")
    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", lambda *_, **__: None)
    prompts = [(*BEGINNING, *rest) for rest in ((40, 41, 42, 43), (44, 45))]
    assert engine.generate(model, prompts, 6, []) == [one_by_one(model, prompt, 6) for prompt in prompts]
    assert engine.counters.as_dict()["generation"] == {"rows together": 1}
