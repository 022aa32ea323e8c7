"""What several methods share: editions, terms of their losses, and the refusal of adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unlearnbench import (
    EDITIONS,
    Batch,
    NotApplicable,
    Term,
    all_logits,
    answer_logits,
    kl_divergence,
)

MUSE_EDITIONS = (*EDITIONS, "as-released-muse")
"""``as-released-muse``: the raw-logit forms of muse_bench's code."""


def ascent_term(logp_forget: Tensor, weight: float = 1.0) -> Term:
    """−NLL of the forget answers, averaged over their tokens: (B, T-1) log-probabilities in nats."""
    return Term(logp_forget.sum(), per="forget tokens", weight=weight)


def descent_term(logp: Tensor, per: str, weight: float = 1.0) -> Term:
    """NLL of the answers of one part, averaged over the tokens ``per``: (B, T-1) log-probabilities in nats."""
    return Term(-logp.sum(), per=per, weight=weight)


def retain_kl_term(model: Any, batch: Batch, edition: str, weight: float = 1.0) -> Term:
    """KL(original, unlearned) on the retain rows, over the whole vocabulary.

    ``paper`` averages it over answer positions; ``as-released`` (tofu, npo, FLAT) over every position of the
    padded batch, prompt and padding included. ``as-released-muse`` (muse_bench) is no divergence: it puts raw
    logits z where log-probabilities belong, Σ exp(z_original) (z_original − z) over positions and vocabulary,
    averaged over rows alone.
    """
    if edition == "as-released-muse":
        divergences, per = _divergence(model, batch, all_logits, raw_logit_divergence), "retain rows"
    elif edition == "paper":
        divergences, per = _divergence(model, batch, answer_logits, kl_divergence), "retain tokens"
    else:
        divergences, per = _divergence(model, batch, all_logits, kl_divergence), "retain positions"
    return Term(divergences.sum(), per=per, weight=weight)


def raw_logit_divergence(logits_original: Tensor, logits: Tensor) -> Tensor:
    """(..., V) raw logits → (...): Σ exp(z_original) (z_original − z), which a shift of the logits changes."""
    return (logits_original.exp() * (logits_original - logits)).sum(-1)


def _divergence(model: Any, batch: Batch, logits_of: Any, divergence: Any) -> Tensor:
    with torch.no_grad():
        reference = logits_of(batch.original, batch.retain)
    found: Tensor = divergence(reference, logits_of(model, batch.retain))
    return found


def refuse_adapter(method: str, model: Any) -> None:
    """Raise NotApplicable for a model with an adapter, whose weights are not all there to compute with."""
    if hasattr(model, "peft_config"):
        raise NotApplicable(f"{method} computes with all weights of two models; set lora_rank = 0")
