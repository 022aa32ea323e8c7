"""Relearning: a few steps of fine-tuning bring back what was only hidden. Hu et al. 2025, arXiv:2406.13356."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnbench import (
    Attack,
    AttackData,
    Context,
    Example,
    FineTune,
    Requires,
    Touches,
    UnlearningData,
    hyperparameter,
)


@dataclass(frozen=True)
class Relearn(Attack):
    """Fine-tunes for a few steps on forget rows that are not asked about afterwards."""

    name: ClassVar[str] = "relearn"
    requires: ClassVar[Touches] = Touches(forget=True)
    citation: ClassVar[str] = "Hu et al. 2025, arXiv:2406.13356"
    steps: int = hyperparameter(10, "optimiser steps", low=1)
    rows: int = hyperparameter(20, "rows to learn from, a quarter of the forget set at most", low=1)
    learning_rate: float = hyperparameter(1e-4, "of AdamW, the same in every step", above=0.0)
    batch_size: int = hyperparameter(4, "rows of a step", low=1)

    def change(self, model: Any, data: AttackData, ctx: Context) -> Any:
        rows = self.learned(data)
        # One epoch of so many rows in turn has exactly the steps asked for.
        turns = [rows[place % len(rows)] for place in range(self.steps * self.batch_size)]
        recipe = FineTune(
            epochs=1,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            schedule="constant",
            warmup_epochs=0.0,
        )
        given = UnlearningData(self.name, Requires(), data.encoder, turns, (), ())
        return recipe.unlearn(model, data.encoder.tokenizer, given, ctx)

    def learned(self, data: AttackData) -> tuple[Example, ...]:
        """The rows to learn from."""
        return data.draw_forget(self.rows)


@dataclass(frozen=True)
class RelearnRetain(Relearn):
    """Fine-tunes for a few steps on retain rows: harmless text can bring knowledge back too."""

    name: ClassVar[str] = "relearn-retain"
    requires: ClassVar[Touches] = Touches(retain=True)

    def learned(self, data: AttackData) -> tuple[Example, ...]:
        return data.draw_retain(self.rows)


@dataclass(frozen=True)
class RelearnText(Relearn):
    """Fine-tunes for a few steps on text that has nothing to do with the benchmark."""

    name: ClassVar[str] = "relearn-text"
    requires: ClassVar[Touches] = Touches(text=True)

    def learned(self, data: AttackData) -> tuple[Example, ...]:
        return data.draw_text(self.rows)
