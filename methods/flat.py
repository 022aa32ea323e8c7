"""FLAT: forget data only loss adjustment. Wang et al. 2025 (ICLR), eq. 2 and Table 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from unlearnbench import (
    EDITIONS,
    F_DIVERGENCES,
    Batch,
    FDivergence,
    LossMethod,
    Requires,
    Term,
    UsageError,
    answer_logprobs,
    hyperparameter,
)


def flat_loss(p_template: Tensor, p_forget: Tensor, divergence: FDivergence) -> Tensor:
    """−[g*(P_e) − f*(g*(P_f))], elementwise: mean probabilities of answer tokens, in [0, 1]."""
    return -(divergence.activation(p_template) - divergence.conjugate(divergence.activation(p_forget)))


@dataclass(frozen=True)
class FLAT(LossMethod):
    """Maximises an f-divergence between a template answer and the forget answer; needs only forget data.

    P is a mean softmax probability of answer tokens. ``paper`` takes it over each answer's own tokens and the
    loss per row. ``as-released`` divides the sum over a batch by rows × (padded length − 1), ignored positions
    included, and takes one loss of the two numbers, so it cannot be accumulated.
    """

    name: ClassVar[str] = "flat"
    citation: ClassVar[str] = "Wang et al. 2025, arXiv:2410.11143"
    requires: ClassVar[Requires] = Requires(template=True)
    edition: str = hyperparameter("paper", "which definition of the loss", choices=EDITIONS)
    divergence: str = hyperparameter("total-variation", "the f-divergence", choices=tuple(F_DIVERGENCES))
    padded_length: int = hyperparameter(500, "as-released: T in the denominator rows × (T − 1)", low=2)

    @property
    def is_batch_coupled(self) -> bool:
        return self.edition == "as-released"

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        divergence = F_DIVERGENCES[self.divergence]
        template, forget = answer_logprobs(model, batch.template, batch.forget)
        p_template = (template.exp() * batch.template.scored).sum(-1)  # (B,), sums over answer tokens
        p_forget = (forget.exp() * batch.forget.scored).sum(-1)  # (B,)
        if self.edition == "paper":
            p_template = p_template / batch.template.scored.sum(-1)
            p_forget = p_forget / batch.forget.scored.sum(-1)
            yield Term(flat_loss(p_template, p_forget, divergence).sum(), per="forget rows")
        else:
            longest = max(batch.template.labels.shape[1], batch.forget.labels.shape[1])
            if longest > self.padded_length:
                raise UsageError(
                    f"{self.name}, edition as-released: padded_length = {self.padded_length}, but a row has {longest} "
                    "tokens; set padded_length to the longest row or more"
                )
            positions = len(batch.forget) * (self.padded_length - 1)
            loss = flat_loss(p_template.sum() / positions, p_forget.sum() / positions, divergence)
            yield Term(loss, per="batches")
