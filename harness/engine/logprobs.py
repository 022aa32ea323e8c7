"""Rows to log-probabilities of their answers, in whichever way suits the model; losses see only this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.encoder import EncodedRow
from ..domain import IGNORE
from ..errors import UsageError
from .batch import TokenBatch, placed
from .capabilities import Capabilities, TriedWay, evaluating
from .memory import lacks_memory
from .numerics import attention_dtype, logits_at, token_logprobs_of, whole_logits, widened
from .prefix_tree import PrefixTree, pack_trees, trees_by_prompt
from .runtime import Runtime


def all_logits(model: Any, rows: TokenBatch) -> Tensor:
    """(B, T, V) logits at every position, padding included, in at least float32; no keys and values are kept."""
    return widened(whole_logits(model, {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}))


def answer_logits(model: Any, rows: TokenBatch) -> Tensor:
    """(N, V) logits at the positions that predict an answer token, row after row.

    The output head is applied there alone, where that gives the model's own logits. A model that padding misleads
    reads its rows one by one.
    """
    runtime = runtime_of(rows)
    able, width = runtime.capabilities(model), rows.labels.shape[1]
    padded = _Way(able.padded, width, lambda: _padded(runtime, model, rows))
    if _suits(runtime, model, rows, padded):
        return _logits(model, rows, able)
    found = []
    for row, encoded in enumerate(encoded_rows(rows)):
        runtime.rewind(model)
        length = len(encoded.ids)
        inputs = {"input_ids": rows.input_ids[row : row + 1, :length]}
        where = torch.arange(max(encoded.start, 1) - 1, length - 1)
        found.append(logits_at(model, inputs, placed(where, runtime.device), able.narrows))
    return torch.cat(found)


def answer_logprobs(model: Any, *parts: TokenBatch) -> list[Tensor]:
    """Log-probability of every answer token, one (B, T-1) tensor per part, 0 where nothing is scored.

    The parts go through the model in one forward pass, as trees where that leaves out enough: rows with one prompt
    share it. Where trees do not give a model's own values, rows are padded to the longest; where padding does not,
    they go through it one by one.
    """
    rows = parts[0] if len(parts) == 1 else stacked(parts)
    runtime = runtime_of(rows)
    way, flat = _answers(runtime, model, rows)  # (N,)
    work = "forward passes with gradients" if torch.is_grad_enabled() else "forward passes"
    runtime.counters.count(work, way)
    logp = flat.new_zeros(rows.scored.shape).masked_scatter(rows.scored, flat)  # (B, T-1)
    split = logp.split([len(part) for part in parts])
    return [found[:, : part.labels.shape[1] - 1] for found, part in zip(split, parts, strict=True)]


def sequence_logprob(model: Any, *parts: TokenBatch) -> list[Tensor]:
    """Log-probability of each answer as a whole, in nats: one (B,) tensor per part, at most 0."""
    return [logp.sum(-1) for logp in answer_logprobs(model, *parts)]


def runtime_of(rows: TokenBatch) -> Runtime:
    """The runtime that the training loop left with a batch; rows that come from elsewhere get one of their own."""
    return rows.runtime if isinstance(rows.runtime, Runtime) else Runtime(rows.labels.device)


@dataclass(frozen=True)
class _Way:
    """A way to compute the (N,) log-probabilities of rows.

    Args:
        width: tokens, or nodes of trees, beside each other.
        last: the row that is farthest from its prompt, of trees.
    """

    tried: TriedWay
    width: int
    compute: Callable[[], Tensor]
    last: EncodedRow | None = None


def _answers(runtime: Runtime, model: Any, rows: TokenBatch) -> tuple[str, Tensor]:
    """The way taken, and (N,) log-probabilities of answer tokens, row after row."""
    trees = _in_trees(runtime, model, rows)
    if trees and _suits(runtime, model, rows, trees):
        return "trees", trees.compute()
    able = runtime.capabilities(model)
    padded = _Way(able.padded, rows.labels.shape[1], lambda: _padded(runtime, model, rows))
    if _suits(runtime, model, rows, padded):
        return "padded rows", padded.compute()
    return "rows alone", torch.cat([runtime.logprobs_alone(model, row) for row in encoded_rows(rows)])


def _suits(runtime: Runtime, model: Any, rows: TokenBatch, way: _Way) -> bool:
    """Whether a way suits a model for these rows; it is tried out where that is not known."""
    encoded, able = encoded_rows(rows), runtime.capabilities(model)
    if max(len(row.ids) for row in encoded) > able.longest:
        return False
    padding = way.width - min(len(row.ids) for row in encoded)
    if not able.known(way.tried, way.width, padding):
        try:
            with evaluating(model):
                values = way.compute()
        except Exception as error:
            if lacks_memory(error):
                raise
            way.tried.found(False, way.width, padding)
        else:
            runtime.suits(model, encoded, values, way.tried, way.width, way.last)
    if not way.tried.fits and way.tried is able.padded and able.sharded:
        raise UsageError("this model cannot be given rows of unlike length together; set run.processes = 1")
    return way.tried.fits


def _padded(runtime: Runtime, model: Any, rows: TokenBatch) -> Tensor:
    return token_logprobs_of(_logits(model, rows, runtime.capabilities(model)), rows.answers)


def _logits(model: Any, rows: TokenBatch, able: Capabilities) -> Tensor:
    """(N, V) logits that predict the answers of padded rows."""
    return logits_at(model, able.inputs(rows), rows.predicting(rows.labels.shape[1]), able.narrows)


def _in_trees(runtime: Runtime, model: Any, rows: TokenBatch) -> _Way | None:
    """The rows as trees; None where they had better be padded."""
    able, budgets, encoded = runtime.capabilities(model), runtime.budgets, rows.encoded
    if not encoded or not able.trees.fits or max(len(row.ids) for row in encoded) > able.tree_longest:
        return None
    trees = trees_by_prompt(encoded, budgets.tree_tokens)
    if sum(map(len, trees)) > (1 - budgets.tree_saving) * rows.labels.numel():
        return None
    packed = pack_trees(trees, attention_dtype(model, runtime.device), runtime.device, budgets.packed_nodes)
    places = _places(trees, encoded)

    def compute() -> Tensor:
        logits = logits_at(model, packed.inputs, packed.where, able.narrows)
        found = token_logprobs_of(logits, packed.targets, packed.nodes)
        return found[placed(torch.tensor(places), found.device)]

    return _Way(able.trees, packed.input_ids.shape[1], compute, max(trees, key=len).farthest)


def _places(trees: Sequence[PrefixTree], encoded: Sequence[EncodedRow]) -> list[int]:
    """For every scored token of the rows its place in the order of trees; equal rows have the same places."""
    of_row: dict[EncodedRow, range] = {}
    at = 0
    for tree in trees:
        for row in tree.rows:
            of_row[row] = range(at, at + row.answer_tokens)
            at += row.answer_tokens
    return [place for row in encoded for place in of_row[row]]


def encoded_rows(rows: TokenBatch) -> Sequence[EncodedRow]:
    """The rows as token ids without padding."""
    if rows.encoded:
        return rows.encoded
    lengths, starts = rows.attention_mask.sum(-1).tolist(), rows.scored.int().argmax(-1).tolist()
    return [
        EncodedRow(tuple(ids[:length]), start + 1)
        for ids, length, start in zip(rows.input_ids.tolist(), lengths, starts, strict=True)
    ]


def stacked(parts: Sequence[TokenBatch]) -> TokenBatch:
    """Several parts as the rows of one batch, padded to the longest."""
    width = max(part.labels.shape[1] for part in parts)

    def padded(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

    return TokenBatch(
        torch.cat([padded(part.input_ids, 0) for part in parts]),
        torch.cat([padded(part.attention_mask, 0) for part in parts]),
        torch.cat([padded(part.labels, IGNORE) for part in parts]),
        encoded=tuple(row for part in parts for row in part.encoded) if all(part.encoded for part in parts) else (),
        runtime=parts[0].runtime,
    )
