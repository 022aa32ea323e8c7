"""One greedy pass over all prompts of a benchmark; rows that are finished leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from .batches import token_budget_batches

# Tokens held in the cache of one batch (rows × final length).
TOKENS = {"cpu": 32768, "cuda": 1048576}


@torch.no_grad()  # type: ignore[untyped-decorator]
def greedy(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    eos: Sequence[int],
    device: torch.device | str,
) -> list[list[int]]:
    """The most likely continuation of every prompt, token by token, in the order given.

    Args:
        prompts: token ids, not empty.
        max_new_tokens: cap on each continuation.
        eos: ids that end a continuation; they are not part of what is returned.
    """
    kind = "cpu" if torch.device(device).type == "cpu" else "cuda"
    model.eval()
    unique = list(dict.fromkeys(prompts))
    lengths = [len(prompt) + max_new_tokens for prompt in unique]
    done: dict[tuple[int, ...], list[int]] = {}
    for places in token_budget_batches(lengths, TOKENS[kind]):
        batch = [unique[place] for place in places]
        done.update(zip(batch, _decode(model, batch, max_new_tokens, set(eos), device), strict=True))
    return [list(done[prompt]) for prompt in prompts]


def _decode(
    model: Any, prompts: list[tuple[int, ...]], limit: int, eos: set[int], device: torch.device | str
) -> list[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    # Left padding: the last position of every row is the one that predicts.
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)  # (B, T)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)  # (B, T)
    written: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))  # place in ``prompts`` of each row still in the batch
    finished = [False] * len(prompts)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # (B, T)
    step_ids = ids
    for step in range(limit):
        out = model(
            input_ids=step_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = out.logits[:, -1].argmax(-1)  # (B,)
        for place, token in zip(active, chosen.tolist(), strict=True):
            if finished[place]:
                continue
            if token in eos:
                finished[place] = True
            else:
                written[place].append(token)
        keep = [row for row, place in enumerate(active) if not finished[place]]
        if not keep or step + 1 == limit:
            break
        positions = positions[:, -1:] + 1
        # Copying the cache costs about as much as a step, so rows leave when a quarter of them is finished.
        if len(keep) <= 0.75 * len(active):
            index = torch.tensor(keep, device=device)
            cache.batch_select_indices(index)
            mask, positions, chosen = mask[index], positions[index], chosen[index]
            active = [active[row] for row in keep]
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
        step_ids = chosen[:, None]
    return written
