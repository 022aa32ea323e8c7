"""Pruning: without its smallest weights a model may know again. Wei et al. 2024, arXiv:2402.05162, prune for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from unlearnbench import Attack, AttackData, Context, hyperparameter

from ._weights import linear_weights


@dataclass(frozen=True)
class Prune(Attack):
    """Sets the smallest weights of every linear layer to 0."""

    name: ClassVar[str] = "prune"
    citation: ClassVar[str] = "Wei et al. 2024, arXiv:2402.05162"
    share: float = hyperparameter(0.1, "share of each layer's weights", low=0.0, high=1.0)

    def change(self, model: Any, data: AttackData, ctx: Context) -> Any:
        with torch.no_grad():
            for weight, _ in linear_weights(model):
                count = round(self.share * weight.numel())
                if count:
                    smallest = weight.abs().flatten().topk(count, largest=False).indices
                    weight.data.view(-1)[smallest] = 0.0
        return model
