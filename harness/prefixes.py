"""Attention to a beginning that all rows of a batch share: it is kept once and read once for all of them.

The scores of all rows' queries against the shared keys are one matrix product instead of one for each row, and no row
keeps a copy (the decomposition of Juravsky et al. 2024, arXiv:2402.05099, with one softmax over both parts).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

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
        key, value: (B, K, L, D), each row's own, of K heads that H / K query heads share; ``key.prefix`` has the shared
            ones, two (1, K, P, D), as ``caches.GrowingLayer`` leaves them there.
        attention_mask: (B, 1, T, L), added to the scores of each row's own keys.

    Returns:
        (B, T, H, D).
    """
    if options.get("softcap") is not None or options.get("position_bias") is not None:
        raise ValueError("scores that are changed before the softmax are not known here")
    shared_key, shared_value = key.prefix
    B, H, T, D = query.shape
    K, L, P = key.shape[1], key.shape[2], shared_key.shape[2]
    heads = query.reshape(B, K, H // K * T, D) * (D**-0.5 if scaling is None else scaling)
    own = (heads @ key.transpose(-1, -2)).view(B, K, H // K, T, L)
    if attention_mask is not None:
        own = own + attention_mask[:, :, None]
    together = heads.transpose(0, 1).reshape(1, K, B * (H // K) * T, D)
    shared = (together @ shared_key.transpose(-1, -2)).view(K, B, H // K, T, P).transpose(0, 1)  # (B, K, H/K, T, P)
    weights = torch.cat([shared, own], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
    first = weights[..., :P].transpose(0, 1).reshape(1, K, B * (H // K) * T, P) @ shared_value
    found = first.view(K, B, H // K * T, D).transpose(0, 1) + weights[..., P:].reshape(B, K, H // K * T, L) @ value
    return found.reshape(B, H, T, D).transpose(1, 2).contiguous(), None


@contextmanager
def shared_attention(model: Any) -> Iterator[None]:
    """Within this, caches that hold a shared beginning are attended to by ``attention``."""
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    before = [(part, part.config._attn_implementation) for part in parts]
    try:
        for part in parts:
            part.set_attn_implementation(NAME)
        yield
    finally:
        for part, name in before:
            part.set_attn_implementation(name)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)
