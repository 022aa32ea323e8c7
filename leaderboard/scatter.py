"""The SVG plot of forgetting against utility: rows, their intervals, the front, the references, zoomed to the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .numbers import COLLAPSED, Number
from .precision import SHARES
from .ranking import Table
from .rows import TableRow

WIDTH, HEIGHT = 640, 440
LEFT, RIGHT, TOP, BOTTOM = 60, 18, 18, 48
DRAWN = 60
"""Most rows of one plot; the table has all."""
LETTER, LINE = 6.3, 13.0
"""Width of a letter and height of a line of a label, in pixels."""
APART = 9.0
"""Pixels between the cross of a reference and its words."""
NARROWEST = 0.05
"""The least span of an axis."""
FURTHER = 1.6
"""By how much a reference may widen the span of an axis; one that is further off stands at the edge."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """A label, and the end of the line that leads to it where it stands apart from its point, in pixels."""

    x: float
    y: float
    anchor: str
    leader: tuple[float, float] | None


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
    text: Label | None
    """None where there is no room for a label; the list under the plot has it."""
    tried: tuple[tuple[float, float, str], ...] = ()
    """The other settings of the row's sweep, with words."""
    fall: tuple[float, str] | None = None
    """How far up the row is under the worst attack, with words; None where no attack lowers it."""
    curve: str = ""
    """The outline of what the settings reach together, as the points of a polyline."""


@dataclass(frozen=True)
class Reference:
    """A reference model: a cross in the plot, or, outside of it, words at the edge that is nearest."""

    role: str
    facts: str
    x: float
    y: float
    way: str
    """An arrow to where it lies; empty inside the plot."""
    text: Label


@dataclass(frozen=True)
class Frame:
    """The part of the unit square that a plot shows, and where it lies in pixels."""

    left: float
    right: float
    low: float
    high: float

    def across(self, utility: float) -> float:
        return round(LEFT + (utility - self.left) / (self.right - self.left) * (WIDTH - RIGHT - LEFT), 1)

    def up(self, forgetting: float) -> float:
        share = (forgetting - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)


@dataclass(frozen=True)
class Scatter:
    """All that the template draws. Right and up are better."""

    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    """Ticks of the axes: the pixel and the label."""
    points: tuple[Point, ...]
    front: str
    references: tuple[Reference, ...]
    collapse: float
    """The x up to which the plot is shaded, in pixels; at most ``box[0]`` where nothing is."""
    left_out: int
    """Number of rows that cannot be drawn, because they have no score."""
    elsewhere: int
    """Number of scored rows of the table that this plot does not draw."""
    zoomed: bool
    width: int = WIDTH
    height: int = HEIGHT
    box: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


def scatter(
    table: Table, rows: Sequence[TableRow], link: Callable[[TableRow], str], settings: bool = False
) -> Scatter | None:
    """The plot of these rows of a table, the first ``DRAWN`` of them; None where no row has both numbers.

    Args:
        settings: draw all settings of each row's sweep and the outline of what they reach.
    """
    everything = [row for row in (*table.references, *rows) if row.record]
    shown = _scored(everything)
    drawn = [row for row in shown if not row.reference][:DRAWN]
    if not drawn:
        return None
    values = [_values(row) for row in drawn]
    models = [row for row in shown if row.reference]
    tried = [point for row in drawn if settings for point in _tried(row)]
    frame = _frame([*values, *tried], [_values(row) for row in models])
    places = [(frame.across(utility), frame.up(forgetting)) for utility, forgetting in values]
    references = tuple(_reference(row, frame) for row in models)
    taken = [_around(x, y, 6) for x, y in places]
    taken += [_words_of(reference) for reference in references]
    # The front is the whole table's, of which a page may draw a part.
    whole = _scored(table.rows)
    front = {id(whole[place]) for place in front_of([_values(row) for row in whole])}
    outline = sorted({(frame.across(x), frame.up(y)) for x, y in (_values(row) for row in whole if id(row) in front)})
    points = [
        Point(
            label=row.method,
            link=link(row),
            facts=f"{row.method}: " + ", ".join(f"{name} {SHARES(n.value)}" for name, n in row.numbers.items()),
            x=x,
            y=y,
            across=_whisker(row.numbers["utility"], frame.across),
            up=_whisker(row.numbers["forgetting"], frame.up),
            front=id(row) in front,
            text=_label(row.method, x, y, taken),
            fall=_fall(row, frame),
            **(_settings(row, frame) if settings else {}),
        )
        for row, (x, y) in zip(drawn, places, strict=True)
    ]
    across, up = _ticks(frame.left, frame.right), _ticks(frame.low, frame.high)
    return Scatter(
        across=tuple((frame.across(share), text) for share, text in across),
        up=tuple((frame.up(share), text) for share, text in up),
        points=tuple(points),
        front="" if settings else _staircase(outline),
        references=references,
        collapse=frame.across(COLLAPSED),
        left_out=len(everything) - len(shown),
        elsewhere=0 if settings else max(len(whole) - len(drawn), 0),
        zoomed=frame.left > 0 or frame.low > 0,
    )


def _values(row: TableRow) -> tuple[float, float]:
    return row.numbers["utility"].value, row.numbers["forgetting"].value


def _frame(values: Sequence[tuple[float, float]], references: Sequence[tuple[float, float]]) -> Frame:
    """The part of the unit square where the rows lie, with some room, and with the references that are not far off."""
    left, right = _span([utility for utility, _ in values])
    low, high = _span([forgetting for _, forgetting in values])
    for utility, forgetting in references:
        wider = _span([left, right, utility])
        higher = _span([low, high, forgetting])
        if wider[1] - wider[0] <= FURTHER * (right - left) and higher[1] - higher[0] <= FURTHER * (high - low):
            left, right = (left, right) if left <= utility <= right else wider
            low, high = (low, high) if low <= forgetting <= high else higher
    return Frame(left, right, low, high)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(0.12 * (high - low), (NARROWEST - (high - low)) / 2, 0.01)
    # Marks at 0 and 1 need a little room beyond.
    edge = 0.04 * min(1.0, high - low + 2 * room)
    return max(-edge, low - room), min(1 + edge, high + room)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round shares between two ends, four to eight of them."""
    step = next((step for step in (0.2, 0.1, 0.05, 0.02) if (high - low) / step >= 4), 0.01)
    first, last = math.ceil(max(low, 0.0) / step - 1e-9), math.floor(min(high, 1.0) / step + 1e-9)
    return [(place * step, f"{place * step:.{1 if step >= 0.1 else 2}f}") for place in range(first, last + 1)]


def _reference(row: TableRow, frame: Frame) -> Reference:
    """A reference in the plot, or at its edge."""
    utility, forgetting = _values(row)
    x, y = frame.across(utility), frame.up(forgetting)
    left, top, right, bottom = LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM
    way = "↑" if y < top else "↓" if y > bottom else "←" if x < left else "→" if x > right else ""
    facts = f"{row.method}: utility {SHARES(utility)}, forgetting {SHARES(forgetting)}"
    x, y = min(max(x, left), right), min(max(y, top), bottom)
    # Left of its cross, or right where the axis leaves no room; at an edge, inside of it.
    outside = x - APART - LETTER * (len(row.method) + 2) < left
    beside = round(x + APART if outside else x - APART, 1)
    line = min(max(y + 4, top + 12), bottom - 4)
    return Reference(row.method, facts, x, y, way, Label(beside, line, "start" if outside else "end", None))


def _words_of(reference: Reference) -> Box:
    """What a reference takes up: its cross and its words."""
    width = LETTER * (len(reference.role) + 2) + APART
    left, right = (8.0, width) if reference.text.anchor == "start" else (width, 8.0)
    return (reference.x - left, reference.text.y - LINE, reference.x + right, reference.text.y + 4)


def _scored(rows: Sequence[TableRow]) -> list[TableRow]:
    return [row for row in rows if row.numbers and math.isfinite(row.numbers["score"].value)]


def _tried(row: TableRow) -> list[tuple[float, float]]:
    """Utility and forgetting of all settings of a row's sweep."""
    return [_values(other) for other in _scored(row.sweep.rows)] if row.sweep else []


def _settings(row: TableRow, frame: Frame) -> dict[str, Any]:
    """The settings of a row's sweep as the plot draws them."""
    if row.sweep is None:
        return {}
    scored = _scored(row.sweep.rows)
    points = [_values(other) for other in scored]
    best = sorted({points[place] for place in front_of(points)})
    return {
        "tried": tuple(
            (frame.across(x), frame.up(y), f"{row.method}, {other.setting}")
            for other, (x, y) in zip(scored, points, strict=True)
            if other.setting != row.setting
        ),
        "curve": _staircase([(frame.across(x), frame.up(y)) for x, y in best]) if len(points) > 1 else "",
    }


def _fall(row: TableRow, frame: Frame) -> tuple[float, str] | None:
    """The end of the arrow from a row to where the worst attack brings it."""
    name, _ = row.robust or ("", None)
    if not name:
        return None
    forgetting = row.attacks[name].forgetting.value
    return (frame.up(forgetting), f"under {name} {SHARES(forgetting)}")


def front_of(points: Sequence[tuple[float, float]]) -> set[int]:
    """The Pareto front: places of the points that no other point beats in one number and equals in the other."""
    best: set[int] = set()
    highest, last = -math.inf, None
    for place in sorted(range(len(points)), key=lambda i: points[i], reverse=True):
        if points[place][1] > highest or points[place] == last:
            best.add(place)
            highest, last = points[place][1], points[place]
    return best


def _whisker(number: Number, scale: Callable[[float], float]) -> tuple[float, float] | None:
    return number.interval and (scale(number.interval[0]), scale(number.interval[1]))


def _around(x: float, y: float, room: float) -> Box:
    return (x - room, y - room, x + room, y + room)


def _label(text: str, x: float, y: float, taken: list[Box]) -> Label | None:
    """The free position that is nearest to the point, with a line that leads there; None where all are taken."""
    width = LETTER * len(text)
    for distance in (10.0, 18.0, 28.0, 40.0, 54.0, 70.0, 90.0):
        for turn in (0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 3, 13, 5, 11, 7, 9):
            dx, dy = distance * math.cos(turn * math.pi / 8), distance * math.sin(turn * math.pi / 8)
            anchor = "start" if dx > 3 else "end" if dx < -3 else "middle"
            left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            middle = y + dy
            box = (left - 1, middle - LINE / 2, left + width + 1, middle + LINE / 2)
            inside = box[0] > LEFT and box[2] < WIDTH - 2 and box[1] > 2 and box[3] < HEIGHT - BOTTOM
            if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                leader = (round(x + dx * 0.95, 1), round(middle, 1)) if distance > 18 else None
                return Label(round(x + dx, 1), round(middle + 4, 1), anchor, leader)
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
