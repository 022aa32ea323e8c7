"""One pass over all (prompt, answer) pairs of a benchmark: every likelihood metric comes from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from ..data.encoder import EncodedRow
from .batch import budget_batches, collate
from .capabilities import Capabilities, TriedWay, capabilities_of, rewind, vocabulary_of, way_suits
from .counters import count
from .lm_head import LMHead
from .memory import in_pieces, lacks_memory
from .numerics import attention_dtype, is_argmax, logits_at, states_at, token_logprobs_of
from .prefix_tree import PrefixTree, pack_trees, trees_by_prompt

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


def likelihoods(model: Any, rows: Sequence[EncodedRow], device: torch.device | str) -> list[Likelihood]:
    """The likelihood of every row's answer, in the order given.

    Rows of one prompt share it; equal rows are computed once.
    """
    found = {}
    for row, logp, likeliest in _scored(model, rows, device):
        greedy = sum(1 for _ in takewhile(bool, likeliest.tolist()))
        found[row] = Likelihood(-float(logp.sum()), row.answer_tokens, greedy)
    return [found[row] for row in rows]


def token_logprobs(model: Any, rows: Sequence[EncodedRow], device: torch.device | str) -> list[list[float]]:
    """The log-probability of every scored token of every row, in nats, in the order given."""
    found = {row: logp.tolist() for row, logp, _ in _scored(model, rows, device)}
    return [found[row] for row in rows]


@torch.no_grad()  # type: ignore[untyped-decorator]
def _scored(
    model: Any, rows: Sequence[EncodedRow], device: torch.device | str
) -> Iterator[tuple[EncodedRow, Tensor, Tensor]]:
    """Every distinct row with its tokens' log-probabilities, in float64, and whether each token is the likeliest.

    What the device computes is read once, at the end, so that it never waits for the next batch to be made.
    """
    unique = list(dict.fromkeys(rows))
    if not unique:
        return
    model.eval()
    order: list[EncodedRow] = []
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
    model: Any, rows: Sequence[EncodedRow], device: torch.device | str, pieces: int
) -> Iterator[tuple[list[EncodedRow], tuple[Tensor, Tensor]]]:
    """Rows in batches; for their scored tokens, row after row, the log-probability and whether it is the likeliest.

    The largest come first, so that a batch too large for memory fails at once; ``pieces`` makes all smaller.
    """
    device = torch.device(device)
    kind = "cpu" if device.type == "cpu" else "cuda"
    able = capabilities_of(model, collate(rows[:2], device))
    judge = _Judge(model, able)
    tokens = TOKENS[kind] // pieces
    # The head in pieces never holds a block of logits, so that positions alone bound a pass.
    block = tokens if judge.head else max(1, LOGITS[kind] // vocabulary_of(model) // pieces)
    together = [row for row in rows if len(row.ids) <= able.longest]
    trees = trees_by_prompt([row for row in together if len(row.ids) <= able.tree_longest]) if able.trees.fits else []
    # A row that shares nothing needs no mask of its own.
    shared = [tree for tree in trees if len(tree.rows) > 1]
    done = set()
    for batch, found in _in_trees(model, judge, shared, (tokens, block), able, device):
        done.update(batch)
        yield batch, found
    padded = [row for row in together if row not in done]
    for batch, found in _padded(model, judge, padded, (tokens, block), able, device):
        done.update(batch)
        yield batch, found
    for row in rows:
        if row not in done:
            rewind(model, device)
            count("forward passes", "rows alone")
            yield [row], judge.row(row, device)


Passes = Iterator[tuple[list[EncodedRow], tuple[Tensor, Tensor]]]


def _in_trees(
    model: Any,
    judge: _Judge,
    trees: Sequence[PrefixTree],
    budgets: tuple[int, int],
    able: Capabilities,
    device: torch.device,
) -> Passes:
    """Passes over trees, up to one that shows that they do not suit the model."""
    dtype = attention_dtype(model, device)
    for places in budget_batches([(len(tree), tree.scored) for tree in trees], budgets):
        batch = [trees[place] for place in places]
        rows = [row for tree in batch for row in tree.rows]
        forest = pack_trees(batch, dtype, device)
        found = _attempted(able.trees, lambda: judge(forest.inputs, forest.where, forest.targets, forest.nodes))  # noqa: B023
        width, last = forest.input_ids.shape[1], max(batch, key=len).farthest
        if found is None or not way_suits(model, rows, found[0], able.trees, width, able, device, last):
            return
        count("forward passes", "trees")
        yield rows, found


def _padded(
    model: Any,
    judge: _Judge,
    rows: Sequence[EncodedRow],
    budgets: tuple[int, int],
    able: Capabilities,
    device: torch.device,
) -> Passes:
    """Passes over padded rows, up to one that shows that padding misleads the model."""
    for places in budget_batches([(len(row.ids), row.answer_tokens) for row in rows], budgets):
        if not able.padded.fits:
            return
        batch = [rows[place] for place in places]
        collated = collate(batch, device)
        targets = collated.answers
        nodes = torch.arange(len(targets), device=device)
        inputs, where = able.reading(collated)
        found = _attempted(able.padded, lambda: judge(inputs, where, targets, nodes))  # noqa: B023
        if found is None or not way_suits(model, batch, found[0], able.padded, collated.labels.shape[1], able, device):
            return
        count("forward passes", "padded rows")
        yield batch, found


def _attempted(way: TriedWay, compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
    """What a way gives; None where it fails, which makes it none for this model. Rows alone may fail."""
    try:
        return compute()
    except Exception as error:
        if lacks_memory(error):
            raise
        way.found(False, 0, 0)
        return None


class _Judge:
    """From what goes into a model to what is kept of it; logits are freed before the next are computed."""

    def __init__(self, model: Any, able: Capabilities) -> None:
        self.model, self.able = model, able
        self.head = LMHead.of(model) if able.head else None
        count("logits of a scoring pass", "in pieces of the vocabulary" if self.head else "all at once")

    def __call__(
        self, inputs: Mapping[str, Tensor], where: Tensor, targets: Tensor, nodes: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.head:
            return self.head.judged(states_at(self.model, inputs, where), targets, nodes)
        logits = logits_at(self.model, inputs, where, self.able.narrows)
        return token_logprobs_of(logits, targets, nodes), is_argmax(logits, targets, nodes)

    def row(self, row: EncodedRow, device: torch.device) -> tuple[Tensor, Tensor]:
        """A row by itself, as the model is called with it alone."""
        rows = collate([row], device)
        inputs, where = self.able.reading(rows)
        nodes = torch.arange(len(rows.answers), device=device)
        # Without a mask, as anybody would call it with one row.
        return self({"input_ids": inputs["input_ids"]}, where, rows.answers, nodes)
