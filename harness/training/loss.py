"""A loss as terms: sums, each with the name of what it is averaged over.

The loop divides by the counts of the whole optimiser batch, so batch 4 × accumulation 1 and batch 1 × accumulation 4
give the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..engine.batch import TokenBatch
from ..errors import PluginError
from ..plugin.parameters import Training


@dataclass(frozen=True)
class Term:
    """One summand of a loss.

    Args:
        value: scalar, a **sum** over what ``per`` counts.
        per: what the sum is averaged over: ``"<part> tokens"`` (answer tokens), ``"<part> rows"``,
            ``"<part> positions"`` (padded length × rows), ``"batches"`` (forward passes), or several of them,
            whose counts are added.
        weight: coefficient of the averaged term.
    """

    value: Tensor
    per: str | tuple[str, ...]
    weight: float = 1.0


class Batch:
    """One forward pass: a Rows per part, as attributes (``batch.forget``, ``batch.retain``, …).

    ``original`` is the frozen original model where the method declared ``Requires(original="model")``.
    """

    def __init__(self, parts: Mapping[str, TokenBatch], original: Any = None) -> None:
        self.parts = dict(parts)
        self.original = original

    def __len__(self) -> int:
        return min(map(len, self.parts.values()))

    def __getattr__(self, part: str) -> TokenBatch:
        try:
            return self.__dict__["parts"][part]  # type: ignore[no-any-return]
        except KeyError:
            drawn = ", ".join(self.__dict__.get("parts", {}))
            declared = f"; declare requires = Requires({part}=True)" if part in ("retain", "template") else ""
            raise AttributeError(f"this batch has no part {part!r} (drawn: {drawn}){declared}") from None

    def halves(self) -> list[Batch]:
        """The batch in two, each with half of what was drawn for it; itself alone where one row was drawn."""
        return [part for number in range(2) if (part := self.share(number, 2))]

    def share(self, number: int, count: int) -> Batch | None:
        """The part of process ``number`` of ``count``, by rows drawn; None where there are not enough.

        Shares have every row of every part once, and rows drawn together stay together.
        """
        drawn = len(self)
        first, end = drawn * number // count, drawn * (number + 1) // count
        if first == end:
            return None
        return Batch(
            {
                name: rows.between(len(rows) * first // drawn, len(rows) * end // drawn)
                for name, rows in self.parts.items()
            },
            self.original,
        )

    def counts(self) -> dict[str, int]:
        """What terms can be averaged over."""
        found = {"batches": 1}
        for name, rows in self.parts.items():
            found[f"{name} rows"] = len(rows)
            found[f"{name} tokens"] = rows.scored_tokens
            found[f"{name} positions"] = rows.labels.numel()
        return found


@dataclass(frozen=True)
class Objective(Training):
    """A loss with the hyperparameters it is minimised by: what the training loop knows of a method."""

    edition: str = field(default="paper", metadata={"summary": "which definition of the loss"})

    name: ClassVar[str]

    def loss(self, model: Any, batch: Batch) -> Iterable[Term]:
        """The terms of the loss on one batch."""
        raise NotImplementedError

    @property
    def is_batch_coupled(self) -> bool:
        """True where the loss mixes the rows of a forward pass, so that it is another with other batches."""
        return False


def loss_of(terms: Iterable[Term], counts: Mapping[str, int], name: str) -> Tensor:
    """The weighted sum of the averaged terms.

    Raises:
        PluginError: a term names a count that the batch does not have, or is not a scalar.
    """
    total: Tensor | None = None
    for term in terms:
        named = (term.per,) if isinstance(term.per, str) else term.per
        unknown = [count for count in named if count not in counts]
        if unknown or not isinstance(term.value, Tensor) or term.value.ndim:
            fault = f"names {unknown[0]!r}" if unknown else "is not a scalar tensor"
            raise PluginError(name, f"a loss term {fault}; counts are: {', '.join(sorted(counts))}")
        value = term.weight * term.value / sum(counts[count] for count in named)
        total = value if total is None else total + value
    if total is None:
        raise PluginError(name, "loss yields no term")
    return total
