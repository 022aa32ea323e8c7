"""Rows of a table: a method with its hyperparameters, and its values over runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from statistics import fmean, mean, stdev

from unlearnbench.metrics.places import Place
from unlearnbench.records.record import Record, ScoreEntry
from unlearnbench.records.run_folder import StoredCell
from unlearnbench.storage import digest

from .numbers import Number
from .robustness import Attacked, worst_of

Run = tuple[int, int]
"""A seed of the reference models, and which run of unlearning from them."""


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
class Sweep:
    """The settings of one method that a sweep tried.

    Args:
        rows: a row for each setting, the chosen one among them; settings without a score too.
        rule: the metric by which it was chosen.
        on_validation: whether it was chosen on validation rows, which the reported rows do not contain.
        in_first_run: whether the settings were tried in the first run alone, and the others have the chosen one.
        seconds: time of unlearning, of all settings together.
        area: the area under the trade-off curve of all settings.
    """

    rows: tuple[TableRow, ...]
    rule: str
    on_validation: bool
    in_first_run: bool
    seconds: float
    area: Number

    @property
    def failed(self) -> tuple[TableRow, ...]:
        """The settings of which a run has no score."""
        return tuple(row for row in self.rows if row.failures)


@dataclass(frozen=True)
class TableRow:
    """One method with its hyperparameters on one benchmark and model; a cell for each run."""

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
    runs: frozenset[Run] | None = None
    """The runs behind the row's values, where it has more than all ranked rows share."""
    runs_shown: str = ""
    """The same in words; empty where its values cover all its runs."""
    sweep: Sweep | None = None
    """The settings among which the row was chosen; None outside a sweep."""
    attacks: Mapping[str, Attacked] = field(default_factory=dict)
    """What attacks bring back, by the attack's name."""

    @property
    def robust(self) -> tuple[str, Number] | None:
        """The attack under which the score is least, and that score; None where no attack was measured."""
        return worst_of(self.attacks, self.numbers["score"]) if self.numbers else None

    @property
    def record(self) -> Record | None:
        return next((cell.record for cell in self.cells if cell.record), None)

    @property
    def scored(self) -> list[StoredCell]:
        """The cells behind the row's values."""
        return [cell for cell in self.cells if cell.record and (self.runs is None or _run(cell) in self.runs)]

    @property
    def setting(self) -> str:
        """What a sweep gave the row; empty outside a sweep."""
        return self.cells[0].identity.setting

    @property
    def failures(self) -> tuple[StoredCell, ...]:
        return tuple(cell for cell in self.cells if cell.record is None)


def rows_of(cells: Sequence[StoredCell]) -> list[TableRow]:
    """The rows of these cells, one for each method and setting."""
    # A row averages runs, never two results of one run: their difference must stay visible.
    groups: dict[tuple[str, int], dict[Run, StoredCell]] = {}
    times: Counter[tuple[str, Run]] = Counter()
    for cell in {cell.key: cell for cell in cells}.values():
        label, run = _label(cell), _run(cell)
        groups.setdefault((label, times[label, run]), {})[run] = cell
        times[label, run] += 1
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


def _run(cell: StoredCell) -> Run:
    return cell.identity.seed, cell.identity.repeat


def _with_failures(groups: Mapping[tuple[str, int], dict[Run, StoredCell]]) -> list[dict[Run, StoredCell]]:
    """Merge a setting's runs without a score into its row, as failures, where it has exactly one row."""
    scored = [group for group in groups.values() if any(cell.record for cell in group.values())]
    rest = [group for group in groups.values() if not any(cell.record for cell in group.values())]
    by_setting: dict[tuple[str, str], list[dict[Run, StoredCell]]] = {}
    for group in scored:
        by_setting.setdefault(_setting(group), []).append(group)
    alone = []
    for group in rest:
        own = by_setting.get(_setting(group), [])
        if len(own) == 1 and not own[0].keys() & group.keys():
            own[0].update(group)
        else:
            alone.append(group)
    # Keep the order of first appearance, without the merged groups.
    kept = {id(group) for group in (*scored, *alone)}
    return [group for group in groups.values() if id(group) in kept]


def _setting(group: Mapping[Run, StoredCell]) -> tuple[str, str]:
    """The method of a group, and its setting in a sweep."""
    identity = next(iter(group.values())).identity
    return identity.method, identity.setting


def _label(cell: StoredCell) -> str:
    """The facts in which the cells of one row agree, as a hash: everything but the run."""
    setting = cell.identity.setting
    if cell.record is None:
        return digest([cell.identity.method, setting])
    identity, provenance = cell.record.identity, cell.record.provenance
    facts = [identity.method_qualified, identity.hyperparameters, provenance["method_source"], provenance["templates"]]
    return digest([*facts, setting])


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
        # No p-value is above 1.
        highest = max(1.0, *values)
        interval = None if spread is None else (10 ** (middle - spread), min(10 ** (middle + spread), highest))
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


def on_common_runs(rows: Sequence[TableRow]) -> list[TableRow]:
    """Rows restricted to the runs that all of them have, or to the most frequent run where they share none.

    A mean over three seeds and the value of a single seed are not comparable.
    """
    runs = [frozenset(_run(cell) for cell in row.cells if cell.record) for row in rows]
    if len(set(runs)) < 2:
        return list(rows)
    common = frozenset.intersection(*runs)
    if not common:
        counts = Counter(run for own in runs for run in own)
        common = frozenset([min(counts, key=lambda run: (-counts[run], run))])
    restricted = []
    for row, own in zip(rows, runs, strict=True):
        records = [cell.record for cell in row.cells if cell.record and _run(cell) in common]
        if own == common or not records:
            restricted.append(row)
            continue
        values = {name: _over_seeds([record.scores[name] for record in records]) for name in row.values}
        shown = f"{_named(common)}, which all rows have, of {_named(own)}"
        restricted.append(replace(row, values=values, runs=common, runs_shown=shown))
    return restricted


def _named(runs: frozenset[Run]) -> str:
    """Runs by their seeds, with the number of a repetition behind a dot."""
    return ", ".join(f"{seed}.{repeat}" if repeat else str(seed) for seed, repeat in sorted(runs))
