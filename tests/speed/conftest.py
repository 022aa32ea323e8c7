"""Races of the engine against the same work done plainly, in one process, in alternating order, with equal results.

What is gated is the median of the ratios of neighbouring measurements: other work on the machine slows both. The
model has 4 layers of 256 units and a vocabulary of 49,152; data are generated. ``UNLEARNBENCH_SPEED_MODEL`` and
``UNLEARNBENCH_SPEED_TOFU`` name a model's folder and a folder of TOFU's tables to race on instead, and
``UNLEARNBENCH_SPEED_LIMIT`` the rows of each part.
"""

from __future__ import annotations

import gc
import os
import statistics
import threading
import time
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

GATES = tomllib.loads((Path(__file__).parent / "gates.toml").read_text())
REAL_MODEL, REAL_DATA = (os.environ.get(f"UNLEARNBENCH_SPEED_{name}", "") for name in ("MODEL", "TOFU"))
LIMIT = int(os.environ.get("UNLEARNBENCH_SPEED_LIMIT", "0")) or None


class Peak:
    """The most resident memory of this process while a block runs, in bytes."""

    def __enter__(self) -> Peak:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, me.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.fixture
def race(benchmark, request):
    """``race(stage, ours, plain, equal)``: both give equal results, and ours is as much faster as its gate says."""

    def run(stage, ours, plain, equal, rounds=3):
        ours()  # what is measured once for a model class or a process is no part of a stage
        seconds = {"ours": [], "plain": []}
        peaks = {"ours": [], "plain": []}
        results = {}

        def timed(which, work):
            gc.collect()
            with Peak() as peak:
                start = time.perf_counter()
                results[which] = work()
                seconds[which].append(time.perf_counter() - start)
            peaks[which].append(peak.bytes)

        def first():
            if len(seconds["ours"]) % 2 == 0:
                timed("plain", plain)

        def last():
            if len(seconds["plain"]) < len(seconds["ours"]):
                timed("plain", plain)

        benchmark.group = stage
        benchmark.pedantic(lambda: timed("ours", ours), setup=first, teardown=last, rounds=rounds)
        equal(results["ours"], results["plain"])
        ratios = sorted(p / o for p, o in zip(seconds["plain"], seconds["ours"], strict=True))
        found = statistics.median(ratios)
        benchmark.extra_info |= {
            "stage": stage,
            "ratio": found,
            "ratios": ratios,
            "plain_seconds": statistics.median(seconds["plain"]),
            "ours_seconds": statistics.median(seconds["ours"]),
            "plain_peak_bytes": max(peaks["plain"]),
            "ours_peak_bytes": max(peaks["ours"]),
        }
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        _report(request, f"{stage}: {found:.2f} times as fast ({spread}), "
                f"{max(peaks['ours']) / 2**20:.0f} MiB against {max(peaks['plain']) / 2**20:.0f}")  # fmt: skip
        assert found >= GATES[stage], f"{stage}: {found:.2f} ({spread}), its gate is {GATES[stage]}"

    return run


@pytest.fixture
def report(request):
    """Prints a line past pytest's capture."""
    return lambda line: _report(request, line)


def _report(request: Any, line: str) -> None:
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{line}", flush=True)


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
    from unlearnbench import models
    from unlearnbench.builtin import unlearnbench_models
    from unlearnbench.context import Preparation
    from unlearnbench.plugins import load_plugins
    from unlearnbench.specs import resolve
    from unlearnbench.tables import DataSource, read_tables

    spec = load_plugins().find("benchmark", name).spec
    real = REAL_DATA and name.startswith("tofu")
    source = DataSource("local", REAL_DATA) if real else DataSource("generated", "", 0, "quick")
    base = next(spec for spec in unlearnbench_models() if spec.name == "tiny")
    if REAL_MODEL:
        base = replace(base, path=REAL_MODEL, architecture={}, prompt_format="chat")
    benchmark = resolve(spec.target, name)(**settings, **spec.fixed)
    encoder = models.saved_encoder(base, REAL_MODEL) if REAL_MODEL else None
    tables = read_tables(spec.data, source)
    task = benchmark.prepare(Preparation(tables, lambda corpus: encoder or models.make_encoder(base, corpus), False, not real))
    return benchmark, task


def untrained(layers: int = 4, width: int = 256, vocabulary: int = 49152) -> Any:
    """A Llama with random weights and long positions."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if REAL_MODEL:
        return AutoModelForCausalLM.from_pretrained(REAL_MODEL, dtype=torch.float32).eval()
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=8, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tofu_work() -> Work:
    """TOFU forget01 whole, or its first rows where a limit is set."""
    benchmark, task = prepared("tofu-forget01", max_new_tokens=200 if REAL_MODEL else 32, limit=LIMIT or 0)
    return Work(untrained(), benchmark, task)
