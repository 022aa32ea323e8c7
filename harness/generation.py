"""One greedy pass over all prompts of a benchmark; rows that are finished leave the batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .batches import token_budget_batches

# Tokens held in the cache of one batch (rows × final length) on a CPU; on a GPU its free memory decides.
TOKENS = 32768
# Share of a GPU's free memory that one batch may take. The cache grows by copying, one layer at a time.
MEMORY_SHARE = 0.6
# A shorter common beginning is not worth a forward pass of its own.
SHARED = 32


@torch.no_grad()  # type: ignore[untyped-decorator]
def greedy(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    eos: Sequence[int],
    device: torch.device | str,
) -> list[list[int]]:
    """The most likely continuation of every prompt, token by token, in the order given.

    What all prompts begin with (few-shot examples, an instruction) is computed once. A model that keeps its own
    kind of cache offers ``new_cache()``.

    Args:
        prompts: token ids, not empty.
        max_new_tokens: cap on each continuation.
        eos: ids that end a continuation; they are not part of what is returned.
    """
    model.eval()
    unique = list(dict.fromkeys(prompts))
    prefix = _shared_prefix(unique) if _attends_everywhere(model) else 0
    start = _prefix_cache(model, unique[0][:prefix], device) if prefix else None
    lengths = [len(prompt) + max_new_tokens for prompt in unique]
    done: dict[tuple[int, ...], list[int]] = {}
    for places in token_budget_batches(lengths, _token_budget(model, torch.device(device))):
        batch = [unique[place] for place in places]
        cache = _new_cache(model) if start is None else copy.deepcopy(start)
        if prefix:
            cache.batch_repeat_interleave(len(batch))
        rests = [prompt[prefix:] for prompt in batch]
        written = _decode(model, rests, prefix, cache, max_new_tokens, set(eos), device)
        done.update(zip(batch, written, strict=True))
    return [list(done[prompt]) for prompt in prompts]


def _token_budget(model: Any, device: torch.device) -> int:
    """Tokens that one batch may hold in its cache."""
    if device.type != "cuda":
        return TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    # What torch has set aside and does not use is free too.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int(MEMORY_SHARE * free / bytes_per_token(model)))


def bytes_per_token(model: Any) -> int:
    """Memory of one token in a batch that is generated: keys and values of every layer, and one layer's activations.

    A model of several says in ``cached_models`` how many of them keep keys and values.
    """
    config = model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # While prompts are read: about eight states of the width, three of the inner one.
    states = 8 * config.hidden_size + 3 * inner
    return int(model.dtype.itemsize * (getattr(model, "cached_models", 1) * keys + states))


def _new_cache(model: Any) -> Any:
    return model.new_cache() if hasattr(model, "new_cache") else DynamicCache(config=model.config)


def _attends_everywhere(model: Any) -> bool:
    """Whether padding between prefix and rest is harmless: a sliding window would count it."""
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(model.config, "sliding_window", None) is None


def _shared_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts begin with, less than the shortest one; 0 where sharing them gains nothing."""
    if len(prompts) < 2:
        return 0
    # What the first and the last in order share, all share.
    pairs = zip(min(prompts), max(prompts), strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    shared = min(common, min(len(prompt) for prompt in prompts) - 1)
    return shared if shared >= SHARED else 0


def _prefix_cache(model: Any, prefix: tuple[int, ...], device: torch.device | str) -> Any:
    cache = _new_cache(model)
    ids = torch.tensor([prefix], device=device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _decode(
    model: Any,
    prompts: list[tuple[int, ...]],
    prefix: int,
    cache: Any,
    limit: int,
    eos: set[int],
    device: torch.device | str,
) -> list[list[int]]:
    """Continue every row of ``prompts``, whose first ``prefix`` tokens lie in ``cache`` already."""
    width = max(len(prompt) for prompt in prompts)
    # Left padding: the last position of every row is the one that predicts.
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)  # (B, T)
    mask = torch.tensor([[1] * prefix + [0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    written: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))  # place in ``prompts`` of each row still in the batch
    finished = [False] * len(prompts)
    positions: Tensor = (mask.cumsum(-1) - 1).clamp(min=0)[:, prefix:]  # (B, T)
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
