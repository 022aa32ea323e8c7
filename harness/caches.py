"""Keys and values of a batch that is generated: they grow without being copied, and rows leave and join."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# Columns added at once where there is no room left: growing one by one would copy everything at every step.
ROOM = 64


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (B, H, L, D), which are the first columns of a longer block of memory."""

    prefix: tuple[Tensor, Tensor] | None = None
    """Keys and values that stand before every row's own, (1, H, P, D); only ``prefixes.attention`` looks there."""
    _block: tuple[Tensor, Tensor] | None = None
    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        length = held + key_states.shape[-2]
        if self._block is None or self._block[0].shape[-2] < length:
            old = (self.keys, self.values)
            key_block, value_block = (
                new.new_empty((*new.shape[:2], length + ROOM, new.shape[-1])) for new in (key_states, value_states)
            )
            self._block = (key_block, value_block)
            for block, part in zip(self._block, old, strict=True):
                if held:
                    block[..., :held, :] = part
        self.keys, self.values = (block[..., :length, :] for block in self._block)
        self.keys[..., held:, :] = key_states
        self.values[..., held:, :] = value_states
        if self.prefix is not None:
            self.keys.prefix = self.prefix
        return self.keys, self.values

    def replaced(self, keys: Tensor, values: Tensor) -> None:
        """Hold these, whatever was held before."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys, self.values, self._block = keys, values, None


class RowCache(DynamicCache):  # type: ignore[misc]
    """The cache of one model. Rows end at the last column: shorter ones are padded on the left."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self._config = config
        self.layers: list[Any] = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]

    @property
    def joins(self) -> bool:
        """Whether other rows can join; layers with a window or a state of their own keep to their batch."""
        return all(isinstance(layer, GrowingLayer) for layer in self.layers)

    def following(self) -> RowCache:
        """An empty cache of rows that all come after the single one of this; layers must join."""
        fresh = RowCache(self._config)
        for new, layer in zip(fresh.layers, self.layers, strict=True):
            new.prefix = (layer.keys, layer.values)
        return fresh

    def select(self, rows: Tensor, drop: int = 0) -> None:
        """Keep these rows, without the first ``drop`` columns, which layers that do not join must have kept."""
        for layer in self.layers:
            if isinstance(layer, GrowingLayer):
                layer.replaced(layer.keys[rows, :, drop:], layer.values[rows, :, drop:])
            else:
                layer.batch_select_indices(rows)

    def join(self, other: RowCache) -> None:
        """Take the rows of another cache in below one's own."""
        for mine, new in zip(self.layers, other.layers, strict=True):
            mine.replaced(joined(mine.keys, new.keys), joined(mine.values, new.values))


class PairOfCaches:
    """The caches of two models that answer together, changed together."""

    def __init__(self, *caches: RowCache) -> None:
        self._caches = caches

    def __iter__(self) -> Any:
        return iter(self._caches)

    @property
    def joins(self) -> bool:
        return all(cache.joins for cache in self._caches)

    def following(self) -> PairOfCaches:
        return PairOfCaches(*(cache.following() for cache in self._caches))

    def select(self, rows: Tensor, drop: int = 0) -> None:
        for cache in self._caches:
            cache.select(rows, drop)

    def join(self, other: PairOfCaches) -> None:
        for mine, new in zip(self, other, strict=True):
            mine.join(new)


def joined(one: Tensor, other: Tensor) -> Tensor:
    """(A, …, L, D) and (B, …, M, D) → (A + B, …, max(L, M), D): rows below rows, padded on the left with zeros."""
    length = max(one.shape[-2], other.shape[-2])
    found = one.new_zeros((one.shape[0] + other.shape[0], *one.shape[1:-2], length, one.shape[-1]))
    found[: one.shape[0], ..., length - one.shape[-2] :, :] = one
    found[one.shape[0] :, ..., length - other.shape[-2] :, :] = other
    return found


def new_cache(model: Any) -> Any:
    """An empty cache; a model of several has its own kind."""
    return model.new_cache() if hasattr(model, "new_cache") else RowCache(model.config)


def attends_everywhere(model: Any) -> bool:
    """Whether padding between a shared beginning and the rest is harmless: a sliding window would count it."""
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(model.config, "sliding_window", None) is None
