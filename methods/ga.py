"""GA: gradient ascent. Jang et al. 2023."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnbench import EDITIONS, Batch, LossMethod, Term, answer_logprobs, hyperparameter

from ._terms import ascent_term


@dataclass(frozen=True)
class GradientAscent(LossMethod):
    """Raises the loss on the forget answers, without bound."""

    name: ClassVar[str] = "ga"
    citation: ClassVar[str] = "Jang et al. 2023, arXiv:2210.01504"
    edition: str = hyperparameter("paper", "which definition of the loss", choices=EDITIONS)

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        (forget,) = answer_logprobs(model, batch.forget)
        yield ascent_term(forget)
