"""The output head on a CPU, where it is most of a small model's work: a piece of the vocabulary at a time.

With tens of thousands of rows and few columns the product W·Xᵀ runs up to twice as fast as X·Wᵀ, and nobody needs the
logits themselves: of every piece its maximum, the sum of its exponentials and the tokens asked for are kept while it is
in cache (the online softmax of Milakov and Gimelshein 2018, arXiv:1805.02867).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Logits computed at a time, and tokens of the vocabulary that are looked through together.
PIECE, BLOCK = 2**20, 512
# With as few columns the product is fastest with all of the vocabulary at once, and with X as it lies in memory; with
# more, where their number is a multiple of it. One column alone is slower than two.
NARROW = 8


@dataclass(frozen=True)
class LMHead:
    """Weights (V, D) and bias (V) of a linear output head."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, model: Any) -> LMHead | None:
        """The head of a model on a CPU in full precision; None for any other, whose own logits are to be used."""
        layer: Any = getattr(model, "get_output_embeddings", lambda: None)()
        if type(layer) is not torch.nn.Linear or layer.weight.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return None
        return cls(layer.weight, layer.bias) if layer.weight.dtype in (torch.float32, torch.float64) else None

    def logits(self, states: Tensor) -> Tensor:
        """(M, D) → (M, V)."""
        return torch.cat([piece.t() for _, piece in self._pieces(_padded(states))], dim=1)[: len(states)]

    def likeliest(self, states: Tensor) -> Tensor:
        """(M, D) → (M,) the token of the greatest logit, the first of several."""
        count, states = len(states), _padded(states)
        best = states.new_full((len(states),), -math.inf)
        found = torch.zeros(len(states), dtype=torch.long)
        for begin, piece in self._pieces(states):
            # To find where the greatest number stands is dear: it is looked for in one block alone.
            rows = BLOCK if len(piece) % BLOCK == 0 else len(piece)
            blocks = piece.view(-1, rows, len(states))
            highest, block = blocks.amax(1).max(0)
            better = (highest > best).nonzero()[:, 0]
            if len(better):
                inside = blocks[block[better], :, better].argmax(-1)
                found[better] = begin + block[better] * rows + inside
                best[better] = highest[better]
        return found[:count]

    def judged(self, states: Tensor, targets: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens their log-probability, in nats, and whether each alone is the likeliest: two of (P,).

        Args:
            states: (M, D).
            targets: (P,) token ids.
            places: (P,) the row of ``states`` that predicts each of them.
        """
        states = _padded(states)
        order = targets.argsort()
        ordered = targets[order]
        picked = states.new_zeros(len(targets))
        alone = torch.ones(len(targets), dtype=torch.bool)
        best = states.new_full((len(states),), -math.inf)
        total = torch.zeros_like(best)
        pieces_with_best = torch.zeros(len(states), dtype=torch.long)
        for begin, piece in self._pieces(states):
            highest = piece.amax(0)
            first, last = torch.searchsorted(ordered, torch.tensor([begin, begin + len(piece)])).tolist()
            here = order[first:last]
            picked[here] = piece[targets[here] - begin, places[here]]
            top = here[picked[here] == highest[places[here]]]
            alone[top] = (piece[:, places[top]] == highest[places[top]]).sum(0) == 1
            pieces_with_best = torch.where(highest > best, 1, pieces_with_best + (highest == best))
            new = torch.maximum(best, highest)
            total = total * (best - new).exp_() + piece.sub_(new).exp_().sum(0)
            best = new
        likeliest = (picked == best[places]) & alone & (pieces_with_best == 1)[places]
        return picked - (best + total.log())[places], likeliest

    def _pieces(self, states: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Logits of one piece of the vocabulary after another, (v, M) each, with the token that it begins with."""
        vocabulary, count = len(self.weight), max(1, len(states))
        size = max(1, PIECE // count // BLOCK) * BLOCK
        columns = states.t() if count <= NARROW else states.t().contiguous()
        whole = self.weight @ columns if count <= NARROW else None
        for begin in range(0, vocabulary, size):
            end = begin + size
            piece = self.weight[begin:end] @ columns if whole is None else whole[begin:end]
            yield begin, piece if self.bias is None else piece + self.bias[begin:end, None]


def _padded(states: Tensor) -> Tensor:
    """As many rows as are fast; those added are zeros."""
    count = len(states)
    more = 1 if count == 1 else -count % NARROW if count > NARROW else 0
    return torch.nn.functional.pad(states, (0, 0, 0, more)) if more else states


@contextmanager
def replace_head_input(model: Any, changed: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this a model's output head reads what ``changed`` makes of the (B, T, D) states it was to read."""

    def change(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (changed(args[0]), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(change)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def capture_head_input(model: Any) -> Iterator[list[Tensor]]:
    """Within this a model's output head reads nothing; what it was to read, (B, T, D), is put into the list."""
    seen: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        seen.append(states)
        return states[:, :0]

    with replace_head_input(model, keep):
        yield seen
