"""NPO: negative preference optimisation. Zhang et al. 2024, eq. 3.

Its variant NPO-RT adds the loss on retain rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench import (
    Batch,
    LossMethod,
    Requires,
    Term,
    all_logits,
    answer_logprobs,
    hyperparameter,
    sequence_logprob,
)

from ._terms import MUSE_EDITIONS, descent_term


def npo_loss(logp: Tensor, logp_original: Tensor, beta: float) -> Tensor:
    """2/β · log(1 + (p / p_original)^β), elementwise: log-probabilities in nats (of rows: (B,)) → above 0."""
    return -2 / beta * F.logsigmoid(-beta * (logp - logp_original))


@dataclass(frozen=True)
class NPO(LossMethod):
    """Pushes forget answers below the original model's likelihood, ever more gently.

    ``as-released-muse`` (muse_bench) compares raw logits at every position and word, labels aside: at the first
    step it pushes all logits down alike, which leaves the distribution as it is.
    """

    name: ClassVar[str] = "npo"
    citation: ClassVar[str] = "Zhang et al. 2024, arXiv:2404.05868"
    requires: ClassVar[Requires] = Requires(original="logprobs")
    edition_requires: ClassVar[Mapping[str, Requires]] = {"as-released-muse": Requires(original="model")}
    edition: str = hyperparameter("paper", "which definition of the loss", choices=MUSE_EDITIONS)
    beta: float = hyperparameter(0.1, "inverse temperature β", above=0.0)

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        if self.edition == "as-released-muse":
            with torch.no_grad():
                original = all_logits(batch.original, batch.forget)
            logits = all_logits(model, batch.forget)
            yield Term(npo_loss(logits, original, self.beta).mean(-1).sum(), per="forget positions")
        else:
            (logp,) = sequence_logprob(model, batch.forget)
            yield Term(npo_loss(logp, batch.forget.logp_original, self.beta).sum(), per="forget rows")


@dataclass(frozen=True)
class NPORetain(NPO):
    """NPO on the forget answers, descent on retain answers."""

    name: ClassVar[str] = "npo-rt"
    requires: ClassVar[Requires] = Requires(retain=True, original="logprobs")
    edition_requires: ClassVar[Mapping[str, Requires]] = {"as-released-muse": Requires(retain=True, original="model")}

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        yield from super().loss(model, batch)
        (retain,) = answer_logprobs(model, batch.retain)
        yield descent_term(retain, per="retain tokens")
