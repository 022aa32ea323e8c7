"""Rows of text to padded tensors, and the one rule for which tokens are the answer's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data.encoder import EncodedRow
from ..domain import IGNORE


@dataclass
class TokenBatch:
    """Rows that a loss treats alike, right-padded.

    Shapes: ``input_ids``, ``attention_mask``, ``labels`` are (B, T). ``encoded`` holds the same rows as token ids, from
    which a pass can leave out padding and what rows share; it is empty where they are not known. ``runtime`` is the
    ``Runtime`` of the cell, which knows what suits its models.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    encoded: tuple[EncodedRow, ...] = ()
    runtime: object = None
    _logp_original: Tensor | None = field(default=None, repr=False)

    @property
    def logp_original(self) -> Tensor:
        """(B,) the original model's log-probability of each answer, in nats.

        Raises:
            AttributeError: the method does not declare ``Requires(original="logprobs")``, or the rows are retain rows.
        """
        if self._logp_original is None:
            raise AttributeError('these rows have no logp_original; declare Requires(original="logprobs")')
        return self._logp_original

    @logp_original.setter
    def logp_original(self, logp: Tensor) -> None:
        self._logp_original = logp

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    @property
    def scored(self) -> Tensor:
        """(B, T-1), true where the next token is scored."""
        return self.labels[:, 1:] != IGNORE

    @property
    def predicts(self) -> Tensor:
        """(B, T), true where the logits predict a scored label: one position before it."""
        return torch.nn.functional.pad(self.scored, (0, 1), value=False)

    @property
    def answers(self) -> Tensor:
        """(N,) the scored labels, row after row."""
        if not self.encoded:
            return self.labels[:, 1:][self.scored]
        # From what the host knows: a mask on a GPU would let it wait until the GPU has counted.
        tokens = [token for row in self.encoded for token in row.scored_ids]
        return placed(torch.tensor(tokens, dtype=torch.long), self.labels.device)

    def predicting(self, width: int) -> Tensor:
        """(N,) the places b·width + t of the logits that predict a scored label, of rows read up to ``width``."""
        if not self.encoded:
            return self.predicts[:, :width].flatten().nonzero()[:, 0]
        each = [
            torch.arange(place * width + max(row.start, 1) - 1, place * width + len(row.ids) - 1)
            for place, row in enumerate(self.encoded)
        ]
        return placed(torch.cat(each), self.labels.device)

    @property
    def scored_tokens(self) -> int:
        """How many labels are scored."""
        return sum(row.answer_tokens for row in self.encoded) if self.encoded else int(self.scored.sum())

    def between(self, begin: int, end: int) -> TokenBatch:
        """Some of the rows, at the same width."""
        logp = None if self._logp_original is None else self._logp_original[begin:end]
        return TokenBatch(
            self.input_ids[begin:end],
            self.attention_mask[begin:end],
            self.labels[begin:end],
            self.encoded[begin:end],
            self.runtime,
            logp,
        )

    def __len__(self) -> int:
        return int(self.labels.shape[0])


def collate(encoded: Sequence[EncodedRow], device: torch.device | str, length: int = 0) -> TokenBatch:
    """Pad rows on the right. Padding is neither attended to nor scored, so any id serves for it.

    Args:
        length: pad to this many tokens; 0 pads to the longest row.
    """
    width = max(length, *(len(row.ids) for row in encoded))
    ids = torch.zeros((len(encoded), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for place, row in enumerate(encoded):
        tokens = torch.tensor(row.ids)
        ids[place, : len(tokens)] = tokens
        mask[place, : len(tokens)] = 1
        # The first token of a sequence is predicted by nothing.
        begin = max(row.start, 1)
        labels[place, begin : len(tokens)] = tokens[begin:]
    return TokenBatch(placed(ids, device), placed(mask, device), placed(labels, device), encoded=tuple(encoded))


def placed(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device. A copy to a GPU is asynchronous."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def budget_batches(
    sizes: Sequence[tuple[int, ...]], budgets: tuple[int, ...], longest_first: bool = True
) -> Iterator[list[int]]:
    """Sort rows by their first size and group their places so that each batch stays within every budget.

    The first size is padded to the longest of the batch; the others add up. Longest first, so that a batch too large
    for memory fails at once. A single row beyond a budget is its own batch.
    """
    order = sorted(range(len(sizes)), key=lambda place: sizes[place][0], reverse=longest_first)
    batch: list[int] = []
    longest, sums = 0, [0] * len(budgets)
    for place in order:
        longest = max(longest, sizes[place][0])
        sums = [longest * (len(batch) + 1), *(a + b for a, b in zip(sums[1:], sizes[place][1:], strict=True))]
        if batch and any(found > budget for found, budget in zip(sums, budgets, strict=True)):
            yield batch
            batch, longest, sums = [], sizes[place][0], list(sizes[place])
        batch.append(place)
    if batch:
        yield batch
