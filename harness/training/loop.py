"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from .._compat import decayed_names, without_dropout
from ..contracts import Context
from ..engine.memory import in_pieces
from ..engine.numerics import autocast
from ..engine.process_group import processes, rank, summed
from ..errors import Diverged, UsageError
from .loss import Batch, Objective, loss_of
from .optimisers import as_trained, optimiser_of
from .sharding import Sharded

# Losses are read back every so many steps: often enough to stop a diverged run, rarely enough not to wait
# for the device at every step.
CHECK_EVERY = 10
CHECK_AFTER = 5.0
"""Seconds after which a loss is read back on a CPU, where that waits for nothing: who follows a run wants to see it."""


def train(model: Any, recipe: Objective, steps: Iterator[list[Batch]], rows: int, ctx: Context) -> Any:
    """Minimise ``recipe.loss``; the model is trained in place and returned.

    Raises:
        Diverged: a loss stopped being finite.
        UsageError: several processes would train in float16.
    """
    if processes() > 1 and ctx.autocast == "fp16":
        raise UsageError(
            f"dtype = 'float16' with run.processes = {processes()}: losses are scaled and sharded gradients are not "
            "scaled back; use dtype = 'bfloat16', or run.processes = 1"
        )
    model = as_trained(model, ctx.optimiser)
    _set_training(model, recipe)
    sharded = Sharded(model, ctx.device, ctx.autocast) if processes() > 1 else None
    if sharded:
        model = sharded.model
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = optimiser_of(ctx.optimiser, _weight_groups(model), recipe.learning_rate, recipe.weight_decay)
    schedule = _scheduler(optimiser, recipe, rows)
    # Gradients in float16 would underflow: losses are scaled up, and gradients back before a step.
    scaler = torch.amp.GradScaler(ctx.device.type, enabled=ctx.autocast == "fp16")
    pending: list[Tensor] = []
    pieces = 1
    total = _budget(recipe, rows)[1]
    per_epoch = math.ceil(rows / (recipe.batch_size * recipe.accumulation))
    said = time.monotonic()

    def words(step: int) -> str:
        return f"step {step} of {total}, epoch {min(recipe.epochs, (step - 1) // per_epoch + 1)} of {recipe.epochs}"

    for batches in islice(steps, total):
        began = time.process_time()
        totals: dict[str, int] = {}
        for batch in batches:
            for count, number in batch.counts().items():
                totals[count] = totals.get(count, 0) + number
        step_loss, pieces = _gradients(scaler, model, recipe, batches, totals, pieces, ctx)
        scaler.unscale_(optimiser)
        if recipe.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trainable, recipe.max_grad_norm)
        scaler.step(optimiser)
        scaler.update()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        ctx.meter.optimiser_steps += 1
        if ctx.device.type == "cpu":
            ctx.meter.fastest_step = min(ctx.meter.fastest_step or math.inf, time.process_time() - began)
        ctx.meter.tokens += sum(number for count, number in totals.items() if count.endswith(" positions"))
        pending.append(step_loss)
        is_due = ctx.device.type == "cpu" and time.monotonic() - said > CHECK_AFTER
        if len(pending) == CHECK_EVERY or is_due:
            _read(pending, ctx, words)
            said = time.monotonic()
    _read(pending, ctx, words)
    model = sharded.whole() if sharded else model
    model.eval()
    return model


def _gradients(
    scaler: torch.amp.GradScaler,
    model: Any,
    recipe: Objective,
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
            if recipe.is_batch_coupled:
                raise torch.OutOfMemoryError(f"{recipe.name} couples the rows of a batch, which cannot be cut")
            chosen = [half for batch in chosen for half in batch.halves()]
        if more > 1:
            ctx.log(f"out of memory: batches of {len(batches[0])} are cut into {pieces * more}")
        total: Tensor | float = 0.0
        for batch in chosen:
            part, weight = _own_part(batch, recipe)
            # The original model's forward passes round as the trained model's do.
            with autocast(ctx.device, ctx.autocast):
                loss = loss_of(recipe.loss(model, part), totals, recipe.name) * weight
            scaler.scale(loss).backward()
            total = total + loss.detach()
        return summed(torch.as_tensor(total)) / processes(), pieces * more

    # Processes that share a model step together: one cannot try again alone.
    return in_pieces(attempt, ctx.engine.counters) if processes() == 1 else attempt(1)


def _own_part(batch: Batch, recipe: Objective) -> tuple[Batch, float]:
    """What this process computes of a batch, and the factor of its loss: gradients are averaged over processes."""
    if processes() == 1 or recipe.is_batch_coupled:
        return batch, 1.0
    part = batch.share(rank(), processes())
    # With nothing of its own a process still takes part in gathering weights.
    return (part, float(processes())) if part else (batch, 0.0)


def _set_training(model: Any, recipe: Objective) -> None:
    """Dropout is off unless asked for. Checkpointing runs only in training mode, so its dropout is set to 0."""
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train(recipe.dropout or recipe.gradient_checkpointing)
    if recipe.gradient_checkpointing and not recipe.dropout:
        without_dropout(model)


def _read(pending: list[Tensor], ctx: Context, words: Callable[[int], str]) -> None:
    """Bring losses back from the device, keep them, and stop where one is not finite."""
    values = torch.stack(pending).tolist() if pending else []
    first = ctx.meter.optimiser_steps - len(values) + 1
    pending.clear()
    for step, value in enumerate(values, first):
        ctx.meter.losses.append(value)
        if not math.isfinite(value):
            raise Diverged(f"the loss became {value} at optimiser step {step}; a lower learning_rate may help")
    if values:
        ctx.log(f"{words(first + len(values) - 1)}: loss {values[-1]:.6g}")


def _weight_groups(model: Any) -> list[dict[str, Any]]:
    """Trained weights in two groups: those that AdamW decays, and biases and norm weights, which it does not.

    transformers' Trainer, with which all releases train, groups them so.
    """
    trainable = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    decayed = decayed_names(model)
    groups: list[dict[str, Any]] = [
        {"params": [weight for name, weight in trainable if name in decayed]},
        {"params": [weight for name, weight in trainable if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _budget(recipe: Objective, rows: int) -> tuple[int, int]:
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


def _scheduler(optimiser: torch.optim.Optimizer, recipe: Objective, rows: int) -> Any:
    """transformers' schedule of the learning rate: linear warm-up from 0, then the recipe's way down to 0.

    Its ``constant`` has no warm-up; outside of the released editions one is made where the recipe asks for it.
    """
    warmup, total = _budget(recipe, rows)
    name = recipe.schedule
    if name == "constant" and warmup and not recipe.edition.startswith("as-released"):
        name = "constant_with_warmup"
    return get_scheduler(name, optimiser, warmup, total)
