"""Logits to log-probabilities of tokens, and where in a pass logits are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._compat import unpacked_rows, without_cache
from .lm_head import capture_head_input, replace_head_input


def widened(logits: Tensor) -> Tensor:
    """Logits in at least float32, for arithmetic that half precision would spoil."""
    return logits if logits.dtype == torch.float64 else logits.float()


def token_logprobs_of(logits: Tensor, targets: Tensor, places: Tensor | None = None) -> Tensor:
    """Log-probabilities of tokens, in nats, computed in at least float32.

    Args:
        logits: (M, V).
        targets: (P,) token ids.
        places: (P,) the row of ``logits`` that predicts each of them; without it P = M and each has its own.
    """
    if places is None:
        places = torch.arange(len(targets), device=targets.device)
    found: Tensor = _PickedLogprobs.apply(logits, targets, places)  # type: ignore[no-untyped-call]
    return found


def is_argmax(logits: Tensor, targets: Tensor, places: Tensor) -> Tensor:
    """(P,) whether a token is the one most likely, and alone in that; arguments as for ``token_logprobs_of``."""
    top, alone = [], []
    for block in logits.split(rows_at_once(logits)):
        highest = block.amax(-1, keepdim=True)
        top.append(highest[:, 0])
        alone.append((block == highest).sum(-1) == 1)
    return (logits[places, targets] == torch.cat(top)[places]) & torch.cat(alone)[places]


def moments_of(logits: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """(P,) mean and variance of log-probabilities (nats) over the vocabulary, by the model's own probabilities."""
    means, variances = [], []
    for block in logits.split(rows_at_once(logits)):
        logp = widened(block).log_softmax(-1)
        chances = logp.exp()
        mean = (chances * logp).sum(-1)
        means.append(mean)
        variances.append((chances * (logp - mean[:, None]) ** 2).sum(-1))
    return torch.cat(means)[places], torch.cat(variances)[places]


class _PickedLogprobs(torch.autograd.Function):
    """Rows of logits are normalised a few at a time, so that what is computed of a row stays in a CPU's cache, and no
    second block of logits in float32 is ever made."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, places: Tensor) -> Tensor:
        normalisers = torch.cat([widened(block).logsumexp(-1) for block in logits.split(rows_at_once(logits))])  # (M,)
        ctx.save_for_backward(logits, normalisers, targets, places)
        return widened(logits[places, targets]) - normalisers[places]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # d log p(target) / d logits = 1 at the target − softmax
        logits, normalisers, targets, places = ctx.saved_tensors
        weights = torch.zeros_like(normalisers).index_add_(0, places, gradient)  # (M,)
        found = torch.empty_like(logits)
        size = rows_at_once(logits)
        for into, block, normaliser, weight in zip(
            found.split(size), logits.split(size), normalisers.split(size), weights.split(size), strict=True
        ):
            into.copy_((widened(block) - normaliser[:, None]).exp_().mul_(-weight[:, None]))
        return found.index_put_((places, targets), gradient.to(found.dtype), accumulate=True), None, None


def rows_at_once(logits: Tensor) -> int:
    """Rows of logits normalised at a time: on a CPU few, so that what is computed of them stays in its cache."""
    return 16 if logits.device.type == "cpu" else 4096


def attention_dtype(model: Any, device: torch.device) -> torch.dtype:
    """The type in which a model's attention scores are computed here."""
    found: torch.dtype = (
        torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.dtype
    )
    return found


def logits_at(model: Any, inputs: Mapping[str, Tensor], where: Tensor, narrow: bool) -> Tensor:
    """(M, V) logits at M of the B·T positions, numbered row after row."""
    if not narrow:
        return _at(whole_logits(model, inputs), where)
    with replace_head_input(model, lambda states: _at(states, where).unsqueeze(0)):
        return whole_logits(model, inputs)[0]


def _at(states: Tensor, where: Tensor) -> Tensor:
    """(B, T, D) → (M, D), without a wait for how many there are, as a mask would need one."""
    return states.flatten(0, 1).index_select(0, where)


def whole_logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, T, V) logits of a pass of which nothing is kept: keys and values that nobody reads take gigabytes."""
    with unpacked_rows():
        found: Tensor = model(**inputs, **without_cache(model)).logits
    return found


def states_at(model: Any, inputs: Mapping[str, Tensor], where: Tensor) -> Tensor:
    """(M, D) what the output head would read at M of the B·T positions, numbered row after row."""
    with capture_head_input(model) as seen, unpacked_rows():
        model(**inputs, **without_cache(model))
    return _at(seen[0], where)


PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Mixed precisions by accelerate's names: float32 weights, forward passes in the compute type."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Forward passes within this context are of a precision named as in ``PRECISIONS``; any other name is full."""
    dtype = PRECISIONS.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def cast(model: Any, dtype: torch.dtype) -> Any:
    """The model with its weights in another precision, and its buffers in their own.

    ``Module.to`` would round buffers too. Rotary frequencies in bfloat16 turn a position by up to 0.4 % of its angle:
    at position 2,000 that is several radians.
    """
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)
    return model
