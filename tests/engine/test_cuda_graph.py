"""Steps of a batch that stays: a cache with room and a mask of its own give what a growing cache gives."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unlearnbench.engine import decoding
from unlearnbench.engine.budgets import Budgets, Mechanisms
from unlearnbench.engine.cuda_graph import RecordedSteps, can_record
from unlearnbench.engine.engine import Engine
from unlearnbench.engine.kv_cache import KVCache, new_cache
from unlearnbench.engine.runtime import Runtime


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    config = LlamaConfig(num_key_value_heads=2, attn_implementation=request.param, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(config).eval()
    # In float64 eager attention gives no numbers for padding: its softmax is in float32, where the mask is infinite.
    return model.double() if request.param == "sdpa" else model


def prompts(beginning=()):
    made = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 9, (14,), generator=made).tolist()
    return [(*beginning, *torch.randint(1, 50, (length,), generator=made).tolist()) for length in lengths]


@pytest.mark.parametrize("beginning", [(), tuple(range(1, 41))], ids=["each row alone", "after a shared beginning"])
@pytest.mark.parametrize("room", [3, 64])
def test_a_batch_that_stays_writes_what_a_growing_one_writes(model, beginning, room, monkeypatch):
    """Rows end at different times, leave and join between the steps."""
    asked = prompts(beginning)
    grows = Budgets(cached_tokens=160)
    expected = Engine(budgets=grows).generate(model, asked, 20, [7, 8, 9, 11])
    assert len({len(line) for line in expected}) > 3
    stayed = []
    monkeypatch.setattr(decoding, "can_record", lambda runtime, model, cache: isinstance(cache, KVCache))
    stays = replace(grows, graph_columns=room, steps=4)
    step = RecordedSteps.next
    monkeypatch.setattr(RecordedSteps, "next", lambda self: stayed.append(self.begin) or step(self))
    assert Engine(budgets=stays).generate(model, asked, 20, [7, 8, 9, 11]) == expected
    assert len(stayed) > 20
    assert len(set(stayed)) > 3, "the batch changed between its steps"


def test_only_gpus_record(model):
    cpu, gpu = Runtime("cpu"), Runtime("cuda")
    gpu.capabilities = cpu.capabilities
    cache = new_cache(model, cpu)
    assert can_record(gpu, model, cache)
    assert not can_record(cpu, model, cache)
    model.config.layer_types = ["sliding_attention"] * 2
    model.config.sliding_window = 8
    assert not can_record(gpu, model, new_cache(model, gpu))


@pytest.mark.parametrize(
    ("error", "repeats"),
    [(torch.OutOfMemoryError("CUDA out of memory"), None), (RuntimeError("operation not permitted"), False)],
)
def test_a_graph_that_memory_does_not_hold_is_tried_again_with_the_next_batch(model, error, repeats, monkeypatch):
    @contextmanager
    def graph(_):
        yield
        raise error

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    runtime, cache = Runtime("cpu"), new_cache(model, Runtime("cpu"))
    ids = torch.tensor([[3, 4], [5, 6]])
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        steps = RecordedSteps(runtime, model, cache, ids[:, -1:], torch.ones_like(ids), 0, 20)
        steps._record()
        assert runtime.capabilities(model).repeats is repeats
        assert steps.next().shape == (2, 1)
    assert runtime.counters.as_dict()["decoding"] == {"step by step": 1}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph is recorded on a GPU")
def test_a_graph_writes_what_a_growing_batch_writes(model):
    placed = model.cuda()
    engine = Engine("cuda")
    found = engine.generate(placed, prompts(), 20, [7])
    assert engine.capabilities(placed).repeats
    grows = Engine("cuda", mechanisms=Mechanisms(cuda_graph=False))
    assert grows.generate(placed, prompts(), 20, [7]) == found
