"""Task Vector: learn the forget set better, then step the other way. Ilharco et al. 2023.

As used by Shi et al. 2024, arXiv:2407.06460, §3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnbench import Context, FineTune, UnlearningData, hyperparameter

from ._terms import refuse_adapter


@torch.no_grad()
def negate(model: torch.nn.Module, original: Mapping[str, Tensor], alpha: float) -> None:
    """Set every weight θ of ``model`` to θ_original − alpha (θ − θ_original), in place.

    Differs: muse_bench's released code for this method leaves the model's weights as they were.
    """
    for name, weight in model.named_parameters():
        start = original[name].to(weight.device)
        weight.copy_(start - alpha * (weight - start))


@dataclass(frozen=True)
class TaskVector(FineTune):
    """Fine-tunes on the forget set and subtracts the change from the original weights."""

    name: ClassVar[str] = "task-vector"
    citation: ClassVar[str] = "Ilharco et al. 2023, arXiv:2212.04089"
    edition: str = hyperparameter("paper", "which definition", choices=("paper",))
    alpha: float = hyperparameter(1.0, "how far to step away from the fine-tuned model", low=0.0)

    def unlearn(self, model: Any, tokenizer: Any, data: UnlearningData, ctx: Context) -> Any:
        refuse_adapter(self.name, model)
        original = {name: weight.detach().cpu().clone() for name, weight in model.named_parameters()}
        model = super().unlearn(model, tokenizer, data, ctx)
        negate(model, original, self.alpha)
        return model
