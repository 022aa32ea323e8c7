"""Groups rows that may be compared into tables and ranks them. Pure: records in, tables out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from unlearnbench.domain import NUMBERS
from unlearnbench.records.balance import References
from unlearnbench.records.record import ScoreEntry
from unlearnbench.records.run_folder import StoredCell
from unlearnbench.storage import digest

from .numbers import numbers_of, places_of, pooled
from .precision import Precision, precision_of
from .robustness import Attacks, unattacked
from .rows import TableRow, on_common_runs, rows_of
from .selection import chosen


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: their comparability keys agree, and so do the editions of their losses."""

    benchmark: str
    model: str
    loss_edition: str
    comparability: dict[str, object]
    metrics: tuple[ScoreEntry, ...]
    names: tuple[str, ...]
    references: tuple[TableRow, ...]
    rows: tuple[TableRow, ...]
    limits: dict[str, object]
    closed: bool = False
    """Whether the harness's sweep and rule chose the settings (the closed division) or whoever handed them in."""
    unranked: tuple[str, ...] = ()
    """Why the table's rows are not ranked; empty where they are."""

    @property
    def headline(self) -> tuple[str, ...]:
        """The columns of the paper's table."""
        return tuple(n for n, metric in zip(self.names, self.metrics, strict=True) if metric.headline)

    @property
    def unplaced(self) -> str:
        """Why no row has a score; empty where one has."""
        reasons = [row.numbers["score"].reason for row in self.rows if "score" in row.numbers]
        return reasons[0] if reasons and all(reasons) else ""

    @property
    def one_seed(self) -> bool:
        """Whether places rest on one seed, so that they say nothing about another."""
        return {len(row.scored) for row in self.placed} == {1}

    @property
    def model_short(self) -> str:
        """The model's name, shortened for a heading."""
        return self.model if len(self.model) <= 60 else self.model[:59] + "…"

    @cached_property
    def attacks(self) -> tuple[str, ...]:
        """The attacks on any of its rows, by name."""
        return tuple(dict.fromkeys(name for row in (*self.references, *self.rows) for name in row.attacks))

    @cached_property
    def placed(self) -> tuple[TableRow, ...]:
        """The ranked rows, the best first."""
        return tuple(row for row in self.rows if row.place)

    def metric(self, name: str) -> ScoreEntry:
        return self.metrics[self.names.index(name)]

    @cached_property
    def precisions(self) -> dict[str, Precision]:
        """How each metric's column is written."""
        rows = [row for row in (*self.references, *self.rows) if row.record]
        return {
            name: precision_of((row.values[name].value for row in rows), metric.scale == "log")
            for name, metric in zip(self.names, self.metrics, strict=True)
        }


def tables(cells: Iterable[StoredCell]) -> list[Table]:
    """One table per benchmark, model, comparability key and loss edition, in the order of the plan."""
    groups: dict[tuple[str, str], list[StoredCell]] = {}
    for cell in cells:
        groups.setdefault((cell.identity.benchmark, cell.identity.model), []).append(cell)
    every = [table for members in groups.values() if unattacked(members) for table in _tables_of(members)]
    return [replace(table, model=name) for table, name in zip(every, _labels(every), strict=True)]


def _labels(shown: Sequence[Table]) -> list[str]:
    """The tables' model names; a hash distinguishes models of one name with different weights."""
    weights = [
        digest([table.comparability.get("model_weights"), table.comparability.get("references")])[:6] for table in shown
    ]
    of_name: dict[str, set[object]] = {}
    for table in shown:
        of_name.setdefault(table.model, set()).add(table.comparability.get("model_weights"))
    return [
        f"{table.model} ({own})" if len(of_name[table.model]) > 1 else table.model
        for table, own in zip(shown, weights, strict=True)
    ]


def _tables_of(members: Sequence[StoredCell]) -> list[Table]:
    references, attacks = References(members), Attacks(members)
    cells = [cell for cell in unattacked(members) if not cell.left_out]
    # Records with other metrics, from another version of the benchmark, get a table of their own.
    known = {c.key: (c.record.comparability.sha256, tuple(sorted(c.record.scores))) for c in cells if c.record}
    keys = list(dict.fromkeys(known.values()))
    made = []
    for key in keys:
        # A cell without a record has no comparability key: it joins the first table of its pairing.
        own = [cell for cell in cells if known.get(cell.key, keys[0]) == key]
        rows = rows_of(own)
        methods = [row for row in rows if not row.reference]
        editions = list(dict.fromkeys(row.edition for row in methods if row.edition)) or [""]
        divisions = list(dict.fromkeys(bool(row.setting) for row in methods)) or [False]
        for edition in editions:
            for closed in divisions:
                mine = [row for row in methods if row.edition in (edition, "") and bool(row.setting) == closed]
                if mine or not methods:
                    made.append(_table([row for row in rows if row.reference], mine, edition, closed, references))
    return [_with_attacks(table, attacks, references) for table in made]


def _with_attacks(table: Table, attacks: Attacks, references: References) -> Table:
    """The table with what attacks bring back of each row."""
    first, rest = (
        tuple(replace(row, attacks=attacks.of(row.scored, references)) for row in rows)
        for rows in (table.references, table.rows)
    )
    return replace(table, references=first, rows=rest)


def _table(
    references: list[TableRow], rows: list[TableRow], loss_edition: str, closed: bool, peers: References
) -> Table:
    record = next(row.record for row in (*references, *rows) if row.record)
    names = tuple(record.scores)
    metrics = tuple(record.scores.values())
    # References are not unlearned, so limits of unlearning do not apply to them.
    limits = [row.record.limits for row in (rows or references) if row.record] or [record.limits]
    shared = {name: fact for name, fact in limits[0].items() if all(some.get(name) == fact for some in limits)}
    references = _with_numbers([_with_limits(row, shared) for row in references], peers)
    rows = chosen(_with_numbers(rows, peers), peers)
    ranked = rows if record.unranked else _ranked(rows, peers)
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
        closed=closed,
    )


def _with_limits(row: TableRow, shared: Mapping[str, object]) -> TableRow:
    own = row.record.limits if row.record else {}
    limits: dict[str, object] = {name: fact for name, fact in own.items() if name not in shared}
    return replace(row, limits=limits | ({"seeds": row.runs_shown} if row.runs_shown else {}))


def _with_numbers(rows: Iterable[TableRow], references: References) -> list[TableRow]:
    """Rows with their score, forgetting and utility, over the runs behind their values."""
    return [replace(row, numbers=numbers_of(row.scored, references)) if row.record else row for row in rows]


def _ranked(rows: Sequence[TableRow], references: References) -> list[TableRow]:
    """Rows with places by score, the best first; a row without a score, or that lacks a seed, comes last."""
    complete = [row for row in rows if row.record and not row.failures]
    rest = [row for row in rows if not row.record or row.failures]
    # Numbers are of all runs so far: those of rows that lose some are computed again.
    whole = [_with_numbers([row], references)[0] if row.runs else row for row in on_common_runs(complete)]
    scored = [row for row in whole if not math.isnan(row.numbers["score"].value)]
    rest = [*(row for row in whole if math.isnan(row.numbers["score"].value)), *rest]
    if not scored:
        return rest
    columns = {name: pooled([row.numbers[name] for row in scored]) for name in NUMBERS}
    scored = [
        replace(row, numbers=dict(zip(columns, numbers, strict=True)))
        for row, numbers in zip(scored, zip(*columns.values(), strict=True), strict=True)
    ]
    ranked = places_of(columns["score"])
    placed = [replace(row, place=place) for row, place in zip(scored, ranked, strict=True)]
    return [*(placed[i] for i in sorted(range(len(placed)), key=lambda i: ranked[i].place)), *rest]


ARROWS = {"higher": "↑", "lower": "↓", "target": "→"}
