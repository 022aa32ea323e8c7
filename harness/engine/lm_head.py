"""The output head on a CPU, where it is most of a small model's work: a piece of the vocabulary at a time.

With tens of thousands of rows and few columns the product W·Xᵀ runs up to twice as fast as X·Wᵀ. Nobody needs the
logits themselves: of every piece its maximum, the sum of its exponentials and the tokens asked for are kept while it
is in cache (the online softmax of Milakov and Gimelshein 2018, arXiv:1805.02867).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .budgets import Budgets

# With as few columns the product is fastest with all of the vocabulary at once, and with X as it lies in memory; with
# more, where their number is a multiple of it. One column alone is slower than two.
FEW_COLUMNS = 8


@dataclass(frozen=True)
class LMHead:
    """Weights (V, D) and bias (V) of a linear output head."""

    weight: Tensor
    bias: Tensor | None
    budgets: Budgets

    @classmethod
    def of(cls, model: Any, budgets: Budgets) -> LMHead | None:
        """The head of a model on a CPU in full precision; None for any other, whose own logits are to be used."""
        layer: Any = getattr(model, "get_output_embeddings", lambda: None)()
        if type(layer) is not torch.nn.Linear or layer.weight.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return None
        return cls(layer.weight, layer.bias, budgets) if layer.weight.dtype in (torch.float32, torch.float64) else None

    def logits(self, states: Tensor) -> Tensor:
        """(M, D) → (M, V)."""
        return torch.cat([piece.t() for _, piece in self._pieces(_padded(states))], dim=1)[: len(states)]

    def token_logprobs(
        self, states: Tensor, targets: Tensor, places: Tensor, moments: bool = False
    ) -> tuple[Tensor, ...]:
        """Log-probabilities of tokens, in nats, and whether each token is the argmax and alone in that: (P,) each.

        Args:
            states: (M, D).
            targets: (P,) token ids.
            places: (P,) the row of ``states`` that predicts each of them.
            moments: give mean and variance too, as ``numerics.moments_of``.
        """
        softmax = _OnlineSoftmax(_padded(states), targets, places, moments)
        for begin, piece in self._pieces(softmax.states):
            softmax.add(begin, piece)
        return softmax.result()

    def _pieces(self, states: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Logits of one piece of the vocabulary after another, (v, M) each, with the token that it begins with."""
        vocabulary, count, block = len(self.weight), max(1, len(states)), self.budgets.head_block
        size = max(1, self.budgets.head_piece // count // block) * block
        columns = states.t() if count <= FEW_COLUMNS else states.t().contiguous()
        whole = self.weight @ columns if count <= FEW_COLUMNS else None
        for begin in range(0, vocabulary, size):
            end = begin + size
            piece = self.weight[begin:end] @ columns if whole is None else whole[begin:end]
            yield begin, piece if self.bias is None else piece + self.bias[begin:end, None]


class _OnlineSoftmax:
    """log p(t) = z_t − m − log Σ exp(z − m), with m the maximum and the sum of logits z kept over pieces.

    When a piece raises the maximum from m to m′, the sum so far is multiplied by exp(m − m′). With moments, the sums of
    exp(z − m) (z − m) and exp(z − m) (z − m)² are kept too, and moved along with the maximum.
    """

    def __init__(self, states: Tensor, targets: Tensor, places: Tensor, moments: bool = False) -> None:
        self.states, self.targets, self.places = states, targets, places
        self._order = targets.argsort()
        self._ordered = targets[self._order]
        self._picked = states.new_zeros(len(targets))  # (P,) the logits of the targets
        self._unique = torch.ones(len(targets), dtype=torch.bool)  # no other logit of its piece equals the target's
        self._maximum = states.new_full((len(states),), -math.inf)  # (M,)
        self._sum = torch.zeros_like(self._maximum)  # (M,)
        self._ties = torch.zeros(len(states), dtype=torch.long)  # (M,) pieces whose maximum is the maximum so far
        self._powers = (torch.zeros_like(self._sum), torch.zeros_like(self._sum)) if moments else None  # (M,) each

    def add(self, begin: int, piece: Tensor) -> None:
        """Take in the (v, M) logits of the tokens from ``begin`` on; the piece is overwritten."""
        highest = piece.amax(0)
        first, last = torch.searchsorted(self._ordered, torch.tensor([begin, begin + len(piece)])).tolist()
        here = self._order[first:last]
        places = self.places[here]
        self._picked[here] = piece[self.targets[here] - begin, places]
        top = here[self._picked[here] == highest[places]]
        self._unique[top] = (piece[:, self.places[top]] == highest[self.places[top]]).sum(0) == 1
        self._ties = torch.where(highest > self._maximum, 1, self._ties + (highest == self._maximum))
        maximum = torch.maximum(self._maximum, highest)
        down = self._maximum - maximum
        shifted = piece.sub_(maximum)
        if self._powers is None:
            self._sum = self._sum * down.exp_() + shifted.exp_().sum(0)
        else:
            # Of what was kept nothing is left where there was nothing: exp(−∞) (−∞) is no number.
            down = down.nan_to_num(neginf=-torch.finfo(down.dtype).max / 4)
            scale, weights = down.exp(), shifted.exp()
            first, second = self._powers
            more = weights * shifted
            self._powers = (
                scale * (first + down * self._sum).nan_to_num() + more.sum(0),
                scale * (second + 2 * down * first + down**2 * self._sum).nan_to_num() + more.mul_(shifted).sum(0),
            )
            self._sum = self._sum * scale + weights.sum(0)
        self._maximum = maximum

    def result(self) -> tuple[Tensor, ...]:
        """(P,) log-probabilities, whether each token is the argmax and alone in that, and the moments asked for."""
        is_argmax = (self._picked == self._maximum[self.places]) & self._unique & (self._ties == 1)[self.places]
        found = self._picked - (self._maximum + self._sum.log())[self.places], is_argmax
        if self._powers is None:
            return found
        first, second = (power / self._sum for power in self._powers)
        mean, variance = first - self._sum.log(), (second - first**2).clamp(min=0.0)
        return *found, mean[self.places], variance[self.places]


def _padded(states: Tensor) -> Tensor:
    """Add rows of zeros up to a number of rows that the product computes fast."""
    count = len(states)
    more = 1 if count == 1 else -count % FEW_COLUMNS if count > FEW_COLUMNS else 0
    return torch.nn.functional.pad(states, (0, 0, 0, more)) if more else states


@contextmanager
def replace_head_input(model: Any, changed: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a model's output head read what ``changed`` makes of its (B, T, D) input, within this context."""

    def change(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (changed(args[0]), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(change)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def capture_head_input(model: Any) -> Iterator[list[Tensor]]:
    """Keep the output head from running within this context; its (B, T, D) inputs are put into the list."""
    seen: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        seen.append(states)
        return states[:, :0]

    with replace_head_input(model, keep):
        yield seen
