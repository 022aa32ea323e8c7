"""Which rows may stand in one table, and which of them are best. Pure: records in, tables out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from unlearnbench.records import Record, ScoreEntry
from unlearnbench.runs import StoredCell
from unlearnbench.storage import digest


@dataclass(frozen=True)
class Value:
    """A metric of one row: the mean over seeds, with the spread between them, or one seed's interval."""

    value: float
    n: int
    spread: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""
    passes: bool | None = None
    """Whether the paper's criterion holds, in all seeds; None where it asks nothing."""
    rank: int = 0
    """1 and 2 for the two best of the ranked rows (ties share a rank); 0 otherwise."""


@dataclass(frozen=True)
class Row:
    """One method with its hyperparameters on one benchmark and model; a cell per seed."""

    method: str
    edition: str
    reference: bool
    cells: tuple[StoredCell, ...]
    values: dict[str, Value]
    limits: dict[str, object] = field(default_factory=dict)
    """Limits of this row that not all rows of its table share."""

    @property
    def record(self) -> Record | None:
        return next((cell.record for cell in self.cells if cell.record), None)

    @property
    def failures(self) -> tuple[StoredCell, ...]:
        return tuple(cell for cell in self.cells if cell.record is None)


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: their comparability keys agree, and so do the editions of their losses."""

    benchmark: str
    model: str
    loss_edition: str
    comparability: dict[str, object]
    metrics: tuple[ScoreEntry, ...]
    names: tuple[str, ...]
    references: tuple[Row, ...]
    rows: tuple[Row, ...]
    limits: dict[str, object]
    unranked: tuple[str, ...] = ()
    """Why no row of this table is ranked; empty where they are."""

    @property
    def headline(self) -> tuple[str, ...]:
        """The columns of the paper's table."""
        return tuple(n for n, metric in zip(self.names, self.metrics, strict=True) if metric.headline)

    def metric(self, name: str) -> ScoreEntry:
        return self.metrics[self.names.index(name)]


def tables(cells: Iterable[StoredCell]) -> list[Table]:
    """One table per benchmark, model, comparability key and loss edition, in the order of the plan."""
    groups: dict[tuple[str, str], list[StoredCell]] = {}
    for cell in cells:
        groups.setdefault((cell.identity["benchmark"], cell.identity["model"]), []).append(cell)
    return [table for members in groups.values() for table in _tables_of(members)]


def _tables_of(cells: Sequence[StoredCell]) -> list[Table]:
    keys = list(dict.fromkeys(cell.record.comparability.sha256 for cell in cells if cell.record))
    found = []
    for key in keys or [""]:
        # A cell without a record has no key of its own; it is shown where its neighbours are.
        members = [c for c in cells if (c.record.comparability.sha256 == key if c.record else key == keys[0])]
        rows = _rows(members)
        editions = list(dict.fromkeys(row.edition for row in rows if not row.reference and row.edition)) or [""]
        for edition in editions:
            mine = [row for row in rows if not row.reference and row.edition in (edition, "")]
            found.append(_table([row for row in rows if row.reference], mine, edition))
    return found if keys else []


def _rows(cells: Sequence[StoredCell]) -> list[Row]:
    # A row averages seeds, never two results of one seed: those differ in something that the reader must see.
    groups: dict[tuple[str, int], dict[int, StoredCell]] = {}
    for cell in {cell.key: cell for cell in cells}.values():
        label, seed, again = _label(cell), cell.identity["seed"], 0
        while seed in groups.get((label, again), {}):
            again += 1
        groups.setdefault((label, again), {})[seed] = cell
    rows = []
    for group in groups.values():
        members = list(group.values())
        records = [cell.record for cell in members if cell.record]
        first = records[0].identity if records else None
        names = records[0].scores if records else {}
        rows.append(
            Row(
                members[0].identity["method"],
                first.method_edition if first else "",
                first.reference if first else members[0].identity["method"] in ("original", "retained"),
                tuple(members),
                {name: _over_seeds([record.scores[name] for record in records]) for name in names},
            )
        )
    return rows


def _label(cell: StoredCell) -> str:
    """What rows of different seeds must agree in."""
    if cell.record is None:
        return str(cell.identity["method"])
    identity, provenance = cell.record.identity, cell.record.provenance
    return digest([identity.method_qualified, identity.hyperparameters, provenance["method_source"],
                   provenance["templates"]])  # fmt: skip


def _over_seeds(entries: Sequence[ScoreEntry]) -> Value:
    if len(entries) == 1:
        only = entries[0]
        return Value(only.value, only.n, None, only.interval, only.reason, only.passes)
    values = [entry.value for entry in entries]
    reason = next((entry.reason for entry in entries if entry.reason), "")
    spread = stdev(values) if all(math.isfinite(value) for value in values) else None
    judged = [entry.passes for entry in entries]
    passes = None if None in judged else all(judged)
    return Value(fmean(values), entries[0].n, spread, None, reason, passes)


def _table(references: list[Row], rows: list[Row], loss_edition: str) -> Table:
    record = next(row.record for row in (*references, *rows) if row.record)
    names = tuple(record.scores)
    metrics = tuple(record.scores.values())
    # References are not unlearned, so that they share no limit of unlearning with the rows.
    limits = [row.record.limits for row in (rows or references) if row.record] or [record.limits]
    shared = {name: fact for name, fact in limits[0].items() if all(some.get(name) == fact for some in limits)}
    references = [_with_limits(row, shared) for row in references]
    ranked = rows if record.unranked else [_with_ranks(row, rows, record) for row in rows]
    ranked = [_with_limits(row, shared) for row in ranked]
    return Table(
        benchmark=record.identity.benchmark,
        model=record.identity.model,
        loss_edition=loss_edition,
        comparability=record.comparability.key,
        metrics=metrics,
        names=names,
        references=tuple(sorted(references, key=lambda row: row.method)),
        rows=tuple(ranked),
        limits=shared,
        unranked=tuple(record.unranked),
    )


def _with_limits(row: Row, shared: Mapping[str, object]) -> Row:
    found = row.record.limits if row.record else {}
    return replace(row, limits={name: fact for name, fact in found.items() if name not in shared})


def _with_ranks(row: Row, rows: Sequence[Row], record: Record) -> Row:
    values = {}
    for name, value in row.values.items():
        metric = record.scores[name]
        others = [other.values[name].value for other in rows if name in other.values]
        values[name] = replace(value, rank=_rank(value.value, others, metric))
    return replace(row, values=values)


def _rank(value: float, others: Sequence[float], metric: ScoreEntry) -> int:
    """1 or 2 where at most one distinct value is better; missing values have no rank.

    A metric with a number for a target is better the nearer it is; one that is to be like the retained model's
    has no rank.
    """
    if metric.better == "target":
        if not isinstance(metric.target, float):
            return 0
        target = metric.target
        value, others = -abs(value - target), [-abs(other - target) for other in others]
    if math.isnan(value) or len({other for other in others if not math.isnan(other)}) < 2 < len(others):
        # A column in which all are equal has no best.
        return 0
    sign = -1 if metric.better == "lower" else 1
    ahead = {other for other in others if not math.isnan(other) and sign * other > sign * value}
    return len(ahead) + 1 if len(ahead) < 2 else 0


def formatted(value: float) -> str:
    """Four significant places; p-values and overflowing numbers in powers of ten; a dash for missing."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e+").replace("e+", "e")
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


ARROWS = {"higher": "↑", "lower": "↓", "target": "→"}
