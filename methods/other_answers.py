"""Teaching another answer to forget questions: PO, Mismatch, LLMU.

PO (preference optimisation, IDK): Maini et al. 2024, arXiv:2401.06121, §3.
Mismatch: as described by Liu et al. 2024, arXiv:2406.07933.
LLMU: Yao et al. 2023, arXiv:2310.10683, eq. 4 to 7.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnbench import (
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

from .editions import EDITIONS
from .gradient_ascent import ascent_term, retain_kl_term


@dataclass(frozen=True)
class PreferenceOptimization(LossMethod):
    """Answers forget questions with a refusal, retain questions as before.

    ``paper`` adds two token means. ``as-released`` (tofu, npo, FLAT) takes one token mean over refusals and
    retain answers together, in which long retain answers outweigh short refusals.
    """

    name: ClassVar[str] = "po"
    requires: ClassVar[Requires] = Requires(retain=True, template=True)
    edition: str = hyperparameter("paper", "which definition of the loss", choices=EDITIONS)

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        template, retain = answer_logprobs(model, batch.template, batch.retain)
        if self.edition == "paper":
            yield Term(-template.sum(), per="template tokens")
            yield Term(-retain.sum(), per="retain tokens")
        else:
            yield Term(-template.sum() - retain.sum(), per=("template tokens", "retain tokens"))


@dataclass(frozen=True)
class Mismatch(LossMethod):
    """Answers forget questions with answers to other questions, retain questions as before.

    ``as-released`` is what FLAT's code feeds this branch: the true forget answers, one token mean with the
    retain answers, which is ordinary fine-tuning. Published Mismatch rows look like that.
    """

    name: ClassVar[str] = "mismatch"
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
            yield Term(-mismatch.sum(), per="mismatch tokens")
            yield Term(-retain.sum(), per="retain tokens")
        else:
            forget, retain = answer_logprobs(model, batch.forget, batch.retain)
            yield Term(-forget.sum() - retain.sum(), per=("forget tokens", "retain tokens"))


@dataclass(frozen=True)
class LLMU(LossMethod):
    """Gradient ascent, random answers to forget questions, and KL to the original model on retain rows.

    ``paper`` draws ``random_per_prompt`` answers for each prompt from the retain set (the authors draw them
    from TruthfulQA) and averages KL over answer positions; ``as-released`` (FLAT) takes one refusal and
    averages KL over every position of the padded batch.
    """

    name: ClassVar[str] = "llmu"
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
        yield Term(-other.sum(), per="random tokens", weight=self.random_weight)
        kl = retain_kl_term(model, batch, self.edition)
        yield Term(kl.value, kl.per, weight=self.retain_weight)
