"""The SVG plot of forgetting against utility: rows, their intervals, the Pareto front, the references' lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from unlearnbench.records.record import ScoreEntry

from .ranking import ARROWS, Table, TableRow, formatted, oriented

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 48
COLLAPSED = 0.5
"""The share of the retained model's utility below which a model counts as collapsed."""
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


@dataclass(frozen=True)
class Scatter:
    """All that the template draws. Right and up are better, whatever the metric's direction."""

    x_label: str
    y_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    points: tuple[Point, ...]
    front: str
    references: tuple[tuple[str, float, float], ...]
    collapse: float | None
    """The x up to which the plot is shaded, in pixels."""
    left_out: int
    """Number of rows that cannot be drawn, because a value is missing or not finite."""
    width: int = WIDTH
    height: int = HEIGHT
    box: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


def scatter(table: Table, rows: Sequence[TableRow], link: Callable[[TableRow], str]) -> Scatter | None:
    """The plot of these rows of a table; None where the benchmark declares no axes or no row has both values."""
    if table.axes is None:
        return None
    forget, utility = (table.metric(name) for name in table.axes)
    names = table.axes
    everything = [row for row in (*table.references, *rows) if row.record]
    shown = [row for row in everything if all(math.isfinite(row.values[name].value) for name in names)]
    if not any(not row.reference for row in shown):
        return None
    ends = [[end for row in shown for end in _ends(row, name)] for name in names]
    y_scale, x_scale = (
        _Scale(metric, values, low, high)
        for metric, values, (low, high) in zip(
            (forget, utility), ends, ((HEIGHT - BOTTOM, TOP), (LEFT, WIDTH - RIGHT)), strict=True
        )
    )
    if not all(math.isfinite(scale.most - scale.least) for scale in (x_scale, y_scale)):
        # The range overflows a float, e.g. between −1e308 and 1e308.
        return None
    drawn = [row for row in shown if not row.reference]
    taken: list[Box] = []
    places = [(x_scale(row.values[names[1]].value), y_scale(row.values[names[0]].value)) for row in drawn]
    taken += [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    points = []
    for number, (row, (x, y)) in enumerate(zip(drawn, places, strict=True)):
        values = [row.values[name] for name in names]
        facts = (
            f"{row.method}: {utility.label} {formatted(values[1].value)}, {forget.label} {formatted(values[0].value)}"
        )
        points.append(
            Point(
                label=row.method,
                link=link(row),
                facts=facts,
                x=x,
                y=y,
                across=_whisker(row, names[1], x_scale),
                up=_whisker(row, names[0], y_scale),
                front=row.layer == 1,
                marker=MARKERS[number % len(MARKERS)],
                text=_label(row.method, x, y, taken),
            )
        )
    front = sorted((point.x, point.y) for point in points if point.front)
    return Scatter(
        x_label=_axis_label(utility),
        y_label=_axis_label(forget),
        x_ticks=x_scale.ticks(5),
        y_ticks=y_scale.ticks(5),
        points=tuple(points),
        front=_staircase(front),
        references=tuple(
            (row.method, x_scale(row.values[names[1]].value), y_scale(row.values[names[0]].value))
            for row in shown
            if row.reference
        ),
        collapse=_collapse(shown, names[1], utility, x_scale),
        left_out=len(everything) - len(shown),
    )


def _ends(row: TableRow, name: str) -> list[float]:
    value = row.values[name]
    ends = [value.value, *_interval(row, name)]
    return [end for end in ends if math.isfinite(end)]


def _interval(row: TableRow, name: str) -> tuple[float, float] | tuple[()]:
    """The spread over seeds where there are several, else the interval over rows."""
    value = row.values[name]
    if value.spread is not None:
        return (value.value - value.spread, value.value + value.spread)
    return value.interval or ()


def _whisker(row: TableRow, name: str, scale: _Scale) -> tuple[float, float] | None:
    ends = _interval(row, name)
    return (scale(ends[0]), scale(ends[1])) if len(ends) == 2 and all(map(math.isfinite, ends)) else None


class _Scale:
    """Maps a metric's values to pixels, the better end at ``high``."""

    def __init__(self, metric: ScoreEntry, values: Sequence[float], low: float, high: float) -> None:
        self.metric, self.low, self.high = metric, low, high
        # A p-value of 0 has no power of ten: draw it one power below the least of the others.
        self._least_power = min((math.log10(value) for value in values if value > 0), default=0.0) - 1
        inner = [self._inner(value) for value in values]
        self.least, self.most = min(inner), max(inner)
        margin = (self.most - self.least) * 0.06 or 0.5
        self.least, self.most = self.least - margin, self.most + margin

    def _inner(self, value: float) -> float:
        """The position on the axis in the metric's units, larger towards the better end."""
        if self.metric.scale == "log":
            value = math.log10(value) if value > 0 else self._least_power
        better = oriented(value, self.metric)
        return value if better is None else better

    def __call__(self, value: float) -> float:
        share = (self._inner(value) - self.least) / (self.most - self.least)
        return round(self.low + min(max(share, 0.0), 1.0) * (self.high - self.low), 1)

    def ticks(self, about: int) -> tuple[tuple[float, str], ...]:
        """Pixel positions and labels of round values; whole powers of ten on a logarithmic axis."""
        step = 10 ** math.floor(math.log10((self.most - self.least) / about))
        step *= min((1, 2, 5, 10), key=lambda factor: abs((self.most - self.least) / (factor * step) - about))
        if self.metric.scale == "log":
            step = max(1, round(step))
        first = math.ceil(self.least / step)
        ticks = []
        for number in range(first, math.floor(self.most / step) + 1):
            inner = number * step
            share = (inner - self.least) / (self.most - self.least)
            ticks.append((round(self.low + share * (self.high - self.low), 1), self._text(inner)))
        return tuple(ticks)

    def _text(self, inner: float) -> str:
        value = -inner if self.metric.better == "lower" else inner
        if self.metric.better == "target" and isinstance(self.metric.target, float):
            return f"{-value:g} off"
        if self.metric.scale == "log":
            return f"1e{value:g}" if value else "1"
        return f"{value:.4g}".replace("-", "−")


def _axis_label(metric: ScoreEntry) -> str:
    return f"{metric.label} {ARROWS[metric.better]}" + (", logarithmic" if metric.scale == "log" else "")


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


def _collapse(rows: Sequence[TableRow], name: str, metric: ScoreEntry, scale: _Scale) -> float | None:
    """The x at ``COLLAPSED`` of the retained model's utility; None unless this is positive and higher is better."""
    retained = [row.values[name].value for row in rows if row.reference and row.method == "retained"]
    if not retained or metric.better != "higher" or retained[0] <= 0:
        return None
    edge = scale(COLLAPSED * retained[0])
    return edge if edge > LEFT else None
