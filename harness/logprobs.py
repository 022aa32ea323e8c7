"""Logits and labels to log-probabilities: the only shift and the only mask in the project."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .batches import Rows
from .domain import IGNORE


def widened(logits: Tensor) -> Tensor:
    """Logits in at least float32, for arithmetic that half precision would spoil."""
    return logits if logits.dtype == torch.float64 else logits.float()


def picked_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, V) logits and (N,) targets → (N,) log-probabilities, in nats, computed in at least float32."""
    wide = widened(logits)
    return wide.gather(-1, targets[:, None]).squeeze(-1) - wide.logsumexp(-1)


def answer_logits(model: Any, rows: Rows) -> Tensor:
    """(N, V) logits at the positions that predict an answer token, row after row.

    The output head is applied there alone: a pre-hook narrows its input. On the first batch of a model class
    that is compared with full logits; where they differ, or there is no such head, all logits are computed.
    """
    where = rows.predicts
    if not _head_narrows(model, rows):
        return _logits(model, rows)[where]
    return _narrowed_logits(model, rows, where)


def answer_logprobs(model: Any, *parts: Rows) -> list[Tensor]:
    """Log-probability of every answer token, one (B, T-1) tensor per part, 0 where nothing is scored.

    The parts go through the model in one forward pass.
    """
    rows = parts[0] if len(parts) == 1 else stacked(parts)
    flat = picked_logprobs(answer_logits(model, rows), rows.answers)  # (N,)
    logp = flat.new_zeros(rows.scored.shape).masked_scatter(rows.scored, flat)  # (B, T-1)
    split = logp.split([len(part) for part in parts])
    return [found[:, : part.labels.shape[1] - 1] for found, part in zip(split, parts, strict=True)]


def sequence_logprob(model: Any, *parts: Rows) -> list[Tensor]:
    """Log-probability of each answer as a whole, in nats: one (B,) tensor per part, at most 0."""
    return [logp.sum(-1) for logp in answer_logprobs(model, *parts)]


def stacked(parts: tuple[Rows, ...]) -> Rows:
    """Several parts as the rows of one batch, padded to the longest."""
    width = max(part.labels.shape[1] for part in parts)

    def padded(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

    return Rows(
        torch.cat([padded(part.input_ids, 0) for part in parts]),
        torch.cat([padded(part.attention_mask, 0) for part in parts]),
        torch.cat([padded(part.labels, IGNORE) for part in parts]),
    )


def _logits(model: Any, rows: Rows) -> Tensor:
    logits: Tensor = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    return logits


def _narrowed_logits(model: Any, rows: Rows, where: Tensor) -> Tensor:
    def keep(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][where].unsqueeze(0), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        return _logits(model, rows)[0]
    finally:
        handle.remove()


# Whether a model class gives equal logits with a narrowed head; measured once, on the first batch seen.
_narrows: dict[type, bool] = {}


def _head_narrows(model: Any, rows: Rows) -> bool:
    kind = type(model)
    if kind not in _narrows:
        _narrows[kind] = _measure_narrowing(model, rows)
    return _narrows[kind]


def _measure_narrowing(model: Any, rows: Rows) -> bool:
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        return False
    probe = Rows(rows.input_ids[:2], rows.attention_mask[:2], rows.labels[:2])
    where = probe.predicts
    with torch.no_grad():
        full = _logits(model, probe)[where].float()
        try:
            narrow = _narrowed_logits(model, probe, where).float()
        except Exception:  # noqa: BLE001 - any failure means that this class needs the plain path
            return False
    # Half-precision heads may round differently for another number of rows.
    exact = model.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(full.device.type)
    slack = 1e-4 if exact else 5e-2
    return narrow.shape == full.shape and bool(torch.allclose(narrow, full, atol=slack, rtol=slack))
