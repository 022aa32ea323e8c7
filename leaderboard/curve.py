"""The training curve of a cell: its loss at every optimiser step, as an SVG polyline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 60, 18, 14, 36
POINTS = 300
"""Most points that are drawn; of more steps every so many stand for the rest."""


@dataclass(frozen=True)
class Curve:
    """What the template draws, in pixels and words."""

    points: str
    ticks: tuple[tuple[float, str], ...]
    steps: int
    first: float
    last: float
    low: float
    low_step: int
    width: int = WIDTH
    height: int = HEIGHT
    box: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


def curve(losses: Sequence[float]) -> Curve | None:
    """The curve; None for fewer than two finite losses."""
    finite = [(step, loss) for step, loss in enumerate(losses, 1) if math.isfinite(loss)]
    if len(finite) < 2:
        return None
    low, high = min(loss for _, loss in finite), max(loss for _, loss in finite)
    # A flat curve lies in the middle.
    bottom, top = (low, high) if high > low else (low - 1, high + 1)
    every = max(1, math.ceil(len(finite) / POINTS))
    drawn = [*finite[:-1:every], finite[-1]]

    def up(loss: float) -> float:
        return HEIGHT - BOTTOM - (loss - bottom) / (top - bottom) * (HEIGHT - BOTTOM - TOP)

    def across(step: int) -> float:
        return LEFT + (step - 1) / (len(losses) - 1) * (WIDTH - RIGHT - LEFT)

    return Curve(
        " ".join(f"{across(step):.1f},{up(loss):.1f}" for step, loss in drawn),
        tuple((round(up(value), 1), f"{value:.3g}") for value in (bottom, (bottom + top) / 2, top)),
        len(losses),
        finite[0][1],
        finite[-1][1],
        low,
        next(step for step, loss in finite if loss == low),
    )
