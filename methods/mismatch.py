"""Mismatch: answers that belong to other questions. Described by Liu et al. 2024."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnbench import (
    EDITIONS,
    Batch,
    Example,
    LossMethod,
    Requires,
    SampledRows,
    Term,
    UnlearningData,
    answer_logprobs,
    hyperparameter,
)

from ._terms import descent_term


@dataclass(frozen=True)
class Mismatch(LossMethod):
    """Answers forget questions with answers to other questions, retain questions as before.

    ``as-released`` is what FLAT's code feeds this branch: the true forget answers, one token mean with the
    retain answers, which is ordinary fine-tuning. Published Mismatch rows look like that.
    """

    name: ClassVar[str] = "mismatch"
    citation: ClassVar[str] = "Liu et al. 2024, arXiv:2406.07933"
    requires: ClassVar[Requires] = Requires(retain=True)
    edition: str = hyperparameter("paper", "which definition of the loss", choices=EDITIONS)

    def draw(self, data: UnlearningData, row: Example, rng: random.Random) -> SampledRows:
        drawn = super().draw(data, row, rng)
        if self.edition != "paper":
            return drawn
        return {**drawn, "mismatch": [row.answered(rng.choice(data.retain).answer)]}

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        if self.edition == "paper":
            mismatch, retain = answer_logprobs(model, batch.mismatch, batch.retain)
            yield descent_term(mismatch, per="mismatch tokens")
            yield descent_term(retain, per="retain tokens")
        else:
            forget, retain = answer_logprobs(model, batch.forget, batch.retain)
            yield Term(-forget.sum() - retain.sum(), per=("forget tokens", "retain tokens"))
