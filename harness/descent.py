"""The one training loop, and ``Descent``: the base of methods that are a loss.

A loss is written as terms: sums, each with the name of what it is averaged over. The loop divides by the counts
of the whole optimiser batch, so batch 4 × accumulation 1 and batch 1 × accumulation 4 give the same weights.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from .batches import Encoded, Rows, collate
from .context import PRECISIONS, Context
from .domain import Example, Requires, UnlearningData
from .errors import Diverged, PluginError
from .hyperparameters import Training
from .logprobs import answer_logprobs
from .memory import in_pieces
from .scoring import likelihoods
from .sharding import Sharded, processes, rank, summed

# Losses are read back every so many steps: often enough to stop a diverged run, rarely enough not to wait
# for the device at every step.
CHECK_EVERY = 10


@dataclass(frozen=True)
class Term:
    """One summand of a loss.

    Args:
        value: scalar, a **sum** over what ``per`` counts.
        per: what the sum is averaged over: ``"<part> tokens"`` (answer tokens), ``"<part> rows"``,
            ``"<part> positions"`` (padded length × rows), ``"batches"`` (forward passes), or several of them,
            whose counts are added.
        weight: coefficient of the averaged term.
    """

    value: Tensor
    per: str | tuple[str, ...]
    weight: float = 1.0


class Batch:
    """One forward pass: a Rows per part, as attributes (``batch.forget``, ``batch.retain``, …).

    ``original`` is the frozen original model where the method declared ``Requires(original="model")``.
    """

    def __init__(self, parts: Mapping[str, Rows], original: Any = None) -> None:
        self.parts = dict(parts)
        self.original = original

    def __len__(self) -> int:
        return min(map(len, self.parts.values()))

    def __getattr__(self, part: str) -> Rows:
        try:
            return self.__dict__["parts"][part]  # type: ignore[no-any-return]
        except KeyError:
            drawn = ", ".join(self.__dict__.get("parts", {}))
            raise AttributeError(f"this batch has no part {part!r} (drawn: {drawn})") from None

    def halves(self) -> list[Batch]:
        """The batch in two, each with half of what was drawn for it; itself alone where one row was drawn."""
        return [part for number in range(2) if (part := self.share(number, 2))]

    def share(self, number: int, count: int) -> Batch | None:
        """The part of process ``number`` of ``count``, by rows drawn; None where there are not enough.

        Shares have every row of every part once, and rows drawn together stay together.
        """
        drawn = len(self)
        first, end = drawn * number // count, drawn * (number + 1) // count
        if first == end:
            return None
        return Batch(
            {
                name: rows.between(len(rows) * first // drawn, len(rows) * end // drawn)
                for name, rows in self.parts.items()
            },
            self.original,
        )

    def counts(self) -> dict[str, int]:
        """What terms can be averaged over."""
        found = {"batches": 1}
        for name, rows in self.parts.items():
            found[f"{name} rows"] = len(rows)
            found[f"{name} tokens"] = int(rows.scored.sum())
            found[f"{name} positions"] = rows.labels.numel()
        return found


Drawn = Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class Descent(Training):
    """Base of methods that descend a loss: a subclass writes ``loss``, and ``draw`` where it needs other rows."""

    edition: str = field(default="paper", metadata={"summary": "which definition of the loss"})

    name: ClassVar[str]
    requires: ClassVar[Requires] = Requires()
    edition_requires: ClassVar[Mapping[str, Requires]] = {}
    """What an edition needs where that differs from ``requires``."""

    @property
    def needs(self) -> Requires:
        """What this instance may touch."""
        return self.edition_requires.get(self.edition, self.requires)

    def loss(self, model: Any, batch: Batch) -> Iterable[Term]:
        """The terms of the loss on one batch."""
        raise NotImplementedError

    def draw(self, data: UnlearningData, row: Example, rng: random.Random) -> Drawn:
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
    def couples_rows(self) -> bool:
        """True where the loss mixes the rows of a forward pass, so that it is another with other batches."""
        return False

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

    def _original_logprobs(self, model: Any, epochs: list[list[EncodedDraw]], ctx: Context) -> dict[Encoded, float]:
        """Before the first step the model is the original model, so it scores its own reference values."""
        rows = {row for epoch in epochs for draw in epoch for part in draw if part != "retain" for row in draw[part]}
        unique = sorted(rows, key=lambda row: row.ids)
        dtype = PRECISIONS.get(ctx.autocast)
        with torch.autocast(ctx.device.type, dtype, enabled=dtype is not None):
            found = likelihoods(model, unique, ctx.device)
        return {row: -scored.nll for row, scored in zip(unique, found, strict=True)}


@dataclass(frozen=True)
class FineTune(Descent):
    """Ordinary fine-tuning on the answers: how benchmarks make their reference models."""

    name: ClassVar[str] = "fine-tune"

    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:
        (logp,) = answer_logprobs(model, batch.forget)
        yield Term(-logp.sum(), per="forget tokens")


EncodedDraw = dict[str, list[Encoded]]


def _encoded(drawn: list[list[Drawn]], data: UnlearningData) -> list[list[EncodedDraw]]:
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
    recipe: Descent,
    epochs: list[list[EncodedDraw]],
    logp: Mapping[Encoded, float],
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
    draws: list[EncodedDraw], recipe: Descent, logp: Mapping[Encoded, float], original: Any, ctx: Context
) -> Batch:
    parts = {}
    for name in draws[0]:
        encoded = [row for draw in draws for row in draw[name]]
        rows = collate(encoded, ctx.device, recipe.padded_to)
        if logp and name != "retain":
            rows.logp_original = torch.tensor([logp[row] for row in encoded], device=ctx.device)
        parts[name] = rows
    return Batch(parts, original)


def loss_of(terms: Iterable[Term], counts: Mapping[str, int], name: str) -> Tensor:
    """The weighted sum of the averaged terms.

    Raises:
        PluginError: a term names a count that the batch does not have, or is not a scalar.
    """
    total: Tensor | None = None
    for term in terms:
        named = (term.per,) if isinstance(term.per, str) else term.per
        unknown = [count for count in named if count not in counts]
        if unknown or not isinstance(term.value, Tensor) or term.value.ndim:
            fault = f"names {unknown[0]!r}" if unknown else "is not a scalar tensor"
            raise PluginError(name, f"a loss term {fault}; counts are: {', '.join(sorted(counts))}")
        value = term.weight * term.value / sum(counts[count] for count in named)
        total = value if total is None else total + value
    if total is None:
        raise PluginError(name, "loss yields no term")
    return total


def train(model: Any, recipe: Descent, steps: Iterator[list[Batch]], rows: int, ctx: Context) -> Any:
    """Minimise ``recipe.loss``; the model is trained in place and returned.

    Raises:
        Diverged: a loss stopped being finite.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != ctx.autocast:
        # Accelerate keeps one precision for a process; the next run may ask for another.
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=ctx.autocast, cpu=ctx.device.type == "cpu", gradient_accumulation_steps=1)
    _set_training(model, recipe)
    sharded = Sharded(model, ctx.device) if processes() > 1 else None
    if sharded:
        model = sharded.model
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(
        _decayed(model, recipe), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=_fused(trainable)
    )
    warmup, total = _budget(recipe, rows)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _schedule(recipe, warmup, total))
    if sharded is None:
        model, optimiser = accelerator.prepare(model, optimiser)
    pending: list[Tensor] = []
    pieces = 1
    for batches in islice(steps, total):
        began = time.process_time()
        totals: dict[str, int] = {}
        for batch in batches:
            for count, number in batch.counts().items():
                totals[count] = totals.get(count, 0) + number
        step_loss, pieces = _gradients(accelerator, model, recipe, batches, totals, pieces, ctx)
        if recipe.max_grad_norm:
            accelerator.clip_grad_norm_(trainable, recipe.max_grad_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        ctx.meter.optimiser_steps += 1
        if ctx.device.type == "cpu":
            ctx.meter.fastest_step = min(ctx.meter.fastest_step or math.inf, time.process_time() - began)
        ctx.meter.tokens += sum(number for count, number in totals.items() if count.endswith(" positions"))
        pending.append(step_loss)
        if len(pending) == CHECK_EVERY:
            _read(pending, ctx)
    _read(pending, ctx)
    model = sharded.whole() if sharded else accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.eval()
    return model


def _gradients(
    accelerator: Accelerator,
    model: Any,
    recipe: Descent,
    batches: Sequence[Batch],
    totals: Mapping[str, int],
    pieces: int,
    ctx: Context,
) -> tuple[Tensor, int]:
    """Accumulate the gradients of one optimiser step; its loss, and in how many pieces batches had to be cut.

    Terms are sums over counts of the whole step, so that a batch in pieces has the same gradient.

    Raises:
        torch.OutOfMemoryError: single rows are too large, or the loss couples those of a batch.
    """

    def attempt(more: int) -> tuple[Tensor, int]:
        for weight in model.parameters():
            weight.grad = None
        chosen = list(batches)
        for _ in range((pieces * more).bit_length() - 1):
            if recipe.couples_rows:
                raise torch.OutOfMemoryError(f"{recipe.name} couples the rows of a batch, which cannot be cut")
            chosen = [half for batch in chosen for half in batch.halves()]
        if more > 1:
            ctx.log(f"out of memory: batches of {len(batches[0])} are cut into {pieces * more}")
        total: Tensor | float = 0.0
        for batch in chosen:
            part, weight = _own_part(batch, recipe)
            # The original model's forward passes round as the trained model's do.
            with accelerator.autocast():
                loss = loss_of(recipe.loss(model, part), totals, recipe.name) * weight
            accelerator.backward(loss)
            total = total + loss.detach()
        return summed(torch.as_tensor(total)) / processes(), pieces * more

    # Processes that share a model step together: one cannot try again alone.
    return in_pieces(attempt) if processes() == 1 else attempt(1)


def _own_part(batch: Batch, recipe: Descent) -> tuple[Batch, float]:
    """What this process computes of a batch, and the factor of its loss: gradients are averaged over processes."""
    if processes() == 1 or recipe.couples_rows:
        return batch, 1.0
    part = batch.share(rank(), processes())
    # With nothing of its own a process still takes part in gathering weights.
    return (part, float(processes())) if part else (batch, 0.0)


def _set_training(model: Any, recipe: Descent) -> None:
    """Dropout is off unless asked for. Checkpointing runs only in training mode, so its dropout is set to 0."""
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train(recipe.dropout or recipe.gradient_checkpointing)
    if recipe.gradient_checkpointing and not recipe.dropout:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            # Some models call functional dropout with a rate that they keep as an attribute.
            for name in [name for name in vars(module) if name.endswith(("dropout", "pdrop", "layerdrop"))]:
                if isinstance(getattr(module, name), float):
                    setattr(module, name, 0.0)


def _fused(weights: list[Tensor]) -> bool:
    return all(weight.device.type in ("cpu", "cuda") and weight.is_floating_point() for weight in weights)


def _read(pending: list[Tensor], ctx: Context) -> None:
    """Bring losses back from the device, keep them, and stop where one is not finite."""
    values = [float(loss) for loss in pending]
    first = ctx.meter.optimiser_steps - len(values) + 1
    pending.clear()
    for step, value in enumerate(values, first):
        ctx.meter.losses.append(value)
        if not math.isfinite(value):
            raise Diverged(f"the loss became {value} at optimiser step {step}; a lower learning_rate may help")
    if values:
        ctx.log(f"step {first + len(values) - 1}: loss {values[-1]:.6g}")


def _as_trainer(recipe: Descent) -> bool:
    """Whether steps, warm-up and decay are those of transformers' Trainer, with which all releases train."""
    return recipe.edition.startswith("as-released")


# Names of weights that the Trainer does not decay, and of modules whose weights it does not.
UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def _decayed(model: Any, recipe: Descent) -> list[dict[str, Any]]:
    """Weights in groups by their decay: all alike, or as released norms and biases without."""
    trainable = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if not _as_trainer(recipe):
        return [{"params": [weight for _, weight in trainable]}]
    norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm))
    kept = [UNDECAYED.search(name.lower()) is None and not name.startswith(norms) for name, _ in trainable]
    groups: list[dict[str, Any]] = [
        {"params": [weight for (_, weight), keep in zip(trainable, kept, strict=True) if keep]},
        {
            "params": [weight for (_, weight), keep in zip(trainable, kept, strict=True) if not keep],
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]


def _budget(recipe: Descent, rows: int) -> tuple[int, int]:
    """Optimiser steps of warm-up and of the whole run.

    Every epoch takes all rows. As released (locuslab/tofu ``forget.py``, and FLAT's) the run ends after as many steps
    as all rows of all epochs fill, and warms up for one at least.
    """
    window = recipe.batch_size * recipe.accumulation
    if recipe.edition == "as-released":
        total = min(max(1, recipe.epochs * rows // window), recipe.epochs * math.ceil(rows / window))
        return (max(1, round(recipe.warmup_epochs * (rows // window))) if recipe.warmup_epochs else 0), total
    per_epoch = math.ceil(rows / window)
    total = per_epoch * recipe.epochs
    return min(round(recipe.warmup_epochs * per_epoch), max(total - 1, 0)), total


def _schedule(recipe: Descent, warmup: int, total: int) -> Any:
    """Factor of the peak learning rate at a step: linear warm-up, then the recipe's schedule down to 0.

    As released the warm-up begins at 0, as transformers' does: the first step changes nothing.
    """
    first = 0 if _as_trainer(recipe) else 1

    def factor(step: int) -> float:
        if recipe.schedule == "constant" and _as_trainer(recipe):
            return 1.0
        if step < warmup:
            return (step + first) / (warmup + first)
        done = (step - warmup) / max(total - warmup, 1)
        if recipe.schedule == "constant":
            return 1.0
        return max(0.0, 1 - done) if recipe.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * min(done, 1)))

    return factor
