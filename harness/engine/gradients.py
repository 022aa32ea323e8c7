"""Gradient norms of single rows, which tell texts that a model was trained on from others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..data.encoder import EncodedRow
from .runtime import Runtime


def gradient_norms(runtime: Runtime, model: Any, rows: Sequence[EncodedRow]) -> list[float]:
    """The norm of the gradient of each row's loss by all weights that take one; see ``Engine.gradient_norms``."""
    was = [weight.requires_grad for weight in model.parameters()]
    model.eval()
    try:
        model.requires_grad_(True)
        return [_norm(runtime, model, row) for row in rows]
    finally:
        for weight, wanted in zip(model.parameters(), was, strict=True):
            weight.requires_grad_(wanted)
            weight.grad = None


def _norm(runtime: Runtime, model: Any, row: EncodedRow) -> float:
    with torch.enable_grad():
        loss = -runtime.logprobs_alone(model, row).mean()
        gradients = torch.autograd.grad(loss, [*model.parameters()], allow_unused=True)
    norms = [gradient.detach().float().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).norm())
