"""What only a GPU shows: that the host does not wait for it within a pass, and that padding needs no mask there."""

from __future__ import annotations

import random
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from unlearnbench.contracts import Context
from unlearnbench.data.encoder import EncodedRow
from unlearnbench.engine.engine import Engine
from unlearnbench.training.loop import train
from unlearnbench.training.loss import Batch
from unlearnbench.training.loss_method import FineTune

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = torch.device("cuda:0")


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(DEVICE)


def ragged(count):
    """Rows of unlike lengths without a common prompt."""
    draw = random.Random(0)
    lengths = [draw.randrange(12, 60) for _ in range(count)]
    return [EncodedRow(tuple(draw.randrange(1, 500) for _ in range(length)), length // 2) for length in lengths]


@contextmanager
def no_waits():
    """Raise RuntimeError where the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@dataclass(frozen=True)
class Watched(FineTune):
    """Its forward passes raise where the host waits; those on the first batches, which the engine tries out, do not."""

    seen: ClassVar[list[int]] = []

    def loss(self, model, batch):
        self.seen.append(1)
        with no_waits() if len(self.seen) > 2 else nullcontext():
            return list(super().loss(model, batch))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_host_does_not_wait_for_a_forward_pass_of_training(model, precision):
    engine, rows = Engine(DEVICE), ragged(64)
    # The longest row beside short ones, on which the engine tries out what suits.
    by_length = sorted(rows, key=lambda row: len(row.ids))
    batches = [[by_length[-1], *by_length[:7]]] * 2 + [rows[at : at + 8] for at in range(0, len(rows), 8)]
    Watched.seen.clear()
    ctx = Context("test", 0, engine, lambda _: None, autocast=precision)
    steps = iter([[Batch({"forget": engine.collate(batch)})] for batch in batches])
    train(model, Watched(epochs=1, batch_size=8), steps, 8 * len(batches), ctx)
    assert ctx.meter.optimiser_steps == len(Watched.seen) == 10


def test_the_host_waits_for_a_scoring_pass_once_at_its_end(model, monkeypatch):
    engine, rows = Engine(DEVICE), ragged(64)
    expected = engine.score(model, rows)
    seen = []
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda tensor, cpu=torch.Tensor.cpu: (seen.append(1), _read(tensor, cpu))[1]
    )
    with no_waits():
        found = engine.score(model, rows)
    assert found == expected
    assert len(seen) <= 4


def _read(tensor, cpu):
    torch.cuda.set_sync_debug_mode("default")
    try:
        return cpu(tensor)
    finally:
        torch.cuda.set_sync_debug_mode("error")


def test_padded_rows_are_read_without_a_mask_and_score_as_each_alone(model):
    engine, rows = Engine(DEVICE), ragged(32)
    assert engine.capabilities(model).unmasked
    together = engine.score(model, rows)
    alone = [engine.score(model, [row])[0] for row in rows]
    found, expected = (torch.tensor([row.nll for row in scored]) for scored in (together, alone))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
