"""The engine's passes against plain Hugging Face ones on the same work, with equal results."""

from __future__ import annotations

import pytest
import torch

from unlearnbench.batches import Encoded
from unlearnbench.generation import greedy
from unlearnbench.scoring import likelihoods

VOCABULARY = 8192


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
                    num_attention_heads=4, max_position_embeddings=256, bos_token_id=None, eos_token_id=0)
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 80, (200,), generator=generator).tolist()
    return [Encoded(tuple(torch.randint(1, VOCABULARY, (n,), generator=generator).tolist()), n // 2) for n in lengths]


@torch.no_grad()
def plain_likelihoods(model, rows, batch=8):
    """Unsorted batches of eight, full logits."""
    found = []
    for at in range(0, len(rows), batch):
        chosen = rows[at : at + batch]
        width = max(len(row.ids) for row in chosen)
        ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in chosen])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in chosen])
        logp = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        for number, row in enumerate(chosen):
            picked = [logp[number, place - 1, row.ids[place]] for place in range(row.start, len(row.ids))]
            found.append(-float(torch.stack(picked).sum()))
    return found


@pytest.mark.benchmark(group="scoring 200 rows")
def test_scoring_pass(benchmark, model, rows):
    found = benchmark(likelihoods, model, rows, "cpu")
    assert [value.nll for value in found] == pytest.approx(plain_likelihoods(model, rows), rel=1e-4)


@pytest.mark.benchmark(group="scoring 200 rows")
def test_scoring_with_full_logits(benchmark, model, rows):
    assert len(benchmark(plain_likelihoods, model, rows)) == 200


@pytest.mark.benchmark(group="generating 32 tokens for 60 prompts")
def test_generation_pass(benchmark, model, rows):
    prompts = [row.ids for row in rows[:60]]
    assert len(benchmark(greedy, model, prompts, 32, [0], "cpu")) == 60


@pytest.mark.benchmark(group="generating 32 tokens for 60 prompts")
def test_generation_by_generate(benchmark, model, rows):
    prompts = [row.ids for row in rows[:60]]

    @torch.no_grad()
    def plain():
        found = []
        for at in range(0, 60, 8):
            chosen = prompts[at : at + 8]
            width = max(map(len, chosen))
            ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in chosen])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chosen])
            out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=32, do_sample=False, pad_token_id=0)
            found += out[:, width:].tolist()
        return found

    found = benchmark(plain)
    cut = [tokens[: tokens.index(0)] if 0 in tokens else tokens for tokens in found]
    assert cut == greedy(model, prompts, 32, [0], "cpu")
