"""What the harness takes from other libraries' private interfaces is there, and does what it is taken for."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from unlearnbench import _compat
from unlearnbench.engine import shared_prefix
from unlearnbench.engine.kv_cache import GrowingLayer, KVCache

SIZES = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)


@pytest.fixture
def llama():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def test_an_attention_is_registered_set_and_set_back(llama):
    seen = []

    def attention(module, query, key, value, mask, scaling=None, **options):
        seen.append((query.shape, mask.shape))
        weights = (query @ key.transpose(-1, -2) * scaling + mask).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    _compat.register_attention("of-this-test", attention)
    ids, mask = torch.arange(6).view(2, 3), torch.ones(2, 3, dtype=torch.long)
    before = _compat.attention_of(llama)
    with torch.no_grad():
        expected = llama(input_ids=ids, attention_mask=mask).logits
        with _compat.attention_set_to(llama, "of-this-test"):
            found = llama(input_ids=ids, attention_mask=mask).logits
    assert _compat.attention_of(llama) == before == "sdpa"
    assert torch.allclose(found, expected, atol=1e-5)
    assert seen == [((2, 2, 3, 8), (2, 1, 3, 3))] * 2, "masks are added to scores, as eager attention has them"


def test_what_rows_share_reaches_the_attention_with_the_keys(llama):
    """The cache hands keys to the attention function unchanged, with what was left on them."""
    cache = KVCache(llama.config)
    with torch.no_grad():
        llama(input_ids=torch.tensor([[1, 2, 3, 4]]), **{_compat.cache_keyword(llama): cache}, use_cache=True)
        rest = {"input_ids": torch.tensor([[5, 6], [7, 8]]), "attention_mask": torch.ones(2, 2, dtype=torch.long),
                "position_ids": torch.tensor([[4, 5], [4, 5]])}  # fmt: skip
        with shared_prefix.shared_attention(llama):
            found = llama(**rest, **{_compat.cache_keyword(llama): cache.fork_prefix()}, use_cache=True).logits
        for row, ids in enumerate(((5, 6), (7, 8))):
            alone = llama(input_ids=torch.tensor([[1, 2, 3, 4, *ids]])).logits[0, 4:]
            assert torch.allclose(found[row], alone, atol=1e-5)


def test_growing_layers_take_the_place_of_transformers_own(llama):
    cache = KVCache(llama.config)
    assert all(isinstance(layer, GrowingLayer) for layer in cache.layers)
    theirs, ids = DynamicCache(config=llama.config), torch.arange(12).view(3, 4)
    with torch.no_grad():
        for some in (theirs, cache):
            llama(input_ids=ids, **{_compat.cache_keyword(llama): some}, use_cache=True)
    rows = torch.tensor([0, 2])
    assert all(map(_compat.can_select, theirs.layers))
    for layer in theirs.layers:
        _compat.select_rows(layer, rows)
    cache.select(rows)
    for mine, other in zip(cache.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


def test_a_model_names_the_classes_of_its_layers(llama):
    assert _compat.layer_blocks(llama) == {"LlamaDecoderLayer"}


def test_a_model_is_saved_without_its_quantisation(llama, tmp_path):
    config = copy.deepcopy(llama.config)
    config.quantization_config = {"quant_method": "gguf"}
    assert not hasattr(_compat.without_quantisation(config), "quantization_config")
    LlamaForCausalLM(config).save_pretrained(tmp_path)


def test_no_dropout_is_left():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16)).train()
    ids = torch.arange(8)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    _compat.without_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_norms_and_biases_are_no_names_that_are_decayed():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    decayed = _compat.decayed_names(model)
    assert "transformer.h.0.attn.c_attn.weight" in decayed
    assert not any("bias" in name or "ln_" in name for name in decayed)


def test_key_patterns_are_compiled_where_there_are_any():
    _compat.compile_key_patterns()


def test_a_text_is_cut_into_windows_that_score_every_token_once():
    windows = _compat.rolling_windows(range(10, 17), prefix=2, length=4)
    assert [token for _, continuation in windows for token in continuation] == list(range(10, 17))
    assert windows[0][0] == [2]
    assert all(len(context) + len(continuation) <= 5 for context, continuation in windows)


def test_two_folders_change_names_in_one_step(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not _compat.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this system cannot exchange folders")
    assert (tmp_path / "one" / "file").read_text() == "other"
    assert (tmp_path / "other" / "file").read_text() == "one"


def test_memory_is_given_back_and_its_peak_set_to_now():
    from unlearnbench.engine.memory import peak_resident

    block = torch.ones(30_000_000)
    high = peak_resident()
    del block
    _compat.give_back_memory()
    _compat.reset_peak_memory()
    assert peak_resident() <= high
