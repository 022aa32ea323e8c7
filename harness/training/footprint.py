"""Bytes of a GPU's memory that training takes, by optimiser. Imports no torch.

Of each trained weight: itself, its gradient, and AdamW's two moments. In a pass under autocast, weights in float32 are
held once more in bfloat16 until the backward pass has read them. Activations in bfloat16, of each token and layer: what
norms and attention keep, in multiples of the width, and four states of the feed-forward layer, in multiples of its
inner width; with gradient checkpointing the layer's input alone, and one layer's activations. Logits, at about half of
the tokens, are held as logits, as their gradient, and in float32 while that is made. The numbers are those of
transformers' Llama, counted on fake tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..errors import UsageError

GIB = 2**30


class Held(NamedTuple):
    """Bytes of each trained weight, its gradient and its moments."""

    weight: float
    gradient: float
    moments: float


# 8-bit moments have a scale in float32 for each block of 256.
MOMENTS = 2 * (1 + 4 / 256)
HELD = {
    "adamw": Held(4, 4, 8),
    "adamw-8bit": Held(4, 4, MOMENTS),
    "adamw-bf16": Held(2, 2, MOMENTS),
    "lora": Held(4, 4, 8),
}
"""By the names of ``run.optimiser``."""
LORA_RANK = 16
"""The rank of ``run.optimiser = "lora"`` where a model names none."""
CAST = 2
# Multiples of the width: of weights in float32, in bfloat16, and of frozen ones in float32, whose norms keep less.
WIDTHS_FLOAT, WIDTHS_HALF, WIDTHS_FROZEN = 45, 35, 38
INNER = 8
LOGITS = 12
USUAL_VOCABULARY = 50_000


def training_bytes(
    shape: Mapping[str, float],
    optimiser: str,
    tokens: float = 0.0,
    *,
    rank: int = 0,
    checkpointing: bool = False,
    frozen: float = 0.0,
    processes: int = 1,
) -> float:
    """Bytes that one process holds at most.

    Args:
        shape: sizes of the model: ``parameters``, ``layers``, ``width``; ``inner``, ``vocabulary``, ``key_width`` and
            ``tied`` (1 where the output head is the embedding) where they are known.
        tokens: of all rows of a batch.
        rank: of an adapter, which is trained in place of the weights; 0 trains the weights.
        frozen: number of frozen models beside it, in bfloat16.
        processes: that share the trained states and the batch.
    """
    weights, width, layers = shape["parameters"], shape["width"], shape["layers"]
    inner, vocabulary = shape.get("inner", 4 * width), shape.get("vocabulary", USUAL_VOCABULARY)
    held = HELD[optimiser]
    rank = rank or (LORA_RANK if optimiser == "lora" else 0)
    tokens /= processes
    if rank:
        ends = 4 * width + 2 * (width + shape.get("key_width", width)) + 3 * (width + inner)
        base, states, widths = held.weight * weights, sum(held) * rank * layers * ends, WIDTHS_FROZEN
    else:
        base, states, widths = 0.0, sum(held) * weights, WIDTHS_FLOAT
    if held.weight < 4:
        casts, widths = 0.0, WIDTHS_HALF
    else:
        # What is not trained is cast anew wherever it is read.
        casts = CAST * weights * (1 / layers if rank and checkpointing else 1)
    layer = tokens * (widths * width + INNER * inner)
    kept = held.weight * tokens * width * layers + layer if checkpointing else layer * layers
    gradients = 0.0 if rank else held.gradient * weights
    forward = states - gradients + casts + kept + LOGITS * vocabulary * tokens / 2
    # The gradients of both uses of a tied embedding are added to a third.
    backward = states + (2 * held.gradient * vocabulary * width if shape.get("tied") and not rank else 0.0)
    return base + max(forward, backward) / processes + CAST * frozen * weights


def refuse_unfit(title: str, optimiser: str, available: float, needed: Callable[[str], float]) -> None:
    """Refuse training that a device has no room for, naming the optimisers that fit.

    Args:
        available: bytes of the device's memory.
        needed: bytes by optimiser.

    Raises:
        UsageError: it does not fit.
    """
    if needed(optimiser) <= available:
        return
    fitting = [name for name in HELD if name != optimiser and needed(name) <= available]
    remedy = f"set run.optimiser to {_listed(fitting, needed)}, " if fitting else "take a smaller batch or model, "
    raise UsageError(
        f"{title} needs about {needed(optimiser) / GIB:.0f} GiB of GPU memory with run.optimiser = {optimiser!r}, and "
        f"the device has {available / GIB:.0f}: {remedy}or share it with run.processes"
    )


def _listed(names: Iterable[str], needed: Callable[[str], float]) -> str:
    return " or ".join(f"{name!r} ({needed(name) / GIB:.0f} GiB)" for name in names)
