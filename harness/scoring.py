"""One pass over all (prompt, answer) pairs of a benchmark: every likelihood metric comes from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batches import Encoded, collate, token_budget_batches
from .logprobs import answer_logprobs

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
    found = _scored(model, rows, device, lambda logp, _: (-logp.sum(-1).double()).tolist())
    return [Likelihood(found[row], row.answer_tokens) for row in rows]


@torch.no_grad()  # type: ignore[untyped-decorator]
def token_logprobs(model: Any, rows: Sequence[Encoded], device: torch.device | str) -> list[list[float]]:
    """The log-probability of every scored token of every row, in nats, in the order given."""

    def kept(logp: Tensor, scored: Tensor) -> list[list[float]]:
        pairs = zip(logp.double().cpu(), scored.cpu(), strict=True)
        return [values[mask].tolist() for values, mask in pairs]

    found = _scored(model, rows, device, kept)
    return [found[row] for row in rows]


def _scored(
    model: Any, rows: Sequence[Encoded], device: torch.device | str, keep: Callable[[Tensor, Tensor], list[Any]]
) -> dict[Encoded, Any]:
    """What ``keep`` takes from (B, T-1) log-probabilities and the mask of scored tokens, by row."""
    kind = "cpu" if torch.device(device).type == "cpu" else "cuda"
    vocabulary = int(model.config.vocab_size)
    budget = min(TOKENS[kind], max(256, LOGITS[kind] // vocabulary))
    unique = list(dict.fromkeys(rows))
    found: dict[Encoded, Any] = {}
    model.eval()
    for places in token_budget_batches([len(row.ids) for row in unique], budget):
        batch = [unique[place] for place in places]
        collated = collate(batch, device)
        (logp,) = answer_logprobs(model, collated)
        found.update(zip(batch, keep(logp, collated.scored), strict=True))
    return found
