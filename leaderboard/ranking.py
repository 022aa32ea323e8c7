"""Groups rows that may be compared into tables and ranks them. Pure: records in, tables out."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from statistics import fmean, mean, stdev

from unlearnbench.records.record import Record, ScoreEntry
from unlearnbench.records.run_folder import StoredCell
from unlearnbench.storage import digest


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
    rank: int = 0
    """1 and 2 for the two best of the ranked rows (ties share a rank); 0 otherwise."""


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
    place: int = 0
    """1 for the best of the ranked rows; equal rows share a place; 0 for a row that is not ranked."""
    layer: int = 0
    """1 on the Pareto front of forgetting and utility, 2 on the front of the remaining rows, …; 0 without axes."""
    mean_rank: float = math.nan
    """The mean of the row's ranks in the paper's columns."""
    seeds: frozenset[int] | None = None
    """The seeds behind the row's values, where it has more seeds than all ranked rows share."""
    seeds_shown: str = ""
    """The same in words; empty where its values cover all its seeds."""

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
    def axes(self) -> tuple[str, str] | None:
        """The metrics of forgetting and of utility; None where the benchmark does not declare both."""
        by_axis = {metric.axis: name for name, metric in zip(self.names, self.metrics, strict=True) if metric.axis}
        return (by_axis["forget"], by_axis["utility"]) if {"forget", "utility"} <= by_axis.keys() else None

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
    made = []
    for key in keys:
        # A cell without a record has no comparability key: it joins the first table of its pairing.
        members = [cell for cell in cells if known.get(cell.key, keys[0]) == key]
        rows = _rows(members)
        editions = list(dict.fromkeys(row.edition for row in rows if not row.reference and row.edition)) or [""]
        for edition in editions:
            mine = [row for row in rows if not row.reference and row.edition in (edition, "")]
            made.append(_table([row for row in rows if row.reference], mine, edition))
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


def _table(references: list[TableRow], rows: list[TableRow], loss_edition: str) -> Table:
    record = next(row.record for row in (*references, *rows) if row.record)
    names = tuple(record.scores)
    metrics = tuple(record.scores.values())
    # References are not unlearned, so limits of unlearning do not apply to them.
    limits = [row.record.limits for row in (rows or references) if row.record] or [record.limits]
    shared = {name: fact for name, fact in limits[0].items() if all(some.get(name) == fact for some in limits)}
    references = [_with_limits(row, shared) for row in references]
    ranked = rows if record.unranked else _ranked(rows, record.scores, _own_originals(references, rows))
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


def _own_originals(references: Sequence[TableRow], rows: Sequence[TableRow]) -> dict[str, Record]:
    """Original model of each cell, by the cell's key, where the table has originals with different scores.

    Two sources may have trained different original models. A method then ranks by its change from its own original;
    otherwise the original would decide its place.
    """
    originals = [cell for row in references if row.method == "original" for cell in row.cells if cell.record]
    if len({digest({n: s.value for n, s in cell.record.scores.items()}) for cell in originals if cell.record}) < 2:
        return {}
    known = {(cell.folder.parent, cell.record.cell): cell.record for cell in originals if cell.record}
    return {
        cell.key: known[place]
        for row in rows
        for cell in row.cells
        if cell.record and (place := (cell.folder.parent, cell.record.samples.references.get("original"))) in known
    }


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


def _ranked(
    rows: Sequence[TableRow], metrics: Mapping[str, ScoreEntry], originals: Mapping[str, Record]
) -> list[TableRow]:
    """Rows with places, the best first, and with the two best values of every column marked.

    The place follows the Pareto layer in forgetting and utility, then the mean of the ranks in the paper's columns.
    A row that lacks a seed or a value in these columns gets no place and comes last.
    """
    judged = [name for name, metric in metrics.items() if metric.headline and oriented(0.0, metric) is not None]
    whole = [
        row
        for row in rows
        if row.record and not row.failures and not any(math.isnan(row.values[name].value) for name in judged)
    ]
    kept = {id(row) for row in whole}
    rest = [row for row in rows if id(row) not in kept]
    whole = _on_common_seeds(whole)
    columns = [[_placing(row, name, metrics[name], originals) for row in whole] for name in judged]
    ranks = [_mid_ranks(column) for column in columns]
    means = [fmean(of_row) if of_row else 0.0 for of_row in zip(*ranks, strict=True)] or [0.0] * len(whole)
    axes = {metric.axis: judged.index(name) for name, metric in metrics.items() if metric.axis and name in judged}
    layers = [0] * len(whole)
    if {"forget", "utility"} <= axes.keys():
        layers = pareto_layers(list(zip(columns[axes["utility"]], columns[axes["forget"]], strict=True)))
    order = sorted(range(len(whole)), key=lambda i: (layers[i], means[i]))
    placed: list[TableRow] = []
    for count, i in enumerate(order, 1):
        last = placed[-1] if placed else None
        tied = last is not None and (last.layer, last.mean_rank) == (layers[i], means[i])
        place = last.place if last is not None and tied else count
        placed.append(replace(whole[i], place=place, layer=layers[i], mean_rank=means[i]))
    # Only rows with a place can be marked as best.
    marks = {name: _best_two(metric, [row.values[name].value for row in placed]) for name, metric in metrics.items()}
    marked = [
        replace(row, values={n: replace(v, rank=marks[n](v.value)) for n, v in row.values.items()}) for row in placed
    ]
    return [*marked, *rest]


def _placing(row: TableRow, name: str, metric: ScoreEntry, originals: Mapping[str, Record]) -> float:
    """A row's value in a column, or its change from its own original's value; more is better."""
    changes = []
    for cell in row.cells:
        original = originals.get(cell.key)
        if cell.record and original and (row.seeds is None or cell.identity.seed in row.seeds):
            mine, theirs = (_read(record.scores[name].value, metric) for record in (cell.record, original))
            changes.append(mine - theirs)
    if changes and not any(map(math.isnan, changes)):
        return fmean(changes)
    return _read(row.values[name].value, metric)


def _read(value: float, metric: ScoreEntry) -> float:
    """A value such that more is better; p-values as powers of ten."""
    better = oriented(value, metric)
    if metric.scale == "log":
        return math.log10(value) if value > 0 else -math.inf
    return 0.0 if better is None else better


def oriented(value: float, metric: ScoreEntry) -> float | None:
    """The value such that more is better; None for a metric whose target is the retained model's value."""
    if metric.better == "target":
        return -abs(value - metric.target) if isinstance(metric.target, float) else None
    return -value if metric.better == "lower" else value


def _best_two(metric: ScoreEntry, values: Sequence[float]) -> Callable[[float], int]:
    """A function from a value of this column to its mark: 1, 2 or 0. A column of equal values has no best."""
    better = [oriented(value, metric) for value in values if not math.isnan(value)]
    best = sorted({value for value in better if value is not None}, reverse=True)[:2]
    if len(best) < 2 < len(values) or None in better:
        best = []
    places = {value: place for place, value in enumerate(best, 1)}
    return lambda value: 0 if math.isnan(value) else places.get(oriented(value, metric), 0)  # type: ignore[arg-type]


def _mid_ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, 1 for the greatest; equal values share the middle of their ranks."""
    # Half a second of import, which pages alone need.
    from scipy.stats import rankdata

    return [float(rank) for rank in rankdata([-value for value in values])]


def pareto_layers(points: Sequence[tuple[float, float]]) -> list[int]:
    """The Pareto layer of each point, larger being better: 1 is dominated by none, k + 1 by some point of layer k.

    A point dominates another where it is at least equal in both and better in one; equal points share a layer.
    """
    layers = [0] * len(points)
    tops: list[float] = []  # the negated greatest second coordinate of each layer so far, ascending
    last: tuple[tuple[float, float], int] | None = None
    for i in sorted(range(len(points)), key=lambda i: points[i], reverse=True):
        point = points[i]
        if last and last[0] == point:
            layers[i] = last[1]
            continue
        layer = bisect_right(tops, -point[1])
        tops[layer : layer + 1] = [-point[1]]
        layers[i] = layer + 1
        last = (point, layer + 1)
    return layers


def formatted(value: float) -> str:
    """A number as tables show it: one to four decimals, very small or large ones as powers of ten, a dash for NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e+").replace("e+", "e")
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


ARROWS = {"higher": "↑", "lower": "↓", "target": "→"}
