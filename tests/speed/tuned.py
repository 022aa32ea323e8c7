"""The same work in plain transformers by somebody who tunes it: rows sorted by length, equal rows once, a budget of
tokens for each batch, and logits at the answers only. ``continuous`` is transformers' own continuous batching.

Nothing here calls the engine.
"""

from __future__ import annotations

import torch
from plain import right_padded
from transformers import ContinuousBatchingConfig, GenerationConfig

POSITIONS = 2048
"""Padded positions of one scoring pass."""
LOGITS = 2**24
"""Elements of one block of logits: more of them leave the cache of a CPU."""
CACHED = 16384
"""Tokens in the cache of one generated batch."""
PAGE = 32
"""Tokens of one page of the continuous batch's cache, and what its number of pages is rounded to."""


def batches(sizes, most):
    """Places in ascending order of their sizes, in batches of at most ``most`` padded positions."""
    found = []
    for place in sorted(range(len(sizes)), key=lambda place: sizes[place]):
        if not found or (len(found[-1]) + 1) * sizes[place] > most:
            found.append([])
        found[-1].append(place)
    return found


@torch.no_grad()
def logprobs(model, rows):
    """The log-probabilities of every row's answer tokens, rows of (ids, start)."""
    unique = list(dict.fromkeys((tuple(ids), start) for ids, start in rows))
    found = {}
    for places in batches([len(ids) for ids, _ in unique], POSITIONS):
        chosen = [unique[place] for place in places]
        inputs = right_padded(chosen)
        targets = inputs.pop("labels")[:, 1:]
        where = targets != -100
        states = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1][where]
        picked = []
        size = max(1, LOGITS // model.config.vocab_size)
        for block, wanted in zip(states.split(size), targets[where].split(size), strict=True):
            logits = model.get_output_embeddings()(block).float()
            picked.append(logits.gather(-1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
        lengths = where.sum(-1).tolist()
        found |= zip(chosen, (part.tolist() for part in torch.cat(picked).split(lengths)), strict=True)
    return [found[tuple(ids), start] for ids, start in rows]


@torch.no_grad()
def generations(model, prompts, max_new_tokens, ends):
    """Greedy continuations by ``generate``, up to their end."""
    unique = list(dict.fromkeys(map(tuple, prompts)))
    found = {}
    for places in batches([len(prompt) + max_new_tokens for prompt in unique], CACHED):
        chosen = [unique[place] for place in places]
        width = max(map(len, chosen))
        out = model.generate(
            input_ids=torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in chosen]),
            attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in chosen]),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=ends[0],
            eos_token_id=list(ends),
        )
        found |= zip(chosen, (up_to_end(tokens, ends) for tokens in out[:, width:].tolist()), strict=True)
    return [found[tuple(prompt)] for prompt in prompts]


@torch.no_grad()
def continuous(model, prompts, max_new_tokens, ends):
    """Greedy continuations by ``generate_batch``: rows leave and join, and pages of equal beginnings are shared.

    Without a number of pages it would fill nine tenths of the free memory with its cache before it starts.
    """
    unique = list(dict.fromkeys(map(tuple, prompts)))
    pages = sum(-(-(len(prompt) + max_new_tokens) // PAGE) for prompt in unique) + 1
    out = model.generate_batch(
        [list(prompt) for prompt in unique],
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=ends[0], eos_token_id=list(ends)
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=min(pages, CACHED // PAGE), max_batch_tokens=POSITIONS
        ),
    )
    written = (up_to_end(list(request.generated_tokens), ends) for request in out.values())
    found = dict(zip(unique, written, strict=True))
    return [found[tuple(prompt)] for prompt in prompts]


def up_to_end(tokens, ends):
    """The tokens before the first that ends a row."""
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]
