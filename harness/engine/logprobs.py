"""Rows to log-probabilities of their answers, in whichever way suits the model; methods see only this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.encoder import EncodedRow
from ..domain import IGNORE
from ..errors import UsageError
from .batch import TokenBatch
from .capabilities import Capabilities, TriedWay, capabilities_of, evaluating, logprobs_alone, rewind, way_suits
from .counters import count
from .memory import lacks_memory
from .numerics import attention_dtype, logits_at, token_logprobs_of
from .prefix_tree import pack_trees, trees_by_prompt

# Trees are grown where they leave out at least this share of the positions that padded rows would have.
WORTHWHILE = 0.1


def answer_logits(model: Any, rows: TokenBatch) -> Tensor:
    """(N, V) logits at the positions that predict an answer token, row after row.

    The output head is applied there alone: a pre-hook narrows its input. On the first batch of a model that is
    compared with full logits; where they differ, or there is no such head, all logits are computed. A model that
    padding misleads reads its rows one by one.
    """
    able = capabilities_of(model, rows)
    if _fits(model, rows, able.padded, rows.labels.shape[1], able, lambda: _padded(model, rows, able)):
        return logits_at(model, rows.inputs, rows.predicts, able.narrows)
    found = []
    for row, encoded in enumerate(encoded_rows(rows)):
        rewind(model, rows.labels.device)
        inputs = {"input_ids": rows.input_ids[row : row + 1, : len(encoded.ids)]}
        found.append(logits_at(model, inputs, rows.predicts[row : row + 1, : len(encoded.ids)], able.narrows))
    return torch.cat(found)


def answer_logprobs(model: Any, *parts: TokenBatch) -> list[Tensor]:
    """Log-probability of every answer token, one (B, T-1) tensor per part, 0 where nothing is scored.

    The parts go through the model in one forward pass, as trees where that leaves out enough: rows with one prompt
    share it. Where trees do not give a model's own values, rows are padded to the longest; where padding does not,
    they go through it one by one.
    """
    rows = parts[0] if len(parts) == 1 else stacked(parts)
    way, flat = _answers(model, rows)  # (N,)
    count("forward passes with gradients" if torch.is_grad_enabled() else "forward passes", way)
    logp = flat.new_zeros(rows.scored.shape).masked_scatter(rows.scored, flat)  # (B, T-1)
    split = logp.split([len(part) for part in parts])
    return [found[:, : part.labels.shape[1] - 1] for found, part in zip(split, parts, strict=True)]


def _answers(model: Any, rows: TokenBatch) -> tuple[str, Tensor]:
    """The way taken, and (N,) log-probabilities of answer tokens, row after row."""
    able = capabilities_of(model, rows)
    trees = _in_trees(model, rows, able)
    if trees:
        width, last, compute = trees
        if _fits(model, rows, able.trees, width, able, compute, last):
            return "trees", compute()
    if _fits(model, rows, able.padded, rows.labels.shape[1], able, lambda: _padded(model, rows, able)):
        return "padded rows", _padded(model, rows, able)
    device = rows.labels.device
    return "rows alone", torch.cat([logprobs_alone(model, row, able, device) for row in encoded_rows(rows)])


def _fits(
    model: Any,
    rows: TokenBatch,
    way: TriedWay,
    width: int,
    able: Capabilities,
    compute: Callable[[], Tensor],
    last: EncodedRow | None = None,
) -> bool:
    """Whether a way suits a model for these rows; it is tried out where that is not known."""
    encoded = encoded_rows(rows)
    if max(len(row.ids) for row in encoded) > able.longest:
        return False
    padding = width - min(len(row.ids) for row in encoded)
    if not able.known(way, width, padding):
        try:
            with evaluating(model):
                values = compute()
        except Exception as error:
            if lacks_memory(error):
                raise
            way.found(False, width, padding)
        else:
            way_suits(model, encoded, values, way, width, able, rows.labels.device, last)
    if not way.fits and way is able.padded and able.sharded:
        raise UsageError("this model cannot be given rows of unlike length together; set run.processes = 1")
    return way.fits


def _padded(model: Any, rows: TokenBatch, able: Capabilities) -> Tensor:
    return token_logprobs_of(logits_at(model, rows.inputs, rows.predicts, able.narrows), rows.answers)


def _in_trees(model: Any, rows: TokenBatch, able: Capabilities) -> tuple[int, EncodedRow, Callable[[], Tensor]] | None:
    """Nodes beside each other, the row that is farthest from its prompt, and what computes (N,) log-probabilities.

    None where rows had better be padded.
    """
    encoded = rows.encoded
    if not encoded or not able.trees.fits or max(len(row.ids) for row in encoded) > able.tree_longest:
        return None
    trees = trees_by_prompt(encoded)
    if sum(map(len, trees)) > (1 - WORTHWHILE) * rows.labels.numel():
        return None
    forest = pack_trees(trees, attention_dtype(model, rows.labels.device), rows.labels.device)

    def compute() -> Tensor:
        logits = logits_at(model, forest.inputs, forest.where, able.narrows)
        found = token_logprobs_of(logits, forest.targets, forest.nodes)
        # From the order of trees to that of rows; a row that stands twice is looked up twice.
        places: dict[EncodedRow, range] = {}
        at = 0
        for tree in trees:
            for row in tree.rows:
                places[row] = range(at, at + row.answer_tokens)
                at += row.answer_tokens
        return found[torch.tensor([place for row in encoded for place in places[row]], device=found.device)]

    return forest.input_ids.shape[1], max(trees, key=len).farthest, compute


def sequence_logprob(model: Any, *parts: TokenBatch) -> list[Tensor]:
    """Log-probability of each answer as a whole, in nats: one (B,) tensor per part, at most 0."""
    return [logp.sum(-1) for logp in answer_logprobs(model, *parts)]


def encoded_rows(rows: TokenBatch) -> Sequence[EncodedRow]:
    """The rows as token ids without padding."""
    if rows.encoded:
        return rows.encoded
    found = []
    for ids, length, scored in zip(
        rows.input_ids.tolist(), rows.attention_mask.sum(-1).tolist(), rows.scored.int().argmax(-1).tolist(),
        strict=True,
    ):  # fmt: skip
        found.append(EncodedRow(tuple(ids[:length]), scored + 1))
    return found


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
    )
