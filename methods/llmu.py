"""LLMU: large language model unlearning. Yao et al. 2023, eq. 4 to 7."""

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

from ._terms import ascent_term, descent_term, retain_kl_term


@dataclass(frozen=True)
class LLMU(LossMethod):
    """Gradient ascent, random answers to forget questions, and KL to the original model on retain rows.

    ``paper`` draws ``random_per_prompt`` answers for each prompt from the retain set (the authors draw them
    from TruthfulQA) and averages KL over answer positions; ``as-released`` (FLAT) takes one refusal and
    averages KL over every position of the padded batch.
    """

    name: ClassVar[str] = "llmu"
    citation: ClassVar[str] = "Yao et al. 2023, arXiv:2310.10683"
    requires: ClassVar[Requires] = Requires(retain=True, template=True, original="model")
    edition: str = hyperparameter("paper", "which definition of the loss", choices=EDITIONS)
    forget_weight: float = hyperparameter(0.5, "coefficient of gradient ascent", low=0.0)
    random_weight: float = hyperparameter(1.0, "coefficient of the random answers", low=0.0)
    retain_weight: float = hyperparameter(1.0, "coefficient of KL on retain rows", low=0.0)
    random_answers: str = hyperparameter("retain", "where answers are drawn", choices=("retain", "template"))
    random_per_prompt: int = hyperparameter(5, "random answers to each forget prompt", low=1)
    padded_length: int = hyperparameter(500, "as-released: rows are padded to this many tokens", low=0)

    @property
    def padded_to(self) -> int:
        return self.padded_length if self.edition == "as-released" else 0

    def draw(self, data: UnlearningData, row: Example, rng: random.Random) -> SampledRows:
        released = self.edition == "as-released"
        if released or self.random_answers == "template":
            pool = list(data.templates)
        else:
            pool = [other.answer for other in data.retain]
        answers = [rng.choice(pool) for _ in range(1 if released else self.random_per_prompt)]
        return {
            "forget": [row],
            "retain": [rng.choice(data.retain)],
            "random": [row.answered(answer) for answer in answers],
        }

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        forget, other = answer_logprobs(model, batch.forget, batch.random)
        yield ascent_term(forget, weight=self.forget_weight)
        yield descent_term(other, per="random tokens", weight=self.random_weight)
        yield retain_kl_term(model, batch, self.edition, weight=self.retain_weight)
