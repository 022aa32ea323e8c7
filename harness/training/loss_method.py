"""``LossMethod``: the base of methods that are a loss."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..contracts import Context, UnlearningData
from ..data.encoder import EncodedRow
from ..domain import Example, Requires
from ..engine.logprobs import answer_logprobs
from ..engine.numerics import autocast
from .loop import train
from .loss import Batch, Objective, Term

SampledRows = Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class LossMethod(Objective):
    """Base of methods that descend a loss: a subclass writes ``loss``, and ``draw`` where it needs other rows."""

    requires: ClassVar[Requires] = Requires()
    edition_requires: ClassVar[Mapping[str, Requires]] = {}
    """What an edition needs where that differs from ``requires``."""

    @property
    def needs(self) -> Requires:
        """What this instance may touch."""
        return self.edition_requires.get(self.edition, self.requires)

    def draw(self, data: UnlearningData, row: Example, rng: random.Random) -> SampledRows:
        """The rows that stand for one forget row in one epoch, by part; called for all before training starts.

        The default follows ``requires``: a retain row drawn uniformly, and a template answer to the same prompt.
        """
        parts: dict[str, Sequence[Example]] = {"forget": [row]}
        if self.needs.template:
            parts["template"] = [row.answered(rng.choice(data.templates))]
        if self.needs.retain:
            parts["retain"] = [rng.choice(data.retain)]
        return parts

    @property
    def padded_to(self) -> int:
        """Pad every batch to this many tokens; 0 pads to the longest row."""
        return 0

    def unlearn(self, model: Any, tokenizer: Any, data: UnlearningData, ctx: Context) -> Any:
        """Minimise the loss over the forget set."""
        rng = ctx.rng("draw")
        drawn = [[self.draw(data, row, rng) for row in data.forget] for _ in range(self.epochs)]
        encoded = _encoded(drawn, data)
        original = ctx.original if self.needs.original == "model" else None
        logp = self._original_logprobs(model, encoded, ctx) if self.needs.original == "logprobs" else {}
        return train(model, self, _batches(self, encoded, logp, original, ctx), len(data.forget), ctx)

    def _original_logprobs(
        self, model: Any, epochs: list[list[EncodedSample]], ctx: Context
    ) -> dict[EncodedRow, float]:
        """Before the first step the model is the original model, so it scores its own reference values."""
        rows = {row for epoch in epochs for draw in epoch for part in draw if part != "retain" for row in draw[part]}
        unique = sorted(rows, key=lambda row: row.ids)
        with autocast(ctx.device, ctx.autocast):
            found = ctx.engine.score(model, unique)
        return {row: -scored.nll for row, scored in zip(unique, found, strict=True)}


@dataclass(frozen=True)
class FineTune(LossMethod):
    """Ordinary fine-tuning on the answers: how benchmarks make their reference models."""

    name: ClassVar[str] = "fine-tune"

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        (logp,) = answer_logprobs(model, batch.forget)
        yield Term(-logp.sum(), per="forget tokens")


EncodedSample = dict[str, list[EncodedRow]]


def _encoded(drawn: list[list[SampledRows]], data: UnlearningData) -> list[list[EncodedSample]]:
    """Tokens of every drawn row; each distinct (prompt, answer) is tokenised once."""
    examples = {_text(row): row for epoch in drawn for draw in epoch for part in draw.values() for row in part}
    tokens = dict(zip(examples, data.encoder.encode(list(examples.values())), strict=True))
    return [
        [{name: [tokens[_text(row)] for row in rows] for name, rows in draw.items()} for draw in epoch]
        for epoch in drawn
    ]


def _text(row: Example) -> Example:
    """What decides a row's tokens: all but its place."""
    return replace(row, index=0)


def _batches(
    recipe: LossMethod,
    epochs: list[list[EncodedSample]],
    logp: Mapping[EncodedRow, float],
    original: Any,
    ctx: Context,
) -> Iterator[list[Batch]]:
    """One list of batches per optimiser step, in seeded order."""
    order = ctx.rng("order")
    for epoch in epochs:
        places = list(range(len(epoch)))
        order.shuffle(places)
        window = recipe.batch_size * recipe.accumulation
        for begin in range(0, len(places), window):
            chosen = places[begin : begin + window]
            yield [
                _batch([epoch[place] for place in chosen[at : at + recipe.batch_size]], recipe, logp, original, ctx)
                for at in range(0, len(chosen), recipe.batch_size)
            ]


def _batch(
    draws: list[EncodedSample], recipe: LossMethod, logp: Mapping[EncodedRow, float], original: Any, ctx: Context
) -> Batch:
    parts = {}
    for name in draws[0]:
        encoded = [row for draw in draws for row in draw[name]]
        rows = ctx.engine.collate(encoded, recipe.padded_to)
        if logp and name != "retain":
            rows.logp_original = torch.tensor([logp[row] for row in encoded], device=ctx.device)
        parts[name] = rows
    return Batch(parts, original)
