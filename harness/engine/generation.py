"""One greedy pass over all prompts of a benchmark: finished rows leave the batch, and waiting ones take their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from ..data.encoder import EncodedRow
from .batch import collate, placed
from .capabilities import HEAD, Capabilities, TriedWay, capabilities_of, exact, logits_alone, rewind, text_config
from .counters import count
from .cuda_graph import WORTHWHILE, RecordedSteps, records
from .kv_cache import attends_everywhere, new_cache
from .lm_head import LMHead, capture_head_input
from .memory import in_pieces, lacks_memory
from .shared_prefix import shared_attention

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
    kind of cache offers ``new_cache()``. Of what a batch wrote, some rows are held against the model run on each of
    them alone; where they differ, rows are written one by one, with the model's own cache or without any.

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
    found = _written(model, rows, ends, torch.device(device)) if rows else {}
    return [[*row.known, *found.get(row, ())] for row in asked]


Written = dict["_Asked", list[int]]


def _written(model: Any, rows: Sequence[_Asked], ends: set[int], device: torch.device) -> Written:
    """What the model writes to every row, by the first way that suits it."""
    able = capabilities_of(model, collate([EncodedRow((*rows[0].ids, rows[0].ids[-1])[-HEAD:], 1)], device))
    together = [row for row in rows if len(row.ids) + row.left <= able.longest]
    shared = _shared_prefix([row.ids for row in together]) if attends_everywhere(model) else 0
    done: Written = {}
    if together:
        ways: list[tuple[str, TriedWay, Callable[[], Written]]] = [
            ("rows together", able.batched, lambda: _in_batches(model, together, ends, device, 0)),
        ]
        if shared and new_cache(model).joins:
            name = "rows together after a shared beginning"
            ways.insert(0, (name, able.shared, lambda: _in_batches(model, together, ends, device, shared)))
        done = _first_suited(model, together, ends, ways, able, device) or {}
    left = [row for row in rows if row not in done]
    own = ("each row alone", able.cached, lambda: {row: _alone(model, row, ends, device) for row in left})
    done |= _first_suited(model, left, ends, [own], able, device) if left and not hasattr(model, "new_cache") else {}
    for row in left:
        if row not in done:
            done[row] = _anew(model, row, ends, able, device)
            count("generation", "each row alone and without a cache")
    return done


def _first_suited(
    model: Any,
    rows: Sequence[_Asked],
    ends: set[int],
    ways: Sequence[tuple[str, TriedWay, Callable[[], Written]]],
    able: Capabilities,
    device: torch.device,
) -> Written:
    """What the first way wrote that suits the model; nothing where none of them does."""
    shortest = min(len(row.ids) for row in rows)
    for name, way, write in ways:
        if not way.fits:
            continue
        try:
            found = write()
        except Exception as error:
            if lacks_memory(error):
                raise
            way.found(False, 0, 0)
            continue
        width = max(len(row.ids) + len(line) for row, line in found.items())
        if not way.covers(width, width - shortest):
            fits = _as_alone(model, rows, found, ends, able, device)
            # The first token comes of reading the prompt: one alone tells nothing of what is kept between steps.
            if not fits or max(map(len, found.values())) > 1:
                way.found(fits, width, width - shortest)
        if way.fits:
            count("generation", name)
            return found
    return {}


def _as_alone(
    model: Any, rows: Sequence[_Asked], found: Written, ends: set[int], able: Capabilities, device: torch.device
) -> bool:
    """Whether every token of some rows is, up to rounding, the likeliest by a pass with that row alone.

    Looked at are the longest and the shortest, with what was written and without.
    """
    lengths = (lambda row: len(row.ids), lambda row: len(row.ids) + len(found[row]))
    for row in dict.fromkeys(some(rows, key=length) for length in lengths for some in (max, min)):
        line = found[row]
        ids = (*row.ids, *line)
        where = torch.zeros(len(ids), dtype=torch.bool)
        where[len(row.ids) - 1 :] = True
        logits = logits_alone(model, ids, where, able.narrows, device).float()  # (len(line) + 1, V)
        best = logits.amax(-1)
        chosen = logits[torch.arange(len(line)), torch.tensor(line, dtype=torch.long)]
        gaps = (best[: len(line)] - chosen).tolist()
        if len(line) < row.left:
            gaps.append(float(best[-1] - logits[-1, list(ends)].amax()))
        # Half precision rounds logits to a few parts in a thousand, twice.
        slack = (1e-4 if exact(model, device) else 0.02) * max(1.0, float(best.abs().amax()))
        if any(gap > slack for gap in gaps):
            return False
    return True


def _in_batches(model: Any, rows: Sequence[_Asked], ends: set[int], device: torch.device, shared: int) -> Written:
    """Rows that are read and written together."""
    found: Written = {}

    def generate(pieces: int) -> None:
        left = [row for row in rows if row not in found]
        batch = _Generation(model, left, ends, device, shared, pieces)
        try:
            with shared_attention(model) if batch.start else nullcontext():
                batch.run()
        finally:
            found.update(batch.done())

    in_pieces(generate)
    return found


def _alone(model: Any, row: _Asked, ends: set[int], device: torch.device) -> list[int]:
    """What the model's own ``generate`` writes to one row, with whatever cache or state it keeps."""
    rewind(model, device)
    ids = torch.tensor([row.ids], device=device)
    # Nothing of its own settings (penalties, forced tokens, sampling) may change what is likeliest.
    before, model.generation_config = model.generation_config, GenerationConfig()
    try:
        options = GenerationConfig(
            max_new_tokens=row.left, do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=0
        )
        written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)
    finally:
        model.generation_config = before
    return list(takewhile(lambda token: token not in ends, written[0, len(row.ids) :].tolist()))


def _anew(model: Any, row: _Asked, ends: set[int], able: Capabilities, device: torch.device) -> list[int]:
    """A row written with a pass over all of it for every token: what holds for any model."""
    line: list[int] = []
    while len(line) < row.left:
        ids = (*row.ids, *line)
        where = torch.zeros(len(ids), dtype=torch.bool)
        where[-1] = True
        token = int(logits_alone(model, ids, where, able.narrows, device).argmax())
        if token in ends:
            break
        line.append(token)
    return line


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
        self, model: Any, rows: Sequence[_Asked], eos: set[int], device: torch.device, prefix: int, pieces: int
    ) -> None:
        self.model, self.rows, self.eos, self.device = model, rows, eos, device
        self.written: list[list[int]] = [[] for _ in rows]
        self.finished = [False] * len(rows)
        # Taken from the end, the longest first: what fits at the beginning fits later.
        self.waiting = sorted(range(len(rows)), key=self._length)
        self.last = max(map(self._length, range(len(rows)))) - 1
        self.active: list[int] = []
        # Where fewer rows are left they may begin alike for longer, which changes nothing for them.
        self.prefix = prefix
        self.start = self._prefix_cache() if self.prefix else None
        self.budget = _token_budget(model, device) // pieces
        able = capabilities_of(model, collate([EncodedRow((*rows[0].ids, 0)[-HEAD:], 1)], device))
        self.head = LMHead.of(model) if able.head else None
        count("logits of a generation", "in pieces of the vocabulary" if self.head else "all at once")
        self.cache: Any = None
        self.joins, self.selects = bool(new_cache(model).joins), bool(new_cache(model).selects)
        self.room = (0, 0)  # rows and columns that the batch will have at most, till others join
        self.recorded: RecordedSteps | None = None
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
                if self.selects and alive <= (1 - TURNOVER) * len(self.active):
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
            self.recorded = RecordedSteps(self.model, self.cache, self.tokens, self.mask, self.prefix, self.last)
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
            with capture_head_input(self.model) as seen:
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
    config = text_config(model)
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # While prompts are read: about eight states of the width, three of the inner one.
    return cache_bytes(model) + int(model.dtype.itemsize * (8 * config.hidden_size + 3 * inner))


def cache_bytes(model: Any) -> int:
    """Memory of the keys and values of one token, in every layer.

    A model of several says in ``cached_models`` how many of them keep keys and values.
    """
    config = text_config(model)
    # A model without attention keeps one state for all tokens; taken for one of attention it is never too little.
    heads = getattr(config, "num_attention_heads", None) or 1
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
