"""DPO: direct preference optimisation. Rafailov et al. 2023, eq. 7.

Refusals are what is preferred. The loss is scaled by 2/β, as NPO's is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from unlearnbench import EDITIONS, Batch, LossMethod, Requires, Term, hyperparameter, sequence_logprob


def dpo_loss(log_ratio_template: Tensor, log_ratio_forget: Tensor, beta: float) -> Tensor:
    """−2/β · log σ(β (Δ_template − Δ_forget)) of each row.

    Args:
        log_ratio_template, log_ratio_forget: (B,), log p − log p_original of the two answers, in nats.
    """
    return -2 / beta * F.logsigmoid(beta * (log_ratio_template - log_ratio_forget))


@dataclass(frozen=True)
class DPO(LossMethod):
    """Prefers a refusal to the forget answer.

    ``as-released`` (FLAT) sets the original model's log-ratio to 0, so that no reference is left in the loss.
    """

    name: ClassVar[str] = "dpo"
    citation: ClassVar[str] = "Rafailov et al. 2023, arXiv:2305.18290"
    requires: ClassVar[Requires] = Requires(template=True, original="logprobs")
    edition: str = hyperparameter("paper", "which definition of the loss", choices=EDITIONS)
    beta: float = hyperparameter(0.1, "inverse temperature β", above=0.0)

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        template, forget = sequence_logprob(model, batch.template, batch.forget)
        if self.edition == "paper":
            template = template - batch.template.logp_original
            forget = forget - batch.forget.logp_original
        yield Term(dpo_loss(template, forget, self.beta).sum(), per="forget rows")
