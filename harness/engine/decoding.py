"""Decoding in batches, which finished rows leave: greedy, or with answers drawn."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from .._compat import cache_keyword
from .batch import placed
from .capabilities import text_config
from .cuda_graph import RecordedSteps, can_record
from .kv_cache import new_cache
from .numerics import rows_at_once
from .runtime import Runtime
from .shared_prefix import shared_attention


@dataclass(frozen=True)
class Request:
    """A row to continue.

    Args:
        ids: what is read.
        known: what of it belongs to the answer already.
        left: how many tokens may follow.
        draw: which of several drawn continuations this one is.
    """

    ids: tuple[int, ...]
    known: tuple[int, ...]
    left: int
    draw: int = 0

    @classmethod
    def of(cls, prompt: tuple[int, ...], begun: tuple[int, ...], limit: int, eos: frozenset[int]) -> Request:
        """The request of a prompt whose continuation is known to begin with ``begun``."""
        known = tuple(takewhile(lambda token: token not in eos, begun[:limit]))
        ended = len(known) < len(begun[:limit])
        return cls(prompt + known, known, 0 if ended else limit - len(known))

    @property
    def length(self) -> int:
        """Tokens of the whole row at most."""
        return len(self.ids) + self.left


WrittenRows = dict[Request, list[int]]

RUN = 256
"""Tokens of the vocabulary whose probabilities are summed before one is drawn."""


@dataclass(frozen=True)
class Sampler:
    """Draws tokens: a row's depend on its request and the seed alone, not on the rows beside it.

    Args:
        temperature: logits are divided by it before the softmax.
    """

    temperature: float
    seed: int

    def uniforms(self, request: Request) -> list[float]:
        """A number from 0 to 1 for every token that may follow."""
        rng = random.Random(f"{self.seed} {request.draw} {request.ids}")
        return [rng.random() for _ in range(request.left)]

    def cumulative(self, logits: Tensor) -> Tensor:
        """(…, V) logits → (…, V) cumulative probabilities, in the order of the vocabulary."""
        return (logits.float() / self.temperature).softmax(-1).cumsum(-1)

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """(B, V) logits and (B, 1) uniforms → (B, 1) tokens, by inversion of the cumulative probabilities.

        First the run of tokens in which a number falls, then the token in it: sums of runs are few, so that the
        vocabulary is gone through once and not cumulated.
        """
        blocks = zip(logits.split(rows_at_once(logits)), uniforms.split(rows_at_once(logits)), strict=True)
        return torch.cat([self._chosen(block, numbers) for block, numbers in blocks])

    def _chosen(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        vocabulary = logits.shape[-1]
        highest = logits.amax(-1, keepdim=True).float()
        weights = torch.sub(logits, highest).div_(self.temperature).exp_()  # (B, V), up to a factor of each row
        runs = torch.nn.functional.pad(weights, (0, -vocabulary % RUN)).view(len(logits), -1, RUN)  # (B, R, RUN)
        totals = runs.sum(-1)
        ends = totals.cumsum(-1)
        sought = uniforms * ends[:, -1:]
        # Rounding may leave what is sought a little beyond the last.
        run = (ends < sought).sum(-1, keepdim=True).clamp(max=ends.shape[-1] - 1)
        before = ends.gather(-1, run) - totals.gather(-1, run)
        inside = runs.gather(1, run[..., None].expand(-1, -1, RUN)).squeeze(1).cumsum(-1) + before
        place = (inside < sought).sum(-1, keepdim=True).clamp(max=RUN - 1)
        return (run * RUN + place).clamp(max=vocabulary - 1)


class _Line:
    """A request while it is decoded: what was written to it, and whether it has ended."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.written: list[int] = []
        self.finished = False

    @property
    def left(self) -> int:
        """Tokens that may still follow."""
        return self.request.left - len(self.written)

    def append(self, tokens: Iterable[int], eos: frozenset[int]) -> None:
        """Keep tokens up to where the row ends."""
        for token in tokens:
            if self.finished:
                return
            if token not in eos:
                self.written.append(token)
            self.finished = token in eos or self.left == 0


class _Decoder:
    """A model as it writes: tokens to read → the next token of every row.

    Args:
        prefix: tokens that all rows begin with, which are computed once.
        last: the last position that any row may have.
        eos: tokens that end a row.
        sampler: draws tokens; None for the most likely ones.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: Any,
        prefix: Sequence[int],
        last: int,
        eos: frozenset[int],
        sampler: Sampler | None,
    ) -> None:
        self.runtime, self.model, self.last, self.eos, self.sampler = runtime, model, last, eos, sampler
        self.prefix = len(prefix)
        self._start = self._read_prefix(prefix) if prefix else None

    def new_cache(self) -> Any:
        """An empty cache of rows, which come after the shared prefix where there is one."""
        return new_cache(self.model, self.runtime) if self._start is None else self._start.fork_prefix()

    def next(
        self, ids: Tensor, mask: Tensor, cache: Any, uniforms: Tensor | None, rows: Tensor | None = None
    ) -> Tensor:
        """(B, T) tokens to read → (B, 1) tokens that follow; ``mask`` (B, L + T) covers the rows' cache too.

        Args:
            uniforms: (B, 1) the numbers by which a sampler draws them.
            rows: (B,) where the prompts of the rows stand among ``ids``, which is read once for all.
        """
        # A finished row is decoded until it leaves; its positions stay at the last one, and nothing is read of it.
        positions = (mask.cumsum(-1) + self.prefix - 1).clamp(min=0, max=self.last)[:, -ids.shape[1] :]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        options = {cache_keyword(self.model): cache, "use_cache": True, "logits_to_keep": 1}
        logits: Tensor = self.model(**inputs, **options).logits[:, -1]
        if rows is not None:
            cache.spread(rows)
            logits = logits[rows]
        if self.sampler and uniforms is not None:
            return self.sampler.choose(logits, uniforms)
        return logits.argmax(-1, keepdim=True)

    def _read_prefix(self, prefix: Sequence[int]) -> Any:
        cache = new_cache(self.model, self.runtime)
        ids = torch.tensor([list(prefix)], device=self.runtime.device)
        self.model(input_ids=ids, **{cache_keyword(self.model): cache}, use_cache=True, logits_to_keep=1)
        return cache


class _Batch:
    """Rows that are read and decoded together; all end at the last column of their cache.

    ``mask`` (B, L) is 1 where a column of the cache is a row's own and no padding; ``tokens`` (B, 1) are those written
    last, which the model has not read yet.
    """

    def __init__(self, decoder: _Decoder, lines: Sequence[_Line]) -> None:
        self._decoder, self.lines = decoder, list(lines)
        device, prefix = decoder.runtime.device, decoder.prefix
        self._cache = decoder.new_cache()
        read = [line.request.ids[prefix:] for line in lines]
        rests = list(dict.fromkeys(read)) if self._cache.can_select else read
        width = max(len(rest) for rest in rests)
        # Left padding: the last position of every row is the one that predicts.
        ids = placed(torch.tensor([[0] * (width - len(rest)) + list(rest) for rest in rests]), device)
        own = [[0] * (width - len(rest)) + [1] * len(rest) for rest in rests]
        mask = placed(torch.tensor(own), device)
        rows = None
        if len(rests) < len(read):
            place = {rest: number for number, rest in enumerate(rests)}
            rows = torch.tensor([place[rest] for rest in read], device=device)
        self._mask = mask if rows is None else mask[rows]
        self._cache.expect(len(lines), max(line.request.length for line in lines) - prefix)
        self._recorded: RecordedSteps | None = None
        self._uniforms = self._drawn_by(decoder.sampler) if decoder.sampler else None
        self._tokens = decoder.next(ids, mask, self._cache, self._numbers(), rows)
        self._keep(self._tokens)

    def _drawn_by(self, sampler: Sampler) -> Tensor:
        """(B, S) the numbers by which the rows' tokens are drawn, 0 after a row's last one."""
        rows = [torch.tensor(sampler.uniforms(line.request)) for line in self.lines]
        return placed(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), self._decoder.runtime.device)

    def _numbers(self) -> Tensor | None:
        """(B, 1) the numbers of the next token; None for greedy decoding."""
        if self._uniforms is None:
            return None
        first, self._uniforms = self._uniforms[:, :1], self._uniforms[:, 1:]
        return first

    @property
    def alive(self) -> int:
        """How many rows have not ended."""
        return sum(not line.finished for line in self.lines)

    def drop_finished(self) -> None:
        """Drop finished rows, and with them the columns that none of the others needs."""
        if not self._cache.can_select:
            return
        self._end_recording()
        keep = [place for place, line in enumerate(self.lines) if not line.finished]
        index = torch.tensor(keep, device=self._decoder.runtime.device)
        self._mask, self._tokens = self._mask[index], self._tokens[index]
        if self._uniforms is not None:
            self._uniforms = self._uniforms[index]
        drop = int(self._mask.any(0).int().argmax()) if self._cache.grows else 0
        self._mask = self._mask[:, drop:]
        self._cache.select(index, drop)
        self.lines = [self.lines[place] for place in keep]

    def step(self) -> None:
        """Write to every row: several tokens on a device that would wait for each to be read."""
        decoder = self._decoder
        budgets = decoder.runtime.budgets
        most = max(line.left for line in self.lines if not line.finished)
        if (
            self._recorded is None
            and self._uniforms is None
            and most >= budgets.graph_steps
            and can_record(decoder.runtime, decoder.model, self._cache)
        ):
            self._recorded = RecordedSteps(
                decoder.runtime, decoder.model, self._cache, self._tokens, self._mask, decoder.prefix, decoder.last
            )
        written = []
        for _ in range(min(budgets.steps, most)):
            if self._recorded:
                self._tokens = self._recorded.next()
                if not self._recorded.left:
                    self._end_recording()
            else:
                self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.lines), 1)], dim=1)
                self._tokens = decoder.next(self._tokens, self._mask, self._cache, self._numbers())
            written.append(self._tokens)
        self._keep(torch.cat(written, dim=1))

    def _keep(self, tokens: Tensor) -> None:
        """Keep what was written to the rows, (B, S)."""
        for line, written in zip(self.lines, tokens.tolist(), strict=True):
            line.append(written, self._decoder.eos)

    def _end_recording(self) -> None:
        """Stop recorded steps, because the batch is about to change."""
        if self._recorded:
            self._mask = torch.cat([self._mask, self._recorded.end()], dim=1)
            self._recorded = None


class Decoding:
    """Requests that are continued in one batch after another.

    Args:
        shared: tokens that all rows begin with.
        pieces: how much smaller than usual batches are.
        sampler: draws tokens; None for the most likely ones.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: Any,
        requests: Sequence[Request],
        eos: frozenset[int],
        shared: int,
        pieces: int,
        sampler: Sampler | None = None,
    ) -> None:
        self._runtime, self._model, self._shared = runtime, model, shared
        # The longest first, so that a batch too large for memory fails at once, and rows of a batch are padded little.
        self._lines = sorted(map(_Line, requests), key=lambda line: -line.request.length)
        last = max(request.length for request in requests) - 1
        self._decoder = _Decoder(runtime, model, requests[0].ids[:shared], last, eos, sampler)
        self._tokens = token_budget(runtime, model) // pieces

    def finished(self) -> WrittenRows:
        """The continuations of rows that have ended."""
        return {line.request: line.written for line in self._lines if line.finished}

    def run(self) -> None:
        """Continue every row."""
        with shared_attention(self._model) if self._shared else nullcontext():
            begin = 0
            while begin < len(self._lines):
                end = begin + self._rows(self._lines[begin])
                self._run_batch(_Batch(self._decoder, self._lines[begin:end]))
                begin = end

    def _run_batch(self, batch: _Batch) -> None:
        while alive := batch.alive:
            if alive <= (1 - self._runtime.budgets.turnover) * len(batch.lines):
                batch.drop_finished()
            batch.step()

    def _rows(self, longest: _Line) -> int:
        """How many rows of this length fit into one batch."""
        # What all rows share is held once.
        rows = self._tokens // (longest.request.length - self._shared)
        multiple = self._runtime.budgets.row_multiple
        return max(1, rows - rows % multiple if rows > multiple else rows)


def token_budget(runtime: Runtime, model: Any) -> int:
    """Tokens that one batch may hold in its cache."""
    budgets = runtime.budgets
    if runtime.device.type != "cuda":
        weights = sum(int(weight.nbytes) for weight in model.parameters())
        least, most = budgets.cache_bytes
        return max(1, min(budgets.cached_tokens, min(max(2 * weights, least), most) // cache_bytes(model)))
    free, _ = torch.cuda.mem_get_info(runtime.device)
    # What torch has set aside and does not use is free too.
    free += torch.cuda.memory_reserved(runtime.device) - torch.cuda.memory_allocated(runtime.device)
    return max(1, int(budgets.memory_share * free / bytes_per_token(model)))


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
