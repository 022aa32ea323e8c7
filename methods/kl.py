"""KL: gradient ascent with a KL term on the retain set. Maini et al. 2024, §3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnbench import Batch, LossMethod, Requires, Term, answer_logprobs, hyperparameter

from ._terms import MUSE_EDITIONS, ascent_term, retain_kl_term


@dataclass(frozen=True)
class KLMinimization(LossMethod):
    """Gradient ascent on the forget answers, staying near the original model on retain rows.

    The editions differ in what the KL term is and is averaged over: see ``retain_kl_term``.
    """

    name: ClassVar[str] = "kl"
    citation: ClassVar[str] = "Maini et al. 2024, arXiv:2401.06121"
    requires: ClassVar[Requires] = Requires(retain=True, original="model")
    edition: str = hyperparameter("paper", "which definition of the loss", choices=MUSE_EDITIONS)
    padded_length: int = hyperparameter(500, "as-released: rows are padded to this many tokens", low=0)

    @property
    def padded_to(self) -> int:
        return self.padded_length if self.edition == "as-released" else 0

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        (forget,) = answer_logprobs(model, batch.forget)
        yield ascent_term(forget)
        yield retain_kl_term(model, batch, self.edition)
