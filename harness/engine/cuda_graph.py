"""A decoding step that is recorded once as a CUDA graph and replayed: a small batch is then bound by memory, and not
by the hundreds of kernels that Python launches for each token.

A graph repeats work on the same addresses and sizes. So the cache does not grow while a batch keeps its rows: it has
room for the steps to come, keys are written at a column that a tensor names, and a mask hides the columns after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._compat import cache_keyword
from .kv_cache import KVCache
from .memory import lacks_memory
from .runtime import Runtime


def can_record(runtime: Runtime, model: Any, cache: Any) -> bool:
    """Whether the steps of a model with such a cache are to be recorded."""
    return (
        runtime.mechanisms.cuda_graph
        and runtime.device.type == "cuda"
        and isinstance(cache, KVCache)
        and cache.grows
        and runtime.capabilities(model).repeats is not False
    )


class RecordedSteps:
    """The next steps of a batch whose rows stay.

    Args:
        cache: its rows' keys and values, L columns.
        tokens: (B, 1), those written last, which the model has not read yet.
        mask: (B, L), 1 where a column is a row's own.
        first: the position of a row's first own column.
        last: the last position that a row may have; one that is finished waits there.
    """

    def __init__(
        self, runtime: Runtime, model: Any, cache: KVCache, tokens: Tensor, mask: Tensor, first: int, last: int
    ) -> None:
        self.model, self.cache, self.last = model, cache, last
        self._counters, self._able = runtime.counters, runtime.capabilities(model)
        self._room = runtime.budgets.graph_columns
        self.begin = mask.shape[1]
        self.written = 0
        self.tokens = tokens.clone()
        self.positions = mask.sum(-1, keepdim=True) + first
        self.column = torch.tensor([self.begin], device=tokens.device)
        hidden = torch.finfo(model.dtype).min
        self.mask = torch.full(
            (len(mask), 1, 1, self.begin + self._room), hidden, dtype=model.dtype, device=mask.device
        )
        self.mask[..., : self.begin].masked_fill_(mask.bool()[:, None, None], 0.0)
        cache.reserve(self._room, self.column)
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def left(self) -> int:
        """Steps for which there is room."""
        return self._room - self.written

    def next(self) -> Tensor:
        """(B, 1) the argmax tokens that follow."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._step()
            if self.written == 0 and self.tokens.device.type == "cuda":
                self._record()
        self.written += 1
        return self.tokens.clone()

    def end(self) -> Tensor:
        """Let the cache grow again; returns the (B, written) ones that the mask lacks."""
        self._graph = None
        self.cache.resume_growth(self.begin + self.written)
        return torch.ones((len(self.tokens), self.written), dtype=torch.long, device=self.tokens.device)

    def _step(self) -> None:
        self.mask.index_fill_(-1, self.column, 0.0)
        logits = self.model(
            input_ids=self.tokens,
            attention_mask=self.mask,
            position_ids=self.positions.clamp(max=self.last),
            **{cache_keyword(self.model): self.cache},
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self.tokens.copy_(logits[:, -1].argmax(-1, keepdim=True))
        self.positions.add_(1)
        self.column.add_(1)

    def _record(self) -> None:
        """Record a step. The first step has run before, since kernels that warm up cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        lacked = False
        try:
            with torch.cuda.graph(graph):
                self._step()
            if self._able.repeats is None:
                self._able.repeats = self._repeats(graph)
        except RuntimeError as error:
            # A batch that leaves no memory for a graph tells nothing of the next one. What waits for the device, or
            # depends on its numbers, cannot be recorded at all.
            lacked = lacks_memory(error)
            if not lacked:
                self._able.repeats = False
        torch.cuda.synchronize()
        if self._able.repeats and not lacked:
            self._graph = graph
        self._counters.count("decoding", "recorded" if self._graph else "step by step")

    def _repeats(self, graph: torch.cuda.CUDAGraph) -> bool:
        """Whether the graph writes what the model writes; the batch is restored afterwards."""
        stood = [tensor.clone() for tensor in (self.tokens, self.positions, self.column, self.mask)]

        def back() -> Tensor:
            written = self.tokens.clone()
            for tensor, value in zip((self.tokens, self.positions, self.column, self.mask), stood, strict=True):
                tensor.copy_(value)
            return written

        graph.replay()
        replayed = back()
        self._step()
        return bool(torch.equal(replayed, back()))
