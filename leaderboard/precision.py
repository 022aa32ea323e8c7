"""Numbers as tables show them: one precision a column, a dash for what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

MINUS = "−"


@dataclass(frozen=True)
class Precision:
    """How the numbers of one column are written.

    Args:
        decimals: behind the point.
        powers: two digits and, where a number is below 0.001, a power of ten: for p-values.
    """

    decimals: int = 3
    powers: bool = False

    def __call__(self, value: float) -> str:
        """A number in words; very large ones as powers of ten, a dash for NaN."""
        if math.isnan(value):
            return "–"
        if math.isinf(value):
            return "∞" if value > 0 else f"{MINUS}∞"
        if abs(value) >= 1e5 or (self.powers and value and abs(value) < 1e-3):
            text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
        else:
            text = f"{value:.{self.decimals}f}"
        # Rounded to nothing, a number has no sign.
        return (
            text.replace("-", MINUS)
            if any(digit in text.partition("e")[0] for digit in "123456789")
            else text.lstrip("-")
        )

    def range(self, interval: tuple[float, float]) -> str:
        """An interval: ``0.88–0.95``, and in words where a minus would meet the dash: ``−7.5 to −1.7``."""
        low, high = map(self, interval)
        return f"{low} to {high}" if MINUS in low + high else f"{low}–{high}"


SHARES = Precision(3)
"""Score, forgetting and utility."""


def precision_of(values: Iterable[float], powers: bool = False) -> Precision:
    """The precision of a column: three decimals below ten, one above, none from a thousand on, by the middle value."""
    found = [abs(value) for value in values if math.isfinite(value)]
    middle = median(found) if found else 0.0
    return Precision(3 if middle < 10 else 1 if middle < 1000 else 0, powers)


def formatted(value: float) -> str:
    """A number that stands in no column: four decimals below ten and one above, small and large as powers of ten."""
    return Precision(4 if abs(value) < 10 else 1, powers=True)(value)
