"""One greedy pass over all prompts of a benchmark: finished rows leave the batch, and waiting ones take their place."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from .batches import Encoded, collate, placed
from .caches import attends_everywhere, new_cache
from .heads import Head, withheld
from .logprobs import abilities, same_logits
from .memory import in_pieces
from .paths import took
from .prefixes import shared_attention
from .recorded import WORTHWHILE, Steps, records

# Tokens held in the cache of one batch (rows × final length) on a CPU, and the bytes that they may take there: twice
# what the weights take, which each step reads once for all rows, within these bounds. On a GPU its free memory decides.
TOKENS = 24576
BYTES = (2**27, 2**30)
# Share of a GPU's free memory that one batch may take; what joins it is read into a cache of its own first.
MEMORY_SHARE = 0.6
# A shorter common beginning is not worth a forward pass of its own.
SHARED = 32
# Copying the cache costs about as much as a step, so rows leave and join when this share of them is finished.
TURNOVER = 0.25
# Matrix products are fastest with whole multiples of so many rows.
EVEN = 8
# A further pass costs about as much as so many positions.
PASS = {"cpu": 256, "cuda": 8192}
# Steps after which a device is asked what it wrote: asking makes it wait, and till then a finished row goes on in vain.
STEPS = {"cpu": 1, "cuda": 8}


@torch.no_grad()  # type: ignore[untyped-decorator]
def greedy(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    eos: Sequence[int],
    device: torch.device | str,
    begun: Sequence[tuple[int, ...]] = (),
) -> list[list[int]]:
    """The most likely continuation of every prompt, token by token, in the order given.

    What all prompts begin with (few-shot examples, an instruction) is computed once. A model that keeps its own
    kind of cache offers ``new_cache()``.

    Args:
        prompts: token ids, not empty.
        max_new_tokens: cap on each continuation.
        eos: ids that end a continuation; they are not part of what is returned.
        begun: for each prompt the tokens that its continuation is known to begin with (``Likelihood.greedy``); they
            are not generated again.
    """
    model.eval()
    ends = set(eos)
    asked = [_asked(*pair, max_new_tokens, ends) for pair in zip(prompts, begun or [()] * len(prompts), strict=True)]
    rows = [row for row in dict.fromkeys(asked) if row.left]
    found: dict[_Asked, list[int]] = {}

    def generate(pieces: int) -> None:
        left = [row for row in rows if row not in found]
        batch = _Generation(model, left, ends, torch.device(device), pieces)
        try:
            with shared_attention(model) if batch.start else nullcontext():
                batch.run()
        finally:
            found.update(batch.done())

    if rows:
        in_pieces(generate)
    return [[*row.known, *found.get(row, ())] for row in asked]


@dataclass(frozen=True)
class _Asked:
    """A row to continue: what is read, what of it belongs to the answer already, and how many tokens may follow."""

    ids: tuple[int, ...]
    known: tuple[int, ...]
    left: int


def _asked(prompt: tuple[int, ...], begun: tuple[int, ...], limit: int, eos: set[int]) -> _Asked:
    known = tuple(takewhile(lambda token: token not in eos, begun[:limit]))
    ended = len(known) < len(begun[:limit])
    return _Asked(prompt + known, known, 0 if ended else limit - len(known))


class _Generation:
    """A batch of rows that end at the last column of a cache, and the rows that wait for a place in it."""

    def __init__(
        self, model: Any, rows: Sequence[_Asked], eos: set[int], device: torch.device, pieces: int = 1
    ) -> None:
        self.model, self.rows, self.eos, self.device = model, rows, eos, device
        self.written: list[list[int]] = [[] for _ in rows]
        self.finished = [False] * len(rows)
        # Taken from the end, the longest first: what fits at the beginning fits later.
        self.waiting = sorted(range(len(rows)), key=self._length)
        self.last = max(map(self._length, range(len(rows)))) - 1
        self.active: list[int] = []
        self.prefix = _shared_prefix([row.ids for row in rows])
        if self.prefix and not _shares(model, device):
            self.prefix = 0
        self.start = self._prefix_cache() if self.prefix else None
        took("generation", "after a shared beginning" if self.prefix else "each row alone")
        self.budget = _token_budget(model, device) // pieces
        some = rows[0].ids[-8:]
        able = abilities(model, collate([Encoded((*some, some[-1]), 1)], device))
        self.head = Head.of(model) if able.head else None
        took("logits of a generation", "in pieces of the vocabulary" if self.head else "all at once")
        self.cache: Any = None
        self.joins = bool(new_cache(model).joins)
        self.room = (0, 0)  # rows and columns that the batch will have at most, till others join
        self.recorded: Steps | None = None
        self.mask = torch.empty(0)  # (B, L), 1 where a column of the cache is a row's own and no padding
        self.tokens = torch.empty(0)  # (B, 1), those written last, which the model has not read yet

    def done(self) -> dict[_Asked, list[int]]:
        """The continuations of rows that are finished."""
        return {self.rows[row]: line for row, line in enumerate(self.written) if self.finished[row]}

    def run(self) -> None:
        """Continue every row."""
        while self.waiting or self.active:
            alive = sum(not self.finished[row] for row in self.active)
            joining = self._joining(alive)
            if joining > TURNOVER * (alive + joining):
                self._leave()
                self._join(joining)
            elif alive == 0:
                self.active = []
            else:
                if alive <= (1 - TURNOVER) * len(self.active):
                    self._leave()
                self._step()

    def _length(self, row: int) -> int:
        return len(self.rows[row].ids) + self.rows[row].left

    def _joining(self, alive: int) -> int:
        """How many of the waiting rows fit in beside those of the batch that are not finished."""
        if not self.waiting or (alive and not self.joins):
            return 0
        # What all rows share is held once.
        longest = max(self._length(row) for row in (*self.active, self.waiting[-1])) - self.prefix
        room = self.budget // longest
        room -= room % EVEN if room > EVEN else 0
        return min(max(room - alive, 0 if alive else 1), len(self.waiting))

    def _leave(self) -> None:
        """Finished rows go, and with them the columns that none of the others needs."""
        self._stop_recorded()
        keep = [place for place, row in enumerate(self.active) if not self.finished[row]]
        if len(keep) < len(self.active) and keep:
            index = torch.tensor(keep, device=self.device)
            self.mask, self.tokens = self.mask[index], self.tokens[index]
            drop = int(self.mask.any(0).int().argmax()) if self.joins else 0
            self.mask = self.mask[:, drop:]
            self.cache.select(index, drop)
        self.active = [self.active[place] for place in keep]

    def _join(self, count: int) -> None:
        """Read the prompts of as many waiting rows, which then stand below the others."""
        rows = self.waiting[-count:]
        del self.waiting[-count:]
        # Layers that do not join keep to one batch.
        self.room = (len(self.active) + count, max(map(self._length, (*self.active, *rows))) - self.prefix)
        for some in self._alike(rows) if self.joins else [rows]:
            self._read(some)

    def _alike(self, rows: Sequence[int]) -> list[list[int]]:
        """Rows in groups of similar length, the longest first: less is padded than a further pass would cost."""
        found: list[list[int]] = []
        width = 0
        by_length = sorted(rows, key=lambda row: -len(self.rows[row].ids))
        for left, row in zip(range(len(rows), 0, -1), by_length, strict=True):
            length = len(self.rows[row].ids)
            if not found or left * (width - length) >= PASS.get(self.device.type, 256):
                found.append([])
                width = length
            found[-1].append(row)
        return found

    def _read(self, rows: Sequence[int]) -> None:
        """Read prompts in one pass."""
        rests = [self.rows[row].ids[self.prefix :] for row in rows]
        width = max(len(rest) for rest in rests)
        # Left padding: the last position of every row is the one that predicts.
        padded = [[0] * (width - len(rest)) + list(rest) for rest in rests]
        ids = placed(torch.tensor(padded), self.device)  # (B, T)
        own = [[0] * (width - len(rest)) + [1] * len(rest) for rest in rests]
        mask = placed(torch.tensor(own), self.device)
        cache = new_cache(self.model) if self.start is None else self.start.following()
        if self.joins:
            (self.cache if self.active else cache).expect(*self.room)
        tokens = self._next(ids, mask, cache)
        if self.active:
            self.cache.join(cache)
            length = max(self.mask.shape[1], width)
            self.mask = torch.cat([_left_padded(part, length) for part in (self.mask, mask)])
            self.tokens = torch.cat([self.tokens, tokens])
        else:
            self.cache, self.mask, self.tokens = cache, mask, tokens
        self.active += rows
        self._note(rows, tokens)

    def _step(self) -> None:
        """Write a token to every row of the batch, or several where asking for each would make the device wait."""
        most = max(self.rows[row].left - len(self.written[row]) for row in self.active if not self.finished[row])
        found = []
        if self.recorded is None and most >= WORTHWHILE and records(self.model, self.cache, self.device):
            self.recorded = Steps(self.model, self.cache, self.tokens, self.mask, self.prefix, self.last)
        for _ in range(min(STEPS.get(self.device.type, 1), most)):
            if self.recorded:
                self.tokens = self.recorded.next()
                if not self.recorded.left:
                    self._stop_recorded()
            else:
                self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.active), 1)], dim=1)
                self.tokens = self._next(self.tokens, self.mask, self.cache)
            found.append(self.tokens)
        self._note(self.active, torch.cat(found, dim=1))

    def _stop_recorded(self) -> None:
        """Recorded steps end where the batch changes."""
        if self.recorded:
            self.mask = torch.cat([self.mask, self.recorded.end()], dim=1)
            self.recorded = None

    def _next(self, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """(B, T) tokens to read → (B, 1) the likeliest to follow; ``mask`` (B, L + T) covers the rows' cache too."""
        # A finished row runs on until it leaves; where it would stand beyond the last position, nothing is read of it.
        positions = (mask.cumsum(-1) + self.prefix - 1).clamp(min=0, max=self.last)[:, -ids.shape[1] :]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        if self.head:
            with withheld(self.model) as seen:
                self.model(**inputs, **options)
            return self.head.likeliest(seen[0][:, -1])[:, None]
        chosen: Tensor = self.model(**inputs, **options).logits[:, -1].argmax(-1, keepdim=True)
        return chosen

    def _note(self, rows: Sequence[int], tokens: Tensor) -> None:
        """Keep what was written to these rows, (B, S), up to where each ends."""
        for row, line in zip(rows, tokens.tolist(), strict=True):
            for token in line:
                if self.finished[row]:
                    break
                if token not in self.eos:
                    self.written[row].append(token)
                self.finished[row] = token in self.eos or len(self.written[row]) == self.rows[row].left

    def _prefix_cache(self) -> Any:
        cache = new_cache(self.model)
        ids = torch.tensor([self.rows[0].ids[: self.prefix]], device=self.device)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache


# Whether a model class attends to a shared beginning as it does to one that stands in every row; measured once.
_sharing: dict[type, bool] = {}


def _shares(model: Any, device: torch.device) -> bool:
    if not attends_everywhere(model):
        return False
    if type(model) not in _sharing:
        _sharing[type(model)] = _measured_sharing(model, device)
    return _sharing[type(model)]


def _measured_sharing(model: Any, device: torch.device) -> bool:
    """Two rows of unlike length after a beginning of eight tokens, and alone."""
    ids = [torch.tensor([[token % model.config.vocab_size for token in line]], device=device) for line in
           (range(1, 9), (9, 10, 11), (12, 13))]  # fmt: skip
    alone = [model(input_ids=torch.cat([ids[0], rest], 1)).logits[:, -1] for rest in ids[1:]]
    rests = torch.tensor([[9, 10, 11], [0, 12, 13]], device=device) % model.config.vocab_size
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]], device=device)
    start = new_cache(model)
    if not start.joins:
        return False
    model(input_ids=ids[0], past_key_values=start, use_cache=True)

    def together() -> Tensor:
        with shared_attention(model):
            found: Tensor = model(
                input_ids=rests, attention_mask=mask, position_ids=mask.cumsum(-1) + 7, use_cache=True,
                past_key_values=start.following(),
            ).logits[:, -1]  # fmt: skip
            return found

    return same_logits(model, torch.cat(alone), together)


def _token_budget(model: Any, device: torch.device) -> int:
    """Tokens that one batch may hold in its cache."""
    if device.type != "cuda":
        weights = sum(int(weight.nbytes) for weight in model.parameters())
        return max(1, min(TOKENS, min(max(2 * weights, BYTES[0]), BYTES[1]) // cache_bytes(model)))
    free, _ = torch.cuda.mem_get_info(device)
    # What torch has set aside and does not use is free too.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int(MEMORY_SHARE * free / bytes_per_token(model)))


def bytes_per_token(model: Any) -> int:
    """Memory of one token in a batch that is generated: its keys and values, and one layer's activations."""
    config = model.config
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # While prompts are read: about eight states of the width, three of the inner one.
    return cache_bytes(model) + int(model.dtype.itemsize * (8 * config.hidden_size + 3 * inner))


def cache_bytes(model: Any) -> int:
    """Memory of the keys and values of one token, in every layer.

    A model of several says in ``cached_models`` how many of them keep keys and values.
    """
    config = model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width
    return int(model.dtype.itemsize * getattr(model, "cached_models", 1) * keys)


def _left_padded(mask: Tensor, length: int) -> Tensor:
    """(B, L) → (B, length), zeros first."""
    return torch.nn.functional.pad(mask, (length - mask.shape[1], 0))


def _shared_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts begin with, less than the shortest one; 0 where sharing them gains nothing."""
    if len(prompts) < 2:
        return 0
    # What the first and the last in order share, all share.
    pairs = zip(min(prompts), max(prompts), strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    shared = min(common, min(len(prompt) for prompt in prompts) - 1)
    return shared if shared >= SHARED else 0
