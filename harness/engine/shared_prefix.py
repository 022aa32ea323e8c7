"""Attention to a beginning that all rows of a batch share: it is kept once and read once for all of them.

The scores of all rows' queries against the shared keys are one matrix product instead of one for each row, and no row
keeps a copy (the decomposition of Juravsky et al. 2024, arXiv:2402.05099).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .._compat import attention_set_to, register_attention, shared_prefix_of
from .numerics import widened

NAME = "unlearnbench_shared_prefix"


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention.

    Args:
        query: (B, H, T, D).
        key, value: (B, K, L, D), each row's own, of K heads that H / K query heads share; ``key`` carries the shared
            ones, two (1, K, P, D), as ``caches.GrowingLayer`` leaves them there.
        attention_mask: (B, 1, T, L), added to the scores of each row's own keys.

    Returns:
        (B, T, H, D).
    """
    if options.get("softcap") is not None or options.get("position_bias") is not None:
        raise ValueError("scores that are changed before the softmax are not known here")
    shared_key, shared_value = shared_prefix_of(key)
    B, H, T, D = query.shape
    K, L = key.shape[1], key.shape[2]
    G = H // K
    heads = query.reshape(B, K, G * T, D) * (D**-0.5 if scaling is None else scaling)
    together = heads.transpose(0, 1).reshape(K, B * G * T, D)
    shared = _part(together @ shared_key[0].transpose(-1, -2), shared_value[0])
    scores = heads @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores.view(B, K, G, T, L).add_(attention_mask[:, :, None])
    own = _part(scores, value)
    # Each part has a softmax of its own, which the greatest scores and the sums of both bring together.
    highest, total, found = (part.view(K, B, G * T, -1).transpose(0, 1) for part in shared)
    top = torch.maximum(highest, own[0])
    first, second = (highest - top).exp_(), (own[0] - top).exp_()
    found = (first * found + second * own[2]) / (first * total + second * own[1])
    return found.to(query.dtype).reshape(B, H, T, D).transpose(1, 2).contiguous(), None


def _part(scores: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(…, T, L) scores, (…, L, D) values → the greatest score, the sum of exponentials, and the values so weighed."""
    scores = widened(scores)
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    return highest, weights.sum(-1, keepdim=True), weights.to(value.dtype) @ value


def shared_attention(model: Any) -> AbstractContextManager[None]:
    """Within this, caches that hold a shared beginning are attended to by ``attention``."""
    return attention_set_to(model, NAME)


register_attention(NAME, attention)
