"""GD: gradient difference. Liu et al. 2022."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnbench import EDITIONS, Batch, LossMethod, Requires, Term, answer_logprobs, hyperparameter

from ._terms import ascent_term, descent_term


@dataclass(frozen=True)
class GradientDifference(LossMethod):
    """Gradient ascent on the forget answers, descent on retain answers."""

    name: ClassVar[str] = "gd"
    citation: ClassVar[str] = "Liu et al. 2022, arXiv:2203.12817"
    requires: ClassVar[Requires] = Requires(retain=True)
    edition: str = hyperparameter("paper", "which definition of the loss", choices=EDITIONS)

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        forget, retain = answer_logprobs(model, batch.forget, batch.retain)
        yield ascent_term(forget)
        yield descent_term(retain, per="retain tokens")
