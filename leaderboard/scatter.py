"""The SVG plot of forgetting against utility, both from 0 to 1: rows, their intervals, the front, the references."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .numbers import COLLAPSED, Number
from .ranking import Table, formatted
from .rows import TableRow

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 48
Box = tuple[float, float, float, float]
OFFSETS = (
    (9, 4, "start"),
    (-9, 4, "end"),
    (0, -10, "middle"),
    (0, 18, "middle"),
    (9, -8, "start"),
    (9, 16, "start"),
    (-9, -8, "end"),
    (-9, 16, "end"),
)
"""Positions of a label relative to its point, in pixels, with its anchor; the first free one is taken."""
MARKERS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Point:
    """A row in the plot, in pixels; a whisker holds the two ends of an interval, None without one."""

    label: str
    link: str
    facts: str
    x: float
    y: float
    across: tuple[float, float] | None
    up: tuple[float, float] | None
    front: bool
    marker: str
    text: tuple[float, float, str] | None
    """The label's position and anchor; None where there is no room for it."""
    tried: tuple[tuple[float, float, str], ...] = ()
    """The other settings of the row's sweep, with words."""
    fall: tuple[float, str] | None = None
    """How far up the row is under the worst attack, with words; None where no attack lowers it."""
    curve: str = ""
    """The outline of what the settings reach together, as the points of a polyline."""


@dataclass(frozen=True)
class Scatter:
    """All that the template draws. Right and up are better."""

    ticks: tuple[tuple[float, float, str], ...]
    """Of both axes: the pixel across, the pixel up, and the label."""
    points: tuple[Point, ...]
    front: str
    references: tuple[tuple[str, float, float], ...]
    collapse: float
    """The x up to which the plot is shaded, in pixels."""
    left_out: int
    """Number of rows that cannot be drawn, because they have no score."""
    width: int = WIDTH
    height: int = HEIGHT
    box: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


def scatter(table: Table, rows: Sequence[TableRow], link: Callable[[TableRow], str]) -> Scatter | None:
    """The plot of these rows of a table; None where no row has both numbers."""
    everything = [row for row in (*table.references, *rows) if row.record]
    shown = [row for row in everything if math.isfinite(row.numbers["score"].value)]
    drawn = [row for row in shown if not row.reference]
    if not drawn:
        return None
    places = [(_across(row.numbers["utility"].value), _up(row.numbers["forgetting"].value)) for row in drawn]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    best = front_of([(row.numbers["utility"].value, row.numbers["forgetting"].value) for row in drawn])
    points = [
        Point(
            label=row.method,
            link=link(row),
            facts=f"{row.method}: " + ", ".join(f"{name} {formatted(n.value)}" for name, n in row.numbers.items()),
            x=x,
            y=y,
            across=_whisker(row.numbers["utility"], _across),
            up=_whisker(row.numbers["forgetting"], _up),
            front=place in best,
            marker=MARKERS[place % len(MARKERS)],
            text=_label(row.method, x, y, taken),
            fall=_fall(row),
            **_settings(row),
        )
        for place, (row, (x, y)) in enumerate(zip(drawn, places, strict=True))
    ]
    return Scatter(
        ticks=tuple((_across(share), _up(share), f"{share:g}") for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        points=tuple(points),
        front=_staircase(sorted({(point.x, point.y) for point in points if point.front})),
        references=tuple(
            (row.method, _across(row.numbers["utility"].value), _up(row.numbers["forgetting"].value))
            for row in shown
            if row.reference
        ),
        collapse=_across(COLLAPSED),
        left_out=len(everything) - len(shown),
    )


def _settings(row: TableRow) -> dict[str, Any]:
    """The settings of a row's sweep as the plot draws them."""
    if row.sweep is None:
        return {}
    scored = [other for other in row.sweep.rows if other.numbers and math.isfinite(other.numbers["score"].value)]
    points = [(other.numbers["utility"].value, other.numbers["forgetting"].value) for other in scored]
    best = sorted({points[place] for place in front_of(points)})
    return {
        "tried": tuple(
            (_across(x), _up(y), f"{row.method}, {other.setting}")
            for other, (x, y) in zip(scored, points, strict=True)
            if other.setting != row.setting
        ),
        "curve": _staircase([(_across(x), _up(y)) for x, y in best]) if len(points) > 1 else "",
    }


def _fall(row: TableRow) -> tuple[float, str] | None:
    """The end of the arrow from a row to where the worst attack brings it."""
    name, _ = row.robust or ("", None)
    if not name:
        return None
    forgetting = row.attacks[name].forgetting.value
    return (_up(forgetting), f"under {name} {formatted(forgetting)}")


def front_of(points: Sequence[tuple[float, float]]) -> set[int]:
    """The Pareto front: places of the points that no other point beats in one number and equals in the other."""
    best: set[int] = set()
    highest, last = -math.inf, None
    for place in sorted(range(len(points)), key=lambda i: points[i], reverse=True):
        if points[place][1] > highest or points[place] == last:
            best.add(place)
            highest, last = points[place][1], points[place]
    return best


def _across(utility: float) -> float:
    return round(LEFT + utility * (WIDTH - RIGHT - LEFT), 1)


def _up(forgetting: float) -> float:
    return round(HEIGHT - BOTTOM - forgetting * (HEIGHT - BOTTOM - TOP), 1)


def _whisker(number: Number, scale: Callable[[float], float]) -> tuple[float, float] | None:
    return number.interval and (scale(number.interval[0]), scale(number.interval[1]))


def _label(text: str, x: float, y: float, taken: list[Box]) -> tuple[float, float, str] | None:
    """The first free position beside the point; None where all are taken."""
    width = 6.4 * len(text)
    for dx, dy, anchor in OFFSETS:
        left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        box = (left, y + dy - 10, left + width, y + dy + 2)
        inside = box[0] > LEFT and box[2] < WIDTH - RIGHT and box[1] > TOP and box[3] < HEIGHT - BOTTOM
        if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            taken.append(box)
            return (round(x + dx, 1), round(y + dy, 1), anchor)
    return None


def _staircase(front: Sequence[tuple[float, float]]) -> str:
    """The outline of the area that the front dominates, as the points of a polyline."""
    if not front:
        return ""
    # The front falls to the right: each step goes down, then across to the next row.
    steps: list[tuple[float, float]] = [(LEFT, front[0][1]), front[0]]
    for (x, _), (nx, ny) in pairwise(front):
        steps += [(x, ny), (nx, ny)]
    steps.append((front[-1][0], HEIGHT - BOTTOM))
    return " ".join(f"{x:g},{y:g}" for x, y in steps)
