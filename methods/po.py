"""PO: preference optimisation, also called IDK. Maini et al. 2024, §3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnbench import EDITIONS, Batch, LossMethod, Requires, Term, answer_logprobs, hyperparameter

from ._terms import descent_term


@dataclass(frozen=True)
class PreferenceOptimization(LossMethod):
    """Answers forget questions with a refusal, retain questions as before.

    ``paper`` adds two token means. ``as-released`` (tofu, npo, FLAT) takes one token mean over refusals and
    retain answers together, in which long retain answers outweigh short refusals.
    """

    name: ClassVar[str] = "po"
    citation: ClassVar[str] = "Maini et al. 2024, arXiv:2401.06121"
    requires: ClassVar[Requires] = Requires(retain=True, template=True)
    edition: str = hyperparameter("paper", "which definition of the loss", choices=EDITIONS)

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        template, retain = answer_logprobs(model, batch.template, batch.retain)
        if self.edition == "paper":
            yield descent_term(template, per="template tokens")
            yield descent_term(retain, per="retain tokens")
        else:
            yield Term(-template.sum() - retain.sum(), per=("template tokens", "retain tokens"))
