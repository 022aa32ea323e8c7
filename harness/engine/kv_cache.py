"""Keys and values of a batch that is generated: they grow without being copied, and rows leave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .._compat import can_select, select_rows, share_prefix
from .capabilities import text_config
from .runtime import Runtime

# Rows moved at a time within a block.
MOVED_ROWS = 16


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (B, H, L, D): the first rows and columns of a block of memory that stays.

    Tensors of varying sizes fragment the allocator.

    Args:
        growth: columns added at once where nobody said how many come; 0 keeps no block and copies at every step.
    """

    prefix: tuple[Tensor, Tensor] | None = None
    """Keys and values before every row's own, (1, H, P, D); only ``shared_prefix.attention`` reads them."""
    column: Tensor | None = None
    """The column that the next step writes, in a cache of fixed size; None where steps add columns."""
    expected: tuple[int, int] = (0, 0)
    """Rows and columns that a new block has at least."""
    _blocks: tuple[Tensor, Tensor] | None = None
    keys: Tensor
    values: Tensor

    def __init__(self, growth: int) -> None:
        super().__init__()
        self._growth = growth

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.column is not None:
            self.keys.index_copy_(-2, self.column, key_states)
            self.values.index_copy_(-2, self.column, value_states)
            return self.keys, self.values
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        self._hold(len(key_states), held + key_states.shape[-2], (key_states, value_states))
        self.keys[..., held:, :] = key_states
        self.values[..., held:, :] = value_states
        return self.keys, self.values

    def _hold(self, rows: int, length: int, like: tuple[Tensor, Tensor]) -> None:
        """Hold so many rows and columns. Those held before keep their values; the others are uninitialised."""
        held = self.get_seq_length()
        full = self._blocks is None or self._blocks[0].shape[0] < rows or self._blocks[0].shape[2] < length
        if full or not self._growth:
            most, longest = self.expected if self._growth else (0, 0)
            sizes = (max(rows, most), max(length + (self._growth if held else 0), longest))
            old = (self.keys, self.values) if held else ()
            key_block, value_block = (new.new_empty((sizes[0], new.shape[1], sizes[1], new.shape[-1])) for new in like)
            self._blocks = (key_block, value_block)
            for block, part in zip(self._blocks, old, strict=False):
                block[: len(part), :, :held] = part[:rows, :, :length]
        assert self._blocks is not None
        self.keys, self.values = (block[:rows, :, :length] for block in self._blocks)
        if self.prefix is not None:
            share_prefix(self.keys, self.prefix)

    def select(self, rows: Tensor, drop: int) -> None:
        """Keep these rows, in ascending order, without the first ``drop`` columns."""
        parts, length = (self.keys, self.values), self.get_seq_length() - drop
        for part in parts:
            for begin in range(0, len(rows), MOVED_ROWS):
                some = rows[begin : begin + MOVED_ROWS]
                part[begin : begin + len(some), :, :length] = part[some, :, drop:]
        self._hold(len(rows), length, parts)

    def spread(self, rows: Tensor) -> None:
        """Hold these rows, each as often as it is named."""
        parts = (self.keys[rows], self.values[rows])
        self._hold(len(rows), self.get_seq_length(), parts)
        self.keys[:], self.values[:] = parts

    def reserve(self, room: int, column: Tensor) -> None:
        """Hold ``room`` further columns, and write to the one that ``column`` names."""
        held = self.get_seq_length()
        self._hold(len(self.keys), held + room, (self.keys, self.values))
        # 0 × NaN is NaN: a masked column must not hold uninitialised memory.
        self.keys[..., held:, :] = 0
        self.values[..., held:, :] = 0
        self.column = column

    def resume_growth(self, length: int) -> None:
        """Hold the first ``length`` columns, and add to them again."""
        self.column = None
        self._hold(len(self.keys), length, (self.keys, self.values))


class KVCache(DynamicCache):  # type: ignore[misc]
    """The cache of one model. Rows end at the last column: shorter ones are padded on the left.

    Args:
        growth: as a layer's.
    """

    def __init__(self, config: Any, growth: int = 64) -> None:
        super().__init__(config=config)
        self._config, self._growth = config, growth
        self.layers: list[Any] = [
            GrowingLayer(growth) if type(layer) is DynamicLayer else layer for layer in self.layers
        ]

    @property
    def grows(self) -> bool:
        """Whether all layers are growing ones; layers with a window or a state of their own are not."""
        return all(isinstance(layer, GrowingLayer) for layer in self.layers)

    @property
    def can_select(self) -> bool:
        """Whether rows can leave; a layer with a state of its own may have no way to."""
        return all(isinstance(layer, GrowingLayer) or can_select(layer) for layer in self.layers)

    def fork_prefix(self) -> KVCache:
        """An empty cache of rows that all come after the single one of this; every layer must be a growing one."""
        fresh = KVCache(self._config, self._growth)
        for new, layer in zip(fresh.layers, self.layers, strict=True):
            new.prefix = (layer.keys, layer.values)
        return fresh

    def expect(self, rows: int, columns: int) -> None:
        """Allocate for as many at once; layers that do not grow ignore it."""
        for layer in self.layers:
            if isinstance(layer, GrowingLayer):
                layer.expected = (rows, columns)

    def reserve(self, room: int, column: Tensor) -> None:
        """Hold room for so many steps, each of which writes to the column that ``column`` names."""
        for layer in self.layers:
            layer.reserve(room, column)

    def resume_growth(self, length: int) -> None:
        """Hold what stands in the first ``length`` columns, and grow again."""
        for layer in self.layers:
            layer.resume_growth(length)

    def select(self, rows: Tensor, drop: int = 0) -> None:
        """Keep these rows, without the first ``drop`` columns, which other layers than growing ones must have kept."""
        for layer in self.layers:
            if isinstance(layer, GrowingLayer):
                layer.select(rows, drop)
            else:
                select_rows(layer, rows)

    def spread(self, rows: Tensor) -> None:
        """Hold these rows, each as often as it is named."""
        for layer in self.layers:
            if isinstance(layer, GrowingLayer):
                layer.spread(rows)
            else:
                select_rows(layer, rows)


class PairedKVCache:
    """The caches of two models that answer together, changed together."""

    def __init__(self, *caches: KVCache) -> None:
        self._caches = caches

    def __iter__(self) -> Iterator[KVCache]:
        return iter(self._caches)

    @property
    def grows(self) -> bool:
        return all(cache.grows for cache in self._caches)

    @property
    def can_select(self) -> bool:
        return all(cache.can_select for cache in self._caches)

    def fork_prefix(self) -> PairedKVCache:
        return PairedKVCache(*(cache.fork_prefix() for cache in self._caches))

    def expect(self, rows: int, columns: int) -> None:
        for cache in self._caches:
            cache.expect(rows, columns)

    def select(self, rows: Tensor, drop: int = 0) -> None:
        for cache in self._caches:
            cache.select(rows, drop)

    def spread(self, rows: Tensor) -> None:
        for cache in self._caches:
            cache.spread(rows)


def new_cache(model: Any, runtime: Runtime) -> Any:
    """An empty cache; a model of several has its own kind."""
    if hasattr(model, "new_cache"):
        return model.new_cache()
    return KVCache(model.config, runtime.budgets.cache_growth if runtime.mechanisms.growing_cache else 0)


def attends_everywhere(model: Any) -> bool:
    """Whether padding between a shared beginning and the rest is harmless: a sliding window would count it."""
    config = text_config(model)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None
