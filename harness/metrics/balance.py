"""Forgetting and utility between 0 and 1, and the score, their harmonic mean.

A benchmark says with ``Metric.part_of`` which of its metrics are parts of which number. All three take values of one
model, or (R,) values over resampled rows, which then give (R,) results.

- **Forgetting** is the share of the way from the original to the retained model that is done. The distance of a model
  from the retained one is the sum over the parts of how far each is from the retained model's value, divided by the
  part's span; forgetting is 1 − distance / the original's distance, between 0 and 1. Parts that tell the two references
  apart weigh more than parts that do not, and none can be divided by almost nothing.
- **Utility** is the harmonic mean over the parts of value / the original's value (its inverse where lower is better),
  at most 1. A collapse in one part is a collapse.
- The **score** is the harmonic mean of both: 0 for the original, which forgets nothing, and for a model that collapses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ..domain import Direction
from .statistics import LEVEL, Floats


class Part(Protocol):
    """What of a metric's declaration decides how it is part of forgetting or utility."""

    @property
    def better(self) -> Direction: ...
    @property
    def span(self) -> float: ...
    @property
    def two_sided(self) -> bool: ...


Parts = Mapping[str, Part]
"""Parts by the name of their metric."""
Values = Mapping[str, Any]
"""A value, or (R,) resampled values, for each part's name."""


def distance(model: Values, retained: Values, parts: Parts) -> Floats:
    """How far a model is from the retained one: 0 at the same values, at most 1 for each part.

    A part that is not ``two_sided`` counts only what still remains to forget.
    """
    total = np.asarray(0.0)
    for name, part in parts.items():
        remains = (np.asarray(model[name]) - np.asarray(retained[name])) / part.span
        if part.two_sided:
            remains = np.abs(remains)
        else:
            remains = np.maximum(-remains if part.better == "higher" else remains, 0.0)
        total = total + remains
    return total


def told_apart(original: Values, retained: Values, parts: Parts) -> bool:
    """Whether resamples tell the original model from the retained one in any part, at 95 % over all parts together.

    Takes resampled values. A distance is positive by chance alone, so that its size does not answer this.
    """
    share = (1 - LEVEL) / 2 / max(len(parts), 1)
    for name, part in parts.items():
        low, high = np.quantile(np.asarray(original[name]) - np.asarray(retained[name]), [share, 1 - share])
        knows_more = high < 0 if part.better == "higher" else low > 0
        if knows_more or (part.two_sided and (low > 0 or high < 0)):
            return True
    return False


def forgetting(model: Values, original: Values, retained: Values, parts: Parts) -> Floats:
    """The share of the way from the original to the retained model that is done, from 0 to 1.

    0 also where the references do not differ, so that nothing can be forgotten.
    """
    return kept_forgotten(model, retained, original, retained, parts)


def kept_forgotten(
    attacked: Values, attacked_retained: Values, original: Values, retained: Values, parts: Parts
) -> Floats:
    """Forgetting under an attack, from 0 to 1: 1 − distance of the attacked models / distance of the references.

    Args:
        attacked, attacked_retained: the model and the retained model under the attack.
        original, retained: the reference models without it.
    """
    left, whole = np.broadcast_arrays(distance(attacked, attacked_retained, parts), distance(original, retained, parts))
    back = np.divide(left, whole, out=np.ones_like(left), where=whole > 0)
    share: Floats = np.clip(1.0 - back, 0.0, 1.0)
    return share


def utility(model: Values, original: Values, parts: Parts) -> Floats:
    """The harmonic mean over the parts of what is left of the original's value, from 0 to 1."""
    inverse = np.asarray(0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for name, part in parts.items():
            mine, base = np.asarray(model[name]), np.asarray(original[name])
            left = np.clip(base / mine if part.better == "lower" else mine / base, 0.0, 1.0)
            inverse = inverse + 1.0 / left
        return np.asarray(len(parts) / inverse)


def balanced(forgotten: Any, useful: Any) -> Floats:
    """The harmonic mean of forgetting and utility; 0 where either is 0."""
    first, second = np.broadcast_arrays(np.asarray(forgotten, dtype=float), np.asarray(useful, dtype=float))
    total = first + second
    mean: Floats = np.divide(2.0 * first * second, total, out=np.where(np.isnan(total), total, 0.0), where=total > 0)
    return mean


def hypervolume(useful: Any, forgotten: Any) -> Floats:
    """The area in the unit square of utility and forgetting that the settings of a method reach.

    A point is reached where some setting has at least its utility and at least its forgetting. The original model and a
    collapsed one alone reach nothing (Zitzler and Thiele 1999).

    Args:
        useful, forgotten: (S,) or (S, R) values of S settings.
    """
    across, up = np.asarray(useful, dtype=float), np.asarray(forgotten, dtype=float)
    order = np.argsort(-across, axis=0, kind="stable")
    across, up = np.take_along_axis(across, order, axis=0), np.take_along_axis(up, order, axis=0)
    highest = np.maximum.accumulate(up, axis=0)
    widths = across - np.concatenate([across[1:], np.zeros_like(across[:1])])
    area: Floats = (widths * highest).sum(axis=0)
    return area
