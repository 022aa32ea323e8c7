"""Divergences between distributions over a vocabulary, and the f-divergences of FLAT."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def kl_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(p, q) of each pair of distributions, in nats: (..., V) and (..., V) → (...), at least 0.

    Computed in at least float32. p is the reference: KL(original, unlearned) keeps the unlearned model from
    dropping what the original finds likely.
    """
    wide = torch.float64 if logits_q.dtype == torch.float64 else torch.float32
    log_p = logits_p.to(wide).log_softmax(-1)
    log_q = logits_q.to(wide).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass(frozen=True)
class FDivergence:
    """An f-divergence in variational form, as in FLAT (Wang et al. 2025, arXiv:2410.11143, Table 2).

    ``f`` is its generator on t > 0, ``activation`` the g* that maps a probability into the domain of f*, and
    ``conjugate`` the Fenchel conjugate f*(u) = sup over t of u t − f(t).
    """

    name: str
    f: Callable[[Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]


F_DIVERGENCES = {
    divergence.name: divergence
    for divergence in (
        FDivergence(
            "total-variation",
            f=lambda t: (t - 1).abs() / 2,
            activation=lambda v: torch.tanh(v) / 2,
            conjugate=lambda u: u,
        ),
        FDivergence(
            "jensen-shannon",
            f=lambda t: t * torch.log(t) - (1 + t) * torch.log((1 + t) / 2),
            activation=lambda v: math.log(2) - torch.nn.functional.softplus(-v),
            conjugate=lambda u: -torch.log(2 - torch.exp(u)),
        ),
        FDivergence(
            "pearson",
            f=lambda t: (t - 1) ** 2,
            activation=lambda v: v,
            conjugate=lambda u: u**2 / 4 + u,
        ),
        FDivergence(
            "kl",
            f=lambda t: t * torch.log(t),
            activation=lambda v: v,
            conjugate=lambda u: torch.exp(u - 1),
        ),
    )
}
