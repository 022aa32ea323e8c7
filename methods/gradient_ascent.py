"""Gradient ascent, alone and held back by the retain set.

GA: Jang et al. 2023, arXiv:2210.01504. GD (gradient difference): Liu et al. 2022, arXiv:2203.12817.
KL: gradient ascent with a KL term on the retain set; Maini et al. 2024, arXiv:2401.06121, §3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnbench import (
    Batch,
    LossMethod,
    Requires,
    Term,
    TokenBatch,
    answer_logits,
    answer_logprobs,
    hyperparameter,
    kl_divergence,
    widened,
)

from .editions import EDITIONS, MUSE_EDITIONS


def ascent_term(logp_forget: Tensor, weight: float = 1.0) -> Term:
    """−NLL of the forget answers, averaged over their tokens: (B, T-1) log-probabilities in nats."""
    return Term(logp_forget.sum(), per="forget tokens", weight=weight)


def retain_kl_term(model: Any, batch: Batch, edition: str) -> Term:
    """KL(original, unlearned) on the retain rows, over the whole vocabulary.

    ``paper`` averages it over answer positions; ``as-released`` (tofu, npo, FLAT) over every position of the
    padded batch, prompt and padding included. ``as-released-muse`` (muse_bench) is no divergence: it puts raw
    logits z where log-probabilities belong, Σ exp(z_original) (z_original − z) over positions and vocabulary,
    averaged over rows alone.
    """
    if edition == "as-released-muse":
        return Term(_divergence(model, batch, all_logits, raw_logit_divergence).sum(), per="retain rows")
    if edition == "paper":
        return Term(_divergence(model, batch, answer_logits).sum(), per="retain tokens")
    return Term(_divergence(model, batch, all_logits).sum(), per="retain positions")


def raw_logit_divergence(logits_original: Tensor, logits: Tensor) -> Tensor:
    """(..., V) raw logits → (...): Σ exp(z_original) (z_original − z), which a shift of the logits changes."""
    return (logits_original.exp() * (logits_original - logits)).sum(-1)


def _divergence(model: Any, batch: Batch, logits_of: Any, divergence: Any = kl_divergence) -> Tensor:
    with torch.no_grad():
        reference = logits_of(batch.original, batch.retain)
    found: Tensor = divergence(reference, logits_of(model, batch.retain))
    return found


def all_logits(model: Any, rows: TokenBatch) -> Tensor:
    """(B, T, V) logits at every position, padding included, in at least float32."""
    return widened(model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits)


@dataclass(frozen=True)
class GradientAscent(LossMethod):
    """Raises the loss on the forget answers, without bound."""

    name: ClassVar[str] = "ga"
    edition: str = hyperparameter("paper", "which definition of the loss", choices=EDITIONS)

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        (forget,) = answer_logprobs(model, batch.forget)
        yield ascent_term(forget)


@dataclass(frozen=True)
class GradientDifference(LossMethod):
    """Gradient ascent on the forget answers, descent on retain answers."""

    name: ClassVar[str] = "gd"
    requires: ClassVar[Requires] = Requires(retain=True)
    edition: str = hyperparameter("paper", "which definition of the loss", choices=EDITIONS)

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        forget, retain = answer_logprobs(model, batch.forget, batch.retain)
        yield ascent_term(forget)
        yield Term(-retain.sum(), per="retain tokens")


@dataclass(frozen=True)
class KLMinimization(LossMethod):
    """Gradient ascent on the forget answers, staying near the original model on retain rows."""

    name: ClassVar[str] = "kl"
    requires: ClassVar[Requires] = Requires(retain=True, original="model")
    edition: str = hyperparameter("paper", "which definition of the loss", choices=MUSE_EDITIONS)
    padded_length: int = hyperparameter(500, "as-released: rows are padded to this many tokens", low=0)

    @property
    def padded_to(self) -> int:
        return self.padded_length if self.edition == "as-released" else 0

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        (forget,) = answer_logprobs(model, batch.forget)
        yield ascent_term(forget)
        yield retain_kl_term(model, batch, self.edition)
