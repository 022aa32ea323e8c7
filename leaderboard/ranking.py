"""Groups rows that may be compared into tables and ranks them. Pure: records in, tables out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from statistics import fmean, mean, stdev

import numpy as np

from unlearnbench.metrics.places import Place, places
from unlearnbench.records.record import Record, ScoreEntry
from unlearnbench.records.run_folder import StoredCell
from unlearnbench.storage import digest

from .numbers import COLLAPSED, Number, References, numbers_of, pooled


@dataclass(frozen=True)
class Value:
    """A metric of one row: the mean over seeds with their spread, or one seed's value with its interval."""

    value: float
    n: int
    spread: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""
    passes: bool | None = None
    """Whether the paper's criterion holds in all seeds; None where there is no criterion."""


@dataclass(frozen=True)
class TableRow:
    """One method with its hyperparameters on one benchmark and model; a cell per seed."""

    method: str
    edition: str
    reference: bool
    cells: tuple[StoredCell, ...]
    values: dict[str, Value]
    limits: dict[str, object] = field(default_factory=dict)
    """Limits of this row that some rows of its table do not share."""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    """Score, forgetting and utility."""
    place: Place | None = None
    """The place by score, with its range and group; None for a row that is not ranked."""
    seeds: frozenset[int] | None = None
    """The seeds behind the row's values, where it has more seeds than all ranked rows share."""
    seeds_shown: str = ""
    """The same in words; empty where its values cover all its seeds."""

    @property
    def record(self) -> Record | None:
        return next((cell.record for cell in self.cells if cell.record), None)

    @property
    def scored(self) -> list[StoredCell]:
        """The cells behind the row's values."""
        return [cell for cell in self.cells if cell.record and (self.seeds is None or cell.identity.seed in self.seeds)]

    @property
    def remark(self) -> str:
        """What the row fails at, in words; empty where it forgets and keeps its utility, and for references."""
        if self.reference:
            return ""
        forgetting, utility = self.numbers.get("forgetting"), self.numbers.get("utility")
        words = []
        if forgetting and forgetting.interval and forgetting.interval[0] <= 0:
            words.append("does not forget: not told apart from the original")
        if utility and utility.value < COLLAPSED:
            words.append("utility lost")
        return "; ".join(words)

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
    references: tuple[TableRow, ...]
    rows: tuple[TableRow, ...]
    limits: dict[str, object]
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
        return len({(cell.identity.seed) for row in self.placed for cell in row.cells if cell.record}) == 1

    @property
    def model_short(self) -> str:
        """The model's name, shortened for a heading."""
        return self.model if len(self.model) <= 60 else self.model[:59] + "…"

    @cached_property
    def placed(self) -> tuple[TableRow, ...]:
        """The ranked rows, the best first."""
        return tuple(row for row in self.rows if row.place)

    def metric(self, name: str) -> ScoreEntry:
        return self.metrics[self.names.index(name)]


def tables(cells: Iterable[StoredCell]) -> list[Table]:
    """One table per benchmark, model, comparability key and loss edition, in the order of the plan."""
    groups: dict[tuple[str, str], list[StoredCell]] = {}
    for cell in cells:
        groups.setdefault((cell.identity.benchmark, cell.identity.model), []).append(cell)
    every = [table for members in groups.values() for table in _tables_of(members)]
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


def _tables_of(cells: Sequence[StoredCell]) -> list[Table]:
    # Records with other metrics, from another version of the benchmark, get a table of their own.
    known = {c.key: (c.record.comparability.sha256, tuple(sorted(c.record.scores))) for c in cells if c.record}
    keys = list(dict.fromkeys(known.values()))
    references = References(cells)
    made = []
    for key in keys:
        # A cell without a record has no comparability key: it joins the first table of its pairing.
        members = [cell for cell in cells if known.get(cell.key, keys[0]) == key]
        rows = _rows(members)
        editions = list(dict.fromkeys(row.edition for row in rows if not row.reference and row.edition)) or [""]
        for edition in editions:
            mine = [row for row in rows if not row.reference and row.edition in (edition, "")]
            made.append(_table([row for row in rows if row.reference], mine, edition, references))
    return made


def _rows(cells: Sequence[StoredCell]) -> list[TableRow]:
    # A row averages seeds, never two results of one seed: their difference must stay visible.
    groups: dict[tuple[str, int], dict[int, StoredCell]] = {}
    times: Counter[tuple[str, int]] = Counter()
    for cell in {cell.key: cell for cell in cells}.values():
        label, seed = _label(cell), cell.identity.seed
        groups.setdefault((label, times[label, seed]), {})[seed] = cell
        times[label, seed] += 1
    rows = []
    for group in _with_failures(groups):
        members = list(group.values())
        records = [cell.record for cell in members if cell.record]
        first = records[0].identity if records else None
        names = records[0].scores if records else {}
        rows.append(
            TableRow(
                members[0].identity.method,
                first.method_edition if first else "",
                first.reference if first else members[0].identity.method in ("original", "retained"),
                tuple(members),
                {name: _over_seeds([record.scores[name] for record in records]) for name in names},
            )
        )
    return rows


def _with_failures(groups: Mapping[tuple[str, int], dict[int, StoredCell]]) -> list[dict[int, StoredCell]]:
    """Merge a method's seeds without a score into its row, as failures, where it has exactly one row."""
    scored = [group for group in groups.values() if any(cell.record for cell in group.values())]
    rest = [group for group in groups.values() if not any(cell.record for cell in group.values())]
    of_method: dict[str, list[dict[int, StoredCell]]] = {}
    for group in scored:
        of_method.setdefault(next(iter(group.values())).identity.method, []).append(group)
    alone = []
    for group in rest:
        own = of_method.get(next(iter(group.values())).identity.method, [])
        if len(own) == 1 and not own[0].keys() & group.keys():
            own[0].update(group)
        else:
            alone.append(group)
    # Keep the order of first appearance, without the merged groups.
    kept = {id(group) for group in (*scored, *alone)}
    return [group for group in groups.values() if id(group) in kept]


def _label(cell: StoredCell) -> str:
    """The facts in which the cells of one row agree, as a hash: everything but the seed."""
    if cell.record is None:
        return cell.identity.method
    identity, provenance = cell.record.identity, cell.record.provenance
    return digest(
        [identity.method_qualified, identity.hyperparameters, provenance["method_source"], provenance["templates"]]
    )


def _over_seeds(entries: Sequence[ScoreEntry]) -> Value:
    """Average a metric over seeds: distances from a target, powers of ten of p-values, plain values otherwise."""
    first = entries[0]
    if len(entries) == 1:
        return Value(first.value, first.n, None, first.interval, first.reason, first.passes)
    values = [entry.value for entry in entries]
    reason = next((entry.reason for entry in entries if entry.reason), "")
    judged = [entry.passes for entry in entries]
    passes = None if None in judged else all(judged)
    finite = all(map(math.isfinite, values))
    if first.scale == "log":
        powers = [math.log10(value) if value > 0 else -math.inf if value == 0 else math.nan for value in values]
        middle, spread = fmean(powers), stdev(powers) if all(map(math.isfinite, powers)) else None
        interval = None if spread is None else (10 ** (middle - spread), 10 ** (middle + spread))
        return Value(10**middle if not math.isnan(middle) else math.nan, first.n, None, interval, reason, passes)
    # Exact sums: two perplexities of 1e308 have a mean although their sum overflows; their spread may overflow too.
    spread = _spread(values) if finite else None
    middle = fmean(values) if not finite else float(mean(map(Fraction, values)))
    if first.better == "target" and isinstance(first.target, float) and finite:
        distance = fmean(abs(value - first.target) for value in values)
        if not math.isclose(distance, abs(middle - first.target)):
            # With seeds on both sides of the target, the plain mean would be nearer to it than they are.
            reason = reason or f"the seeds lie on both sides of {first.target:g}: their mean distance from it"
            middle = first.target + distance
    return Value(middle, first.n, spread, None, reason, passes)


def _spread(values: Sequence[float]) -> float:
    try:
        return stdev(values)
    except OverflowError:
        return math.inf


def _table(references: list[TableRow], rows: list[TableRow], loss_edition: str, peers: References) -> Table:
    record = next(row.record for row in (*references, *rows) if row.record)
    names = tuple(record.scores)
    metrics = tuple(record.scores.values())
    # References are not unlearned, so limits of unlearning do not apply to them.
    limits = [row.record.limits for row in (rows or references) if row.record] or [record.limits]
    shared = {name: fact for name, fact in limits[0].items() if all(some.get(name) == fact for some in limits)}
    references = _with_numbers([_with_limits(row, shared) for row in references], peers)
    ranked = _with_numbers(rows, peers) if record.unranked else _ranked(rows, peers)
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


def _with_limits(row: TableRow, shared: Mapping[str, object]) -> TableRow:
    own = row.record.limits if row.record else {}
    limits: dict[str, object] = {name: fact for name, fact in own.items() if name not in shared}
    return replace(row, limits=limits | ({"seeds": row.seeds_shown} if row.seeds_shown else {}))


def _on_common_seeds(rows: Sequence[TableRow]) -> list[TableRow]:
    """Rows restricted to the seeds that all of them have, or to the most frequent seed where they share none.

    A mean over three seeds and the value of a single seed are not comparable.
    """
    seeds = [frozenset(cell.identity.seed for cell in row.cells if cell.record) for row in rows]
    if len(set(seeds)) < 2:
        return list(rows)
    common = frozenset.intersection(*seeds)
    if not common:
        counts = Counter(seed for own in seeds for seed in own)
        common = frozenset([min(counts, key=lambda seed: (-counts[seed], seed))])
    restricted = []
    for row, own in zip(rows, seeds, strict=True):
        records = [cell.record for cell in row.cells if cell.record and cell.identity.seed in common]
        if own == common or not records:
            restricted.append(row)
            continue
        values = {name: _over_seeds([record.scores[name] for record in records]) for name in row.values}
        shown = f"{', '.join(map(str, sorted(common)))}, which all rows have, of {', '.join(map(str, sorted(own)))}"
        restricted.append(replace(row, values=values, seeds=common, seeds_shown=shown))
    return restricted


def _with_numbers(rows: Iterable[TableRow], references: References) -> list[TableRow]:
    """Rows with their score, forgetting and utility."""
    chosen = [
        (row, [cell for cell in row.cells if row.seeds is None or cell.identity.seed in row.seeds]) for row in rows
    ]
    return [replace(row, numbers=numbers_of(cells, references)) if row.record else row for row, cells in chosen]


def _ranked(rows: Sequence[TableRow], references: References) -> list[TableRow]:
    """Rows with places by score, the best first; a row without a score, or that lacks a seed, comes last."""
    complete = [row for row in rows if row.record and not row.failures]
    rest = [row for row in rows if not row.record or row.failures]
    whole = _with_numbers(_on_common_seeds(complete), references)
    scored = [row for row in whole if not math.isnan(row.numbers["score"].value)]
    rest = [*(row for row in whole if math.isnan(row.numbers["score"].value)), *_with_numbers(rest, references)]
    if not scored:
        return rest
    found = pooled([row.numbers["score"] for row in scored])
    ranked = places(
        [number.value for number in found],
        np.asarray([number.resamples for number in found]),
        [number.seed_variance for number in found],
        min(number.freedom for number in found),
    )
    placed = sorted(zip(ranked, scored, found, strict=True), key=lambda entry: entry[0].place)
    rows = [replace(row, place=place, numbers={**row.numbers, "score": score}) for place, row, score in placed]
    return [*rows, *rest]


def formatted(value: float) -> str:
    """A number as tables show it: one to four decimals, very small or large ones as powers of ten, a dash for NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e+").replace("e+", "e")
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def formatted_share(value: float) -> str:
    """Score, forgetting or utility as tables show it: three decimals, a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.3f}"


ARROWS = {"higher": "↑", "lower": "↓", "target": "→"}
