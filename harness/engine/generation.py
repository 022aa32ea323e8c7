"""One pass over all prompts of a benchmark, greedy or drawn, by the first way that suits the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from .capabilities import TriedWay, exact
from .decoding import Decoding, Request, Sampler, WrittenRows
from .kv_cache import attends_everywhere, new_cache
from .memory import in_pieces, lacks_memory
from .rounding import rounded_otherwise
from .runtime import Runtime


@torch.no_grad()
def greedy(
    runtime: Runtime,
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    eos: Sequence[int],
    begun: Sequence[tuple[int, ...]] = (),
) -> list[list[int]]:
    """The most likely continuation of every prompt, in the order given; see ``Engine.generate``."""
    model.eval()
    ends = frozenset(eos)
    begun = begun or [()] * len(prompts)
    requests = [Request.of(prompt, known, max_new_tokens, ends) for prompt, known in zip(prompts, begun, strict=True)]
    left = [request for request in dict.fromkeys(requests) if request.left]
    written = _Writer(runtime, model, ends).write(left) if left else {}
    return [[*request.known, *written.get(request, ())] for request in requests]


@torch.no_grad()
def drawn(
    runtime: Runtime,
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    eos: Sequence[int],
    samples: int,
    sampler: Sampler,
) -> list[list[list[int]]]:
    """Drawn continuations of every prompt, in the order given; see ``Engine.sample``."""
    model.eval()
    requests = [[Request(prompt, (), max_new_tokens, draw) for draw in range(samples)] for prompt in prompts]
    left = list(dict.fromkeys(request for of_prompt in requests for request in of_prompt))
    written = _Writer(runtime, model, frozenset(eos), sampler).write(left) if left else {}
    return [[written[request] for request in of_prompt] for of_prompt in requests]


@dataclass(frozen=True)
class _Way:
    """A way to write to rows, by name."""

    name: str
    tried: TriedWay
    write: Callable[[], WrittenRows]


class _Writer:
    """Writes to rows in batches where that suits the model, else to one row after another."""

    def __init__(self, runtime: Runtime, model: Any, ends: frozenset[int], sampler: Sampler | None = None) -> None:
        self.runtime, self.model, self.ends, self.sampler = runtime, model, ends, sampler
        self.able = runtime.capabilities(model)

    def write(self, requests: Sequence[Request]) -> WrittenRows:
        """The continuation of every row."""
        together = [request for request in requests if len(request.ids) + request.left <= self.able.longest]
        done = self._first_suited(together, self._batched(together)) if together else {}
        left = [request for request in requests if request not in done]
        if left and not self.sampler and not hasattr(self.model, "new_cache"):
            alone = _Way("each row alone", self.able.cached, lambda: {row: self._alone(row) for row in left})
            done |= self._first_suited(left, [alone])
        for request in left:
            if request not in done:
                done[request] = self._anew(request)
                self.runtime.counters.count("generation", "each row alone and without a cache")
        return done

    def _batched(self, requests: Sequence[Request]) -> list[_Way]:
        """The ways to write to rows together, the fastest first."""
        ways = [_Way("rows together", self.able.batched, lambda: self._in_batches(requests, 0))]
        least = self.runtime.budgets.shared_prefix
        shared = _shared_prefix([request.ids for request in requests], least)
        can_share = self.runtime.mechanisms.shared_prefix and attends_everywhere(self.model)
        if shared and can_share and new_cache(self.model, self.runtime).grows:
            name = "rows together after a shared beginning"
            ways.insert(0, _Way(name, self.able.shared, lambda: self._in_batches(requests, shared)))
        return ways

    def _first_suited(self, requests: Sequence[Request], ways: Sequence[_Way]) -> WrittenRows:
        """What the first way wrote that suits the model; nothing where none of them does."""
        shortest = min(len(request.ids) for request in requests)
        for way in ways:
            if not way.tried.fits:
                continue
            try:
                found = way.write()
            except Exception as error:
                if lacks_memory(error):
                    raise
                way.tried.found(False, 0, 0)
                continue
            width = max(len(request.ids) + len(line) for request, line in found.items())
            if not way.tried.covers(width, width - shortest):
                fits = self._as_alone(requests, found)
                # The first token comes of reading the prompt: it alone tells nothing of what is kept between steps.
                if not fits or max(map(len, found.values())) > 1:
                    way.tried.found(fits, width, width - shortest)
            if way.tried.fits:
                self.runtime.counters.count("generation", way.name)
                return found
        return {}

    def _as_alone(self, requests: Sequence[Request], found: WrittenRows) -> bool:
        """Whether every token of some rows is, up to rounding, the argmax of a pass with that row alone.

        Looked at are the longest and the shortest row, with what was written and without.
        """
        lengths = (lambda row: len(row.ids), lambda row: len(row.ids) + len(found[row]))
        rows = dict.fromkeys(some(requests, key=length) for length in lengths for some in (max, min))
        return all(self._row_as_alone(row, found[row]) for row in rows)

    def _row_as_alone(self, request: Request, line: Sequence[int]) -> bool:
        ids = (*request.ids, *line)
        where = range(len(request.ids) - 1, len(ids))
        follows = partial(self._drawn_from, self.sampler) if self.sampler else self._best_of
        logits = self.runtime.logits_alone(self.model, ids, where).float()  # (len(line) + 1, V)
        if follows(request, line, logits, logits):
            return True
        if exact(self.model, self.runtime.device):
            return False
        with rounded_otherwise(self.model):
            otherwise = self.runtime.logits_alone(self.model, ids, where).float()
        return follows(request, line, logits, otherwise)

    def _best_of(self, request: Request, line: Sequence[int], logits: Tensor, otherwise: Tensor) -> bool:
        """Whether every token is the argmax of the row alone, up to rounding.

        Args:
            otherwise: (len(line) + 1, V) its logits with other rounding.
        """
        written = torch.tensor(line, dtype=torch.long, device=logits.device)
        best, first = logits.max(-1)
        chosen = logits[:-1].gather(1, written[:, None])[:, 0]
        gaps = (best[:-1] - chosen).tolist()
        if len(line) < request.left:
            gaps.append(float(best[-1] - logits[-1, list(self.ends)].amax()))
        scale = max(1.0, float(best.abs().amax()))
        moved = (otherwise - logits).abs()
        rounding = max(float(moved.gather(1, some[:, None]).amax()) for some in (first, written) if len(some))
        # Half precision rounds logits to a few parts in a thousand, twice. A tenth of them is no rounding.
        least = 1e-4 if exact(self.model, self.runtime.device) else 0.02
        slack = max(least * scale, min(rounding, 0.1 * scale))
        return not any(gap > slack for gap in gaps)

    def _drawn_from(
        self, sampler: Sampler, request: Request, line: Sequence[int], logits: Tensor, otherwise: Tensor
    ) -> bool:
        """Whether every token covers its number in the distribution of the row alone, up to rounding."""
        cumulative, moved = (torch.nn.functional.pad(sampler.cumulative(each), (1, 0)) for each in (logits, otherwise))
        rounding = float((moved - cumulative).abs().amax())  # of (len(line) + 1, V + 1)
        least = 1e-3 if exact(self.model, self.runtime.device) else 0.05
        slack = max(least, min(rounding, 0.2))

        def covers(place: int, token: int) -> bool:
            low, high = cumulative[place, token : token + 2].tolist()
            return not (uniforms[place] < low - slack or uniforms[place] > high + slack)

        uniforms = sampler.uniforms(request)
        ended = len(line) == request.left or any(covers(len(line), token) for token in self.ends)
        return ended and all(covers(place, token) for place, token in enumerate(line))

    def _in_batches(self, requests: Sequence[Request], shared: int) -> WrittenRows:
        """Rows that are read and written together; the first ``shared`` tokens of all are the same."""
        found: WrittenRows = {}

        def generate(pieces: int) -> None:
            left = [request for request in requests if request not in found]
            decoding = Decoding(self.runtime, self.model, left, self.ends, shared, pieces, self.sampler)
            try:
                decoding.run()
            finally:
                found.update(decoding.finished())

        in_pieces(generate, self.runtime.counters)
        return found

    def _alone(self, request: Request) -> list[int]:
        """What the model's own ``generate`` writes to one row, with whatever cache or state it keeps."""
        self.runtime.rewind(self.model)
        ids = torch.tensor([request.ids], device=self.runtime.device)
        # Nothing of its own settings (penalties, forced tokens, sampling) may change the argmax.
        before, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            options = GenerationConfig(
                max_new_tokens=request.left, do_sample=False, eos_token_id=sorted(self.ends) or None, pad_token_id=0
            )
            written = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)
        finally:
            self.model.generation_config = before
        return list(takewhile(lambda token: token not in self.ends, written[0, len(request.ids) :].tolist()))

    def _anew(self, request: Request) -> list[int]:
        """Write to a row with a pass over the whole row for every token, which any model supports."""
        line: list[int] = []
        uniforms = torch.tensor(self.sampler.uniforms(request)) if self.sampler else None
        while len(line) < request.left:
            ids = (*request.ids, *line)
            logits = self.runtime.logits_alone(self.model, ids, range(len(ids) - 1, len(ids)))  # (1, V)
            if self.sampler and uniforms is not None:
                token = int(self.sampler.choose(logits.cpu(), uniforms[len(line)].view(1, 1)))
            else:
                token = int(logits.argmax())
            if token in self.ends:
                break
            line.append(token)
        return line


def _shared_prefix(prompts: Sequence[tuple[int, ...]], least: int) -> int:
    """Tokens that all prompts begin with, less than the shortest one; 0 where they are fewer than ``least``."""
    if len(prompts) < 2:
        return 0
    # What the first and the last in order share, all share.
    pairs = zip(min(prompts), max(prompts), strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    shared = min(common, min(len(prompt) for prompt in prompts) - 1)
    return shared if shared >= least else 0
