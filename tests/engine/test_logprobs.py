from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from unlearnbench.data.encoder import EncodedRow
from unlearnbench.domain import IGNORE
from unlearnbench.engine.batch import collate
from unlearnbench.engine.engine import Engine
from unlearnbench.engine.logprobs import answer_logits, answer_logprobs, sequence_logprob
from unlearnbench.engine.numerics import token_logprobs_of

ROWS = [EncodedRow(tuple(range(3, 3 + length)), start) for length, start in ((9, 4), (5, 1), (7, 6), (12, 0))]

# Four answers to one prompt, one of them twice, and a row of another.
FAMILY = [
    EncodedRow((3, 4, 5, 6, 7, 8, 9, 2), 4),
    EncodedRow((3, 4, 5, 6, 7, 8, 10, 11, 2), 4),
    EncodedRow((3, 4, 5, 6, 12, 2), 4),
    EncodedRow((3, 4, 5, 6, 7, 8, 9, 2), 4), EncodedRow((13, 14, 15, 16, 2), 2),
]  # fmt: skip


def test_answer_logprobs_are_cross_entropy(tiny_model):
    rows = collate(ROWS, "cpu")
    (logp,) = answer_logprobs(tiny_model, rows)
    logits = tiny_model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="none"
    )
    assert torch.allclose(-logp.flatten(), expected)


def test_half_precision_logits_are_scored_in_float32():
    logp = token_logprobs_of(torch.randn(3, 5).bfloat16(), torch.tensor([0, 1, 2]))
    assert logp.dtype == torch.float32


def test_parts_in_one_pass_score_as_they_do_alone(tiny_model):
    first, second = collate(ROWS[:2], "cpu"), collate(ROWS[2:], "cpu")
    together = answer_logprobs(tiny_model, first, second)
    for part, found in zip((first, second), together, strict=True):
        (alone,) = answer_logprobs(tiny_model, part)
        assert found.shape == (len(part), part.labels.shape[1] - 1)
        assert torch.allclose(found, alone, atol=1e-12)


def test_rows_of_one_prompt_score_and_learn_as_padded_rows_do(tiny_model):
    gradients = []
    for encoded in (tuple(FAMILY), ()):
        tiny_model.zero_grad()
        (logp,) = answer_logprobs(tiny_model, replace(collate(FAMILY, "cpu"), encoded=encoded))
        (logp * torch.arange(1, logp.numel() + 1).view_as(logp)).sum().backward()
        gradients.append((logp.detach(), copy.deepcopy([p.grad for p in tiny_model.parameters()])))
    assert torch.allclose(gradients[0][0], gradients[1][0], atol=1e-12)
    for a, b in zip(gradients[0][1], gradients[1][1], strict=True):
        # Llama's norms compute in float32, whatever the weights are.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * float(b.abs().max()))


def test_rows_that_share_a_prompt_are_not_padded(tiny_model):
    seen = []
    handle = tiny_model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    rows = Engine().collate(FAMILY)
    answer_logprobs(tiny_model, rows)  # the model is tried out first
    seen.clear()
    answer_logprobs(tiny_model, rows)
    handle.remove()
    # 7 nodes of the first answer, 2 further of the second, 1 of the third; 4 of the other prompt: no last tokens.
    assert seen == [7 + 2 + 1 + 4]


def test_a_sliding_window_bounds_the_rows_of_a_tree():
    sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = MistralForCausalLM(MistralConfig(num_key_value_heads=1, sliding_window=8, **sizes)).eval()
    engine = Engine()
    twins = engine.collate(FAMILY)
    assert engine.capabilities(model).tree_longest == 8, "the family's rows are longer"
    (found,) = answer_logprobs(model, twins)
    (expected,) = answer_logprobs(model, replace(twins, encoded=()))
    assert torch.equal(found, expected)


def test_extra_padding_changes_no_logprob_and_no_gradient(tiny_model):
    gradients = []
    for width in (0, 40):
        tiny_model.zero_grad()
        (logp,) = sequence_logprob(tiny_model, collate(ROWS, "cpu", width))
        logp.sum().backward()
        gradients.append((logp.detach(), copy.deepcopy([p.grad for p in tiny_model.parameters()])))
    assert torch.allclose(gradients[0][0], gradients[1][0], atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(gradients[0][1], gradients[1][1], strict=True))


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32), GPT2LMHeadModel),
        (
            OPTConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
                      max_position_embeddings=32, word_embed_proj_dim=8),
            OPTForCausalLM,
        ),
        (PhiConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=16), PhiForCausalLM),
        (
            Gemma2Config(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, head_dim=8, intermediate_size=16),
            Gemma2ForCausalLM,
        ),
        (Qwen2Config(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, intermediate_size=16), Qwen2ForCausalLM),
    ],
    ids=["gpt2", "opt", "phi", "gemma2", "qwen2"],
)  # fmt: skip
def test_a_narrowed_head_and_trees_give_the_logits_of_full_padded_rows(config, model):
    torch.manual_seed(0)
    model = model(config).eval()
    engine = Engine()
    rows = engine.collate(ROWS)
    full = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[rows.predicts]
    assert torch.allclose(answer_logits(model, rows), full, atol=1e-5)
    assert engine.capabilities(model).narrows
    twins = engine.collate(FAMILY)
    (found,) = answer_logprobs(model, twins)
    assert engine.capabilities(model).trees.fits
    assert engine.capabilities(model).trees.width == 14, "nodes of both prompts"
    (expected,) = answer_logprobs(model, replace(twins, encoded=()))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_model_whose_head_cannot_be_narrowed_takes_the_plain_path(tiny_model):

    class Shifted(type(tiny_model)):
        """Adds the mean over positions to its logits: wrong when only some positions are computed."""

        def forward(self, *args, **more):
            out = super().forward(*args, **more)
            out.logits = out.logits + out.logits.mean(dim=1, keepdim=True)
            return out

    tiny_model.__class__ = Shifted
    engine = Engine()
    rows = engine.collate(ROWS[:1])
    full = tiny_model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[rows.predicts]
    assert torch.allclose(answer_logits(tiny_model, rows), full, atol=1e-12)
    assert not engine.capabilities(tiny_model).narrows
