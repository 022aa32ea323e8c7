"""One pass over all (prompt, answer) pairs of a benchmark: every likelihood metric comes from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from .batches import Encoded, budget_batches, collate
from .heads import Head
from .logprobs import (
    Abilities,
    abilities,
    attention_dtype,
    logits_at,
    picked_logprobs,
    states_at,
    written_greedily,
)
from .memory import in_pieces
from .paths import took
from .trees import by_prompt, plant

# Positions in one forward pass, and elements of its block of logits (scored tokens × vocabulary): large enough to
# fill the device, small enough to stay in cache on a CPU and in memory on a GPU.
TOKENS = {"cpu": 2048, "cuda": 65536}
LOGITS = {"cpu": 2**24, "cuda": 2**30}


@dataclass(frozen=True)
class Likelihood:
    """Summed negative log-likelihood of an answer in nats, and its number of tokens (EOS included).

    ``greedy`` counts the tokens at its beginning that the model itself would have written, each more likely than any
    other: a generation that starts like this need not be generated again.
    """

    nll: float
    tokens: int
    greedy: int = 0

    @property
    def loss(self) -> float:
        """Nats per token; NaN for an answer without tokens."""
        return self.nll / self.tokens if self.tokens else float("nan")


def likelihoods(model: Any, rows: Sequence[Encoded], device: torch.device | str) -> list[Likelihood]:
    """The likelihood of every row's answer, in the order given.

    Rows of one prompt share it; equal rows are computed once.
    """
    found = {}
    for row, logp, likeliest in _scored(model, rows, device):
        greedy = sum(1 for _ in takewhile(bool, likeliest.tolist()))
        found[row] = Likelihood(-float(logp.sum()), row.answer_tokens, greedy)
    return [found[row] for row in rows]


def token_logprobs(model: Any, rows: Sequence[Encoded], device: torch.device | str) -> list[list[float]]:
    """The log-probability of every scored token of every row, in nats, in the order given."""
    found = {row: logp.tolist() for row, logp, _ in _scored(model, rows, device)}
    return [found[row] for row in rows]


@torch.no_grad()  # type: ignore[untyped-decorator]
def _scored(
    model: Any, rows: Sequence[Encoded], device: torch.device | str
) -> Iterator[tuple[Encoded, Tensor, Tensor]]:
    """Every distinct row with its tokens' log-probabilities, in float64, and whether each token is the likeliest.

    What the device computes is read once, at the end, so that it never waits for the next batch to be made.
    """
    unique = list(dict.fromkeys(rows))
    if not unique:
        return
    model.eval()
    order: list[Encoded] = []
    computed: list[tuple[Tensor, Tensor]] = []

    def score(pieces: int) -> None:
        done = set(order)
        left = [row for row in unique if row not in done]
        for batch, found in _passes(model, left, device, pieces):
            computed.append(found)
            order.extend(batch)

    in_pieces(score)
    logp = torch.cat([values for values, _ in computed]).double().cpu()
    likeliest = torch.cat([flags for _, flags in computed]).cpu()
    lengths = [row.answer_tokens for row in order]
    yield from zip(order, logp.split(lengths), likeliest.split(lengths), strict=True)


def _passes(
    model: Any, rows: Sequence[Encoded], device: torch.device | str, pieces: int
) -> Iterator[tuple[list[Encoded], tuple[Tensor, Tensor]]]:
    """Rows in batches; for their scored tokens, row after row, the log-probability and whether it is the likeliest.

    The largest come first, so that a batch too large for memory fails at once; ``pieces`` makes all smaller.
    """
    kind = "cpu" if torch.device(device).type == "cpu" else "cuda"
    able = abilities(model, collate(rows[:2], device))
    judge = _Judge(model, able)
    tokens = TOKENS[kind] // pieces
    # The head in pieces never holds a block of logits, so that positions alone bound a pass.
    block = tokens if judge.head else max(1, LOGITS[kind] // int(model.config.vocab_size) // pieces)
    trees = by_prompt([row for row in rows if len(row.ids) <= able.longest])
    # A row that shares nothing needs no mask of its own.
    shared = [tree for tree in trees if len(tree.rows) > 1]
    in_trees = {row for tree in shared for row in tree.rows}
    padded = [row for row in rows if row not in in_trees]
    dtype = attention_dtype(model, torch.device(device))
    for places in budget_batches([(len(tree), tree.scored) for tree in shared], (tokens, block)):
        batch = [shared[place] for place in places]
        forest = plant(batch, dtype, device)
        found = judge(forest.inputs, forest.where, forest.targets, forest.nodes)
        took("forward passes", "trees")
        yield [row for tree in batch for row in tree.rows], found
    for places in budget_batches([(len(row.ids), row.answer_tokens) for row in padded], (tokens, block)):
        alone = [padded[place] for place in places]
        collated = collate(alone, device)
        targets = collated.answers
        found = judge(collated.inputs, collated.predicts, targets, torch.arange(len(targets), device=targets.device))
        took("forward passes", "padded rows")
        yield alone, found


class _Judge:
    """From what goes into a model to what is kept of it; logits are freed before the next are computed."""

    def __init__(self, model: Any, able: Abilities) -> None:
        self.model, self.able = model, able
        self.head = Head.of(model) if able.head else None
        took("logits of a scoring pass", "in pieces of the vocabulary" if self.head else "all at once")

    def __call__(
        self, inputs: Mapping[str, Tensor], where: Tensor, targets: Tensor, nodes: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.head:
            return self.head.judged(states_at(self.model, inputs, where), targets, nodes)
        logits = logits_at(self.model, inputs, where, self.able.narrows)
        return picked_logprobs(logits, targets, nodes), written_greedily(logits, targets, nodes)
