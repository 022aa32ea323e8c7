"""What the races run on: a model, and benchmarks made ready for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

REAL_MODEL, REAL_DATA = (os.environ.get(f"UNLEARNBENCH_SPEED_{name}", "") for name in ("MODEL", "TOFU"))
ROUNDS = int(os.environ.get("UNLEARNBENCH_SPEED_ROUNDS", "3"))
LIMIT = int(os.environ.get("UNLEARNBENCH_SPEED_LIMIT", "0"))


@dataclass(frozen=True)
class Work:
    """A model, and a benchmark made ready for it."""

    model: Any
    benchmark: Any
    task: Any

    @property
    def eos(self) -> int:
        return int(self.task.encoder.tokenizer.eos_token_id)

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.vocab_size)


def prepared(name: str, **settings: Any) -> Any:
    """A benchmark and its task, on generated or real data, for a model from scratch or a real one."""
    from unlearnbench.contracts import Preparation
    from unlearnbench.data.sources import DataSource, read_tables
    from unlearnbench.plugin.registry import load_plugins
    from unlearnbench.plugin.specs import resolve
    from unlearnbench.running.builtin import unlearnbench_models
    from unlearnbench.training import models

    spec = load_plugins().find("benchmark", name).spec
    real = REAL_DATA and name.startswith("tofu")
    source = DataSource("local", REAL_DATA) if real else DataSource("generated", "", 0, "quick")
    base = next(spec for spec in unlearnbench_models() if spec.name == "tiny")
    if REAL_MODEL:
        base = replace(base, path=REAL_MODEL, architecture={}, prompt_format="chat")
    benchmark = resolve(spec.target, name)(**settings, **spec.fixed)
    encoder = models.saved_encoder(base, REAL_MODEL) if REAL_MODEL else None
    tables = read_tables(spec.data, source)
    task = benchmark.prepare(
        Preparation(tables, lambda corpus: encoder or models.make_encoder(base, corpus), False, not real)
    )
    return benchmark, task


def untrained(layers: int = 4, width: int = 256, vocabulary: int = 49152) -> Any:
    """A Llama with random weights and long positions."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if REAL_MODEL:
        return AutoModelForCausalLM.from_pretrained(REAL_MODEL, dtype=torch.float32).eval()
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=8, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()
