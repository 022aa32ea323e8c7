"""Keys and values of a batch that is generated: they grow without being copied, and rows leave and join."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .capabilities import text_config

# Columns added at once where there is no room left and nobody said how many come.
ROOM = 64
# Rows moved at a time within a block.
MOVED = 16


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (B, H, L, D): the first rows and columns of a block of memory that stays.

    Blocks of ever other sizes would leave holes behind that no later one fits into.
    """

    prefix: tuple[Tensor, Tensor] | None = None
    """Keys and values that stand before every row's own, (1, H, P, D); only ``prefixes.attention`` looks there."""
    column: Tensor | None = None
    """The column that is written next, where all that is held is attended to; None where columns are added."""
    expected: tuple[int, int] = (0, 0)
    """Rows and columns that a new block has at least."""
    _blocks: tuple[Tensor, Tensor] | None = None
    keys: Tensor
    values: Tensor

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
        """Hold so many rows and columns; those there before keep what they have, and others have anything."""
        held = self.get_seq_length()
        if self._blocks is None or self._blocks[0].shape[0] < rows or self._blocks[0].shape[2] < length:
            most, longest = self.expected
            sizes = (max(rows, most), max(length + (ROOM if held else 0), longest))
            old = (self.keys, self.values) if held else ()
            key_block, value_block = (new.new_empty((sizes[0], new.shape[1], sizes[1], new.shape[-1])) for new in like)
            self._blocks = (key_block, value_block)
            for block, part in zip(self._blocks, old, strict=False):
                block[: len(part), :, :held] = part
        self.keys, self.values = (block[:rows, :, :length] for block in self._blocks)
        if self.prefix is not None:
            self.keys.prefix = self.prefix

    def select(self, rows: Tensor, drop: int) -> None:
        """Keep these rows, in ascending order, without the first ``drop`` columns."""
        parts, length = (self.keys, self.values), self.get_seq_length() - drop
        for part in parts:
            for begin in range(0, len(rows), MOVED):
                some = rows[begin : begin + MOVED]
                part[begin : begin + len(some), :, :length] = part[some, :, drop:]
        self._hold(len(rows), length, parts)

    def join(self, other: GrowingLayer) -> None:
        """Take the rows of another in below one's own; the shorter ones are padded on the left with zeros."""
        count, held, more = len(self.keys), self.get_seq_length(), other.get_seq_length()
        length = max(held, more)
        self._hold(count + len(other.keys), length, (self.keys, self.values))
        for part, new in ((self.keys, other.keys), (self.values, other.values)):
            for begin in range(0, count if held < length else 0, MOVED):
                moved = part[begin : min(begin + MOVED, count)]
                moved[:, :, length - held :] = moved[:, :, :held].clone()
                moved[:, :, : length - held] = 0
            part[count:, :, : length - more] = 0
            part[count:, :, length - more :] = new

    def reserve(self, room: int, column: Tensor) -> None:
        """Hold ``room`` further columns, and write to the one that ``column`` names."""
        held = self.get_seq_length()
        self._hold(len(self.keys), held + room, (self.keys, self.values))
        # A masked column is multiplied by 0, which not every number survives.
        self.keys[..., held:, :] = 0
        self.values[..., held:, :] = 0
        self.column = column

    def resume_growth(self, length: int) -> None:
        """Hold the first ``length`` columns, and add to them again."""
        self.column = None
        self._hold(len(self.keys), length, (self.keys, self.values))


class KVCache(DynamicCache):  # type: ignore[misc]
    """The cache of one model. Rows end at the last column: shorter ones are padded on the left."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self._config = config
        self.layers: list[Any] = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]

    @property
    def joins(self) -> bool:
        """Whether other rows can join; layers with a window or a state of their own keep to their batch."""
        return all(isinstance(layer, GrowingLayer) for layer in self.layers)

    @property
    def selects(self) -> bool:
        """Whether rows can leave; a layer with a state of its own may have no way to."""
        return all(isinstance(layer, GrowingLayer) or hasattr(layer, "batch_select_indices") for layer in self.layers)

    def following(self) -> KVCache:
        """An empty cache of rows that all come after the single one of this; layers must join."""
        fresh = KVCache(self._config)
        for new, layer in zip(fresh.layers, self.layers, strict=True):
            new.prefix = (layer.keys, layer.values)
        return fresh

    def expect(self, rows: int, columns: int) -> None:
        """Have room for as many, as soon as more than there is are needed."""
        for layer in self.layers:
            layer.expected = (rows, columns)

    def reserve(self, room: int, column: Tensor) -> None:
        """Hold room for so many steps, each of which writes to the column that ``column`` names; layers must join."""
        for layer in self.layers:
            layer.reserve(room, column)

    def resume_growth(self, length: int) -> None:
        """Hold what stands in the first ``length`` columns, and grow again."""
        for layer in self.layers:
            layer.resume_growth(length)

    def select(self, rows: Tensor, drop: int = 0) -> None:
        """Keep these rows, without the first ``drop`` columns, which layers that do not join must have kept."""
        for layer in self.layers:
            if isinstance(layer, GrowingLayer):
                layer.select(rows, drop)
            else:
                layer.batch_select_indices(rows)

    def join(self, other: KVCache) -> None:
        """Take the rows of another cache in below one's own."""
        for mine, new in zip(self.layers, other.layers, strict=True):
            mine.join(new)


class PairedKVCache:
    """The caches of two models that answer together, changed together."""

    def __init__(self, *caches: KVCache) -> None:
        self._caches = caches

    def __iter__(self) -> Any:
        return iter(self._caches)

    @property
    def joins(self) -> bool:
        return all(cache.joins for cache in self._caches)

    @property
    def selects(self) -> bool:
        return all(cache.selects for cache in self._caches)

    def following(self) -> PairedKVCache:
        return PairedKVCache(*(cache.following() for cache in self._caches))

    def expect(self, rows: int, columns: int) -> None:
        for cache in self._caches:
            cache.expect(rows, columns)

    def select(self, rows: Tensor, drop: int = 0) -> None:
        for cache in self._caches:
            cache.select(rows, drop)

    def join(self, other: PairedKVCache) -> None:
        for mine, new in zip(self, other, strict=True):
            mine.join(new)


def new_cache(model: Any) -> Any:
    """An empty cache; a model of several has its own kind."""
    return model.new_cache() if hasattr(model, "new_cache") else KVCache(model.config)


def attends_everywhere(model: Any) -> bool:
    """Whether padding between a shared beginning and the rest is harmless: a sliding window would count it."""
    config = text_config(model)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None
