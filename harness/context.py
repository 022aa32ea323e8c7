"""What a plugin is handed beside data: seeds, device, log, and the original model where it is declared."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .batches import Encoder
from .errors import UndeclaredAccess
from .tables import Row

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Mixed precisions by accelerate's names: float32 weights, forward passes in the compute type."""


def derived_seed(seed: int, *purpose: str) -> int:
    """A seed for one purpose, by hashing: no result depends on what ran before it."""
    text = "\0".join([str(seed), *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


@dataclass
class Meter:
    """What a training run spent."""

    optimiser_steps: int = 0
    fastest_step: float | None = None
    """Processor seconds, of all threads; None where the work is done by a GPU."""
    tokens: int = 0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Preparation:
    """What ``Benchmark.prepare`` is given.

    ``encoder(corpus)`` is the model's encoder; a model from scratch builds its vocabulary from ``corpus``.
    ``pretrained`` is False for a model from scratch, which knows only what its reference models are trained on.
    ``generated`` is True where the tables are invented.
    """

    tables: Mapping[str, list[Row]]
    encoder: Callable[[Iterable[str]], Encoder]
    pretrained: bool = True
    generated: bool = False


class Context:
    """What ``unlearn`` and ``measure`` are given."""

    def __init__(
        self,
        name: str,
        seed: int,
        device: torch.device | str = "cpu",
        log: Callable[[str], None] = print,
        original: Any = None,
        autocast: str = "no",
    ) -> None:
        self.seed = seed
        self.device = torch.device(device)
        self.log = log
        self.autocast = autocast
        self.meter = Meter()
        self._name = name
        self._original = original

    @property
    def original(self) -> Any:
        """A frozen copy of the original model. Raises UndeclaredAccess unless the method declared it."""
        if self._original is None:
            raise UndeclaredAccess(self._name, 'touched ctx.original; declare Requires(original="model")')
        return self._original

    def for_request(self, original: Any, name: str = "") -> Context:
        """The same context with another frozen original model, and the same meter."""
        fresh = Context(name or self._name, self.seed, self.device, self.log, original, self.autocast)
        fresh.meter = self.meter
        return fresh

    def rng(self, purpose: str) -> random.Random:
        """A random stream of this cell's own, one per purpose."""
        return random.Random(derived_seed(self.seed, self._name, purpose))
