"""Which ways of computing suit a model: those that give the values that it gives for each row alone.

The engine puts rows of one prompt through a model as a tree, pads other rows, and takes rows one by one where a model
suits neither. Models treat padding, positions, windows and state differently, and their configurations do not say
everything. So the engine tries a way out on the rows at hand, in their precision and on their device, before it uses
the way for longer rows, wider trees or more padding than before. The record says which ways were taken (``paths``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .batch import TokenBatch

# Rotary frequencies that depend on the longest position of a batch, beyond the length that they were trained with.
SWITCHING = ("dynamic", "longrope")


@dataclass
class TriedWay:
    """A way of computing, and the longest rows and the most padding on which it was found to suit."""

    fits: bool = True
    width: int = 0
    padding: int = 0

    def covers(self, width: int, padding: int) -> bool:
        """Whether the way needs no further trial: it never suits, or it suited rows at least as long and as padded."""
        return not self.fits or (width <= self.width and padding <= self.padding)

    def found(self, fits: bool, width: int, padding: int) -> bool:
        """Note what a trial found."""
        self.fits = self.fits and fits
        self.width, self.padding = max(self.width, width), max(self.padding, padding)
        return self.fits


@dataclass
class Capabilities:
    """What is known of a model in one precision on one device.

    ``narrows``: the output head may be applied at some positions alone. ``head``: logits are what the output head
    alone makes of the last states, on a CPU. ``longest``, ``tree_longest``: tokens that rows of a batch, and of a tree,
    may have. ``positions``: tokens that the model has learned positions for. ``sharded``: its weights are spread over
    several processes, which must run the same passes: padded rows alone, tried once.

    ``unmasked``: padding on the right changes nothing before it without a mask too. Asked on a GPU alone, where
    attention is faster without a mask, and the host need not look whether one hides anything.

    ``repeats``: a CUDA graph of a decoding step writes what the model writes; None where that was not tried.

    The others are ways of computing: of scoring and training, of generating in a batch with and without a shared
    beginning, and of generating a row alone with the model's own cache.
    """

    narrows: bool
    head: bool
    longest: int
    tree_longest: int
    sharded: bool = False
    positions: int = 2**31
    unmasked: bool = False
    trees: TriedWay = field(default_factory=TriedWay)
    padded: TriedWay = field(default_factory=TriedWay)
    batched: TriedWay = field(default_factory=TriedWay)
    shared: TriedWay = field(default_factory=TriedWay)
    cached: TriedWay = field(default_factory=TriedWay)
    repeats: bool | None = None

    def read(self, width: int) -> int:
        """How many of ``width`` tokens the model reads. The last predicts nothing, and may lie beyond the positions."""
        return width - 1 if width == self.positions + 1 else width

    def inputs(self, rows: TokenBatch) -> dict[str, Tensor]:
        """What the model is called with for padded rows."""
        return {"input_ids": rows.input_ids} if self.unmasked else rows.inputs

    def reading(self, rows: TokenBatch) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs for rows, and (N,) the places b·T + t of their positions that predict an answer token."""
        read = self.read(rows.labels.shape[1])
        return {name: part[:, :read] for name, part in self.inputs(rows).items()}, rows.predicting(read)

    def known(self, way: TriedWay, width: int, padding: int) -> bool:
        """Whether a way need not be tried again."""
        return way.covers(width, padding) or (self.sharded and way.width > 0)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode and take no gradients within this context."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was)


def text_config(model: Any) -> Any:
    """The configuration of a model's language part, where it has others."""
    return model.config.get_text_config()


def vocabulary_of(model: Any) -> int:
    """Tokens that a model has embeddings of."""
    return int(model.get_input_embeddings().num_embeddings)


def exact(model: Any, device: torch.device) -> bool:
    """Whether a model computes in full precision here."""
    return model.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(device.type)


def longest_row(model: Any) -> int:
    """Tokens that rows of a batch may have; beyond them this model's positions depend on the other rows."""
    config = text_config(model)
    rope = _rotary(config)
    each = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]
    lengths = [
        part.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for part in each
        if part.get("rope_type", part.get("type")) in SWITCHING
    ]
    return min(lengths, default=2**31)


def learned_positions(model: Any) -> int:
    """Tokens that a model has learned positions for; rotary positions have no end."""
    config = text_config(model)
    learned = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 0
    # XLNet, whose positions are relative, says -1.
    return 2**31 if _rotary(config) or learned < 1 else int(learned)


def _rotary(config: Any) -> Mapping[str, Any]:
    """How a model's positions are rotated; empty where they are learned."""
    return getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}


def attention_window(model: Any) -> int:
    """Tokens that every layer attends to. A mask of ours would let a model see beyond its sliding window."""
    config = text_config(model)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    slides = any(kind != "full_attention" for kind in kinds)
    return int((getattr(config, "sliding_window", None) or 2**31) if slides else 2**31)
