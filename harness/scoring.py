"""One pass over all (prompt, answer) pairs of a benchmark: every likelihood metric comes from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .batches import Encoded, collate, token_budget_batches
from .logprobs import sequence_logprob

# Padded tokens in one forward pass, and elements of one (answer tokens × vocabulary) block of logits:
# large enough to fill the device, small enough to stay in cache on a CPU and in memory on a GPU.
TOKENS = {"cpu": 2048, "cuda": 65536}
LOGITS = {"cpu": 2**25, "cuda": 2**30}


@dataclass(frozen=True)
class Likelihood:
    """Summed negative log-likelihood of an answer in nats, and its number of tokens (EOS included)."""

    nll: float
    tokens: int

    @property
    def loss(self) -> float:
        """Nats per token; NaN for an answer without tokens."""
        return self.nll / self.tokens if self.tokens else float("nan")


@torch.no_grad()  # type: ignore[untyped-decorator]
def likelihoods(model: Any, rows: Sequence[Encoded], device: torch.device | str) -> list[Likelihood]:
    """The likelihood of every row's answer, in the order given.

    Rows are sorted by length and batched by padded tokens; equal rows are computed once.
    """
    kind = "cpu" if torch.device(device).type == "cpu" else "cuda"
    vocabulary = int(model.config.vocab_size)
    budget = min(TOKENS[kind], max(256, LOGITS[kind] // vocabulary))
    unique = list(dict.fromkeys(rows))
    found: dict[Encoded, float] = {}
    model.eval()
    for places in token_budget_batches([len(row.ids) for row in unique], budget):
        batch = [unique[place] for place in places]
        (logp,) = sequence_logprob(model, collate(batch, device))
        found.update(zip(batch, (-logp.double()).tolist(), strict=True))
    return [Likelihood(found[row], row.answer_tokens) for row in rows]
