"""One pass over all (prompt, answer) pairs of a benchmark: every likelihood metric comes from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from ..data.encoder import EncodedRow
from ..domain import ReadText
from .batch import budget_batches, collate
from .capabilities import TriedWay, vocabulary_of
from .memory import in_pieces, lacks_memory
from .numerics import attention_dtype, is_argmax, logits_at, moments_of, states_at, token_logprobs_of
from .prefix_tree import PrefixTree, pack_trees, trees_by_prompt
from .runtime import Runtime


@dataclass(frozen=True)
class Likelihood:
    """Summed negative log-likelihood of an answer in nats, and its number of tokens (EOS included).

    ``greedy_prefix`` counts the tokens at its beginning that the model itself would have written, each more likely
    than any other: a generation that starts like this need not be generated again. ``greedy_suffix`` counts those at
    its end, and ``greedy`` those anywhere, each after the answer's own tokens before it.
    """

    nll: float
    tokens: int
    greedy_prefix: int = 0
    greedy_suffix: int = 0
    greedy: int = 0

    @property
    def loss(self) -> float:
        """Nats per token; NaN for an answer without tokens."""
        return self.nll / self.tokens if self.tokens else float("nan")


def likelihoods(runtime: Runtime, model: Any, rows: Sequence[EncodedRow]) -> list[Likelihood]:
    """The likelihood of every row's answer, in the order given; see ``Engine.score``."""
    found = {}
    for row, logp, flags in _scored(runtime, model, rows):
        greedy = flags.tolist()
        prefix, suffix = (sum(1 for _ in takewhile(bool, order)) for order in (greedy, reversed(greedy)))
        found[row] = Likelihood(-float(logp.sum()), row.answer_tokens, prefix, suffix, sum(greedy))
    return [found[row] for row in rows]


def read_texts(runtime: Runtime, model: Any, rows: Sequence[EncodedRow]) -> list[ReadText]:
    """What a model makes of every scored token of every row, in the order given."""
    found = {
        row: ReadText(*(tuple(values.tolist()) for values in (logp, flags, *moments)))
        for row, logp, flags, *moments in _scored(runtime, model, rows, moments=True)
    }
    return [found[row] for row in rows]


def token_logprobs(runtime: Runtime, model: Any, rows: Sequence[EncodedRow]) -> list[list[float]]:
    """The log-probability of every scored token of every row, in nats, in the order given."""
    found = {row: logp.tolist() for row, logp, _ in _scored(runtime, model, rows)}
    return [found[row] for row in rows]


@torch.no_grad()
def _scored(
    runtime: Runtime, model: Any, rows: Sequence[EncodedRow], moments: bool = False
) -> Iterator[tuple[Any, ...]]:
    """Every distinct row with its tokens' log-probabilities, in float64, whether each token is the argmax, and moments.

    What the device computes is read once, at the end, so that it never waits for the next batch to be made.
    """
    unique = list(dict.fromkeys(rows))
    if not unique:
        return
    model.eval()
    order: list[EncodedRow] = []
    computed: list[tuple[Tensor, ...]] = []

    def score(pieces: int) -> None:
        done = set(order)
        left = [row for row in unique if row not in done]
        for batch, found in _Scorer(runtime, model, pieces, moments).passes(left):
            computed.append(found)
            order.extend(batch)

    in_pieces(score, runtime.counters)
    logp, flags, *more = (torch.cat(values) for values in zip(*computed, strict=True))
    lengths = [row.answer_tokens for row in order]
    values = [logp.double().cpu(), flags.cpu(), *(moment.double().cpu() for moment in more)]
    yield from zip(order, *(value.split(lengths) for value in values), strict=True)


# Rows of one pass; for their scored tokens, row after row, the log-probability and whether it is the argmax, and the
# moments of all log-probabilities where they are asked for.
Passes = Iterator[tuple[list[EncodedRow], tuple[Tensor, ...]]]


class _Scorer:
    """Forward passes over rows; the largest come first, so that a batch too large for memory fails at once.

    Args:
        pieces: how much smaller than usual all batches are.
        moments: whether the moments of log-probabilities over the vocabulary are asked for.
    """

    def __init__(self, runtime: Runtime, model: Any, pieces: int, moments: bool = False) -> None:
        self.runtime, self.model, self.moments = runtime, model, moments
        self.able = runtime.capabilities(model)
        self.head = runtime.lm_head(model)
        way = "in pieces of the vocabulary" if self.head else "all at once"
        runtime.counters.count("logits of a scoring pass", way)
        positions = runtime.budgets.positions // pieces
        # The chunked head never holds a block of logits, so that positions alone bound a pass.
        logits = positions if self.head else max(1, runtime.budgets.logits // vocabulary_of(model) // pieces)
        self.budgets = positions, logits

    def passes(self, rows: Sequence[EncodedRow]) -> Passes:
        """Every row once: in trees, else padded, else alone."""
        able = self.able
        together = [row for row in rows if len(row.ids) <= able.longest]
        short = [row for row in together if len(row.ids) <= able.tree_longest] if able.trees.fits else []
        trees = trees_by_prompt(short, self.runtime.budgets.tree_tokens)
        done: set[EncodedRow] = set()
        # A row that shares nothing needs no mask of its own.
        for batch, found in self._in_trees([tree for tree in trees if len(tree.rows) > 1]):
            done.update(batch)
            yield batch, found
        for batch, found in self._padded([row for row in together if row not in done]):
            done.update(batch)
            yield batch, found
        for row in rows:
            if row not in done:
                self.runtime.rewind(self.model)
                self.runtime.counters.count("forward passes", "rows alone")
                yield [row], self._alone(row)

    def _in_trees(self, trees: Sequence[PrefixTree]) -> Passes:
        """Passes over trees, up to one that shows that they do not suit the model."""
        device, nodes = self.runtime.device, self.runtime.budgets.packed_nodes
        dtype = attention_dtype(self.model, device)
        for places in budget_batches([(len(tree), tree.scored) for tree in trees], self.budgets):
            batch = [trees[place] for place in places]
            rows = [row for tree in batch for row in tree.rows]
            packed = pack_trees(batch, dtype, device, nodes)
            found = _attempted(
                self.able.trees,
                lambda: self._token_logprobs(packed.inputs, packed.where, packed.targets, packed.nodes),  # noqa: B023
            )
            width, last = packed.input_ids.shape[1], max(batch, key=len).farthest
            if found is None or not self.runtime.suits(self.model, rows, found[0], self.able.trees, width, last):
                return
            self.runtime.counters.count("forward passes", "trees")
            yield rows, found

    def _padded(self, rows: Sequence[EncodedRow]) -> Passes:
        """Passes over padded rows, up to one that shows that padding misleads the model."""
        way = self.able.padded
        for places in budget_batches([(len(row.ids), row.answer_tokens) for row in rows], self.budgets):
            if not way.fits:
                return
            batch = [rows[place] for place in places]
            collated = collate(batch, self.runtime.device)
            targets = collated.answers
            inputs, where = self.able.reading(collated)
            nodes = torch.arange(len(targets), device=self.runtime.device)
            found = _attempted(way, lambda: self._token_logprobs(inputs, where, targets, nodes))  # noqa: B023
            if found is None or not self.runtime.suits(self.model, batch, found[0], way, collated.labels.shape[1]):
                return
            self.runtime.counters.count("forward passes", "padded rows")
            yield batch, found

    def _alone(self, row: EncodedRow) -> tuple[Tensor, ...]:
        """A row by itself, as the model is called with it alone."""
        rows = collate([row], self.runtime.device)
        inputs, where = self.able.reading(rows)
        nodes = torch.arange(len(rows.answers), device=self.runtime.device)
        # Without a mask, as anybody would call it with one row.
        return self._token_logprobs({"input_ids": inputs["input_ids"]}, where, rows.answers, nodes)

    def _token_logprobs(
        self, inputs: Mapping[str, Tensor], where: Tensor, targets: Tensor, nodes: Tensor
    ) -> tuple[Tensor, ...]:
        """(P,) log-probabilities, argmax flags and moments of one pass, whose logits are freed before the next."""
        if self.head:
            return self.head.token_logprobs(states_at(self.model, inputs, where), targets, nodes, self.moments)
        logits = logits_at(self.model, inputs, where, self.able.narrows)
        found = token_logprobs_of(logits, targets, nodes), is_argmax(logits, targets, nodes)
        return (*found, *moments_of(logits, nodes)) if self.moments else found


def _attempted(way: TriedWay, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...] | None:
    """What a way gives; None where it fails, which makes it none for this model. Rows alone may fail."""
    try:
        return compute()
    except Exception as error:
        if lacks_memory(error):
            raise
        way.found(False, 0, 0)
        return None
