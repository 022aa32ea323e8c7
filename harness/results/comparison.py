"""Compares two results row by row: differences with paired intervals, costs, and the gates of a study.

Both models of a pairing answered the same rows, and resamples draw the same rows on both sides (``Score.resamples``),
so variation that both share cancels in a resampled difference. Several runs of a pairing also give a mean, whose
interval counts what runs vary: rows alone say nothing about another seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..domain import NUMBERS, CellId, Score
from ..errors import NothingSelected, RecordError, UsageError
from ..metrics.statistics import Floats, expanded_interval, expanded_share, half_width, run_variance, run_weights
from ..plugin.registry import Registry
from ..records.balance import PARTS, Balance, References, parts_of
from ..records.comparison import Comparison, Difference, Finding, LoneCell, MeanPair, Pair
from ..records.gates import Gate
from ..records.recomputation import rescored
from ..records.record import Cost, Record, ScoreEntry
from ..records.results import Results
from ..records.run_folder import FinishedCell, StoredCell

READ_COST: Mapping[str, Callable[[Cost], float | None]] = {
    "unlearn_seconds": lambda cost: cost.seconds.get("unlearn"),
    "measure_seconds": lambda cost: cost.seconds.get("measure"),
    "unlearn_cpu_seconds": lambda cost: cost.cpu_seconds.get("unlearn"),
    "measure_cpu_seconds": lambda cost: cost.cpu_seconds.get("measure"),
    "fastest_step_cpu_seconds": lambda cost: cost.fastest_step_cpu_seconds,
    "training_tokens": lambda cost: cost.training_tokens,
    "optimiser_steps": lambda cost: cost.optimiser_steps,
    "peak_memory_bytes": lambda cost: cost.peak_memory_bytes,
}


def compare(baseline: Results, candidate: Results, registry: Registry) -> Comparison:
    """Compare every pairing with a record on both sides.

    Raises:
        UsageError: two rows may not be compared; names the field in which their comparability keys differ.
        NothingSelected: no pairing is on both sides.
    """
    before, after = _by_pairing(baseline), _by_pairing(candidate)
    shared = [
        (mine, other)
        for identity, mine in before.items()
        if isinstance(mine, FinishedCell) and isinstance(other := after.get(identity), FinishedCell)
    ]
    for mine, other in shared:
        _refuse_incomparable(mine, other)
    if not shared:
        raise NothingSelected(
            f"{baseline.source} and {candidate.source} have no finished pairing of method, benchmark, model and seed "
            f"in common ({_benchmarks(before)} against {_benchmarks(after)})"
        )
    notes: list[str] = []
    sides = _Scores(baseline, registry, notes), _Scores(candidate, registry, notes)
    pairs = tuple(_pair(mine, other, *sides) for mine, other in shared)
    paired = {mine.identity for mine, _ in shared}
    return Comparison(
        baseline.source,
        candidate.source,
        pairs,
        tuple(
            LoneCell(identity, _status(after.get(identity)))
            for identity, cell in before.items()
            if identity not in paired and isinstance(cell, FinishedCell)
        ),
        tuple(LoneCell(identity, _status(None)) for identity in after if identity not in before),
        means=tuple(_means(pairs)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _by_pairing(results: Results) -> dict[CellId, StoredCell]:
    """Cells by pairing."""
    by_pairing: dict[CellId, StoredCell] = {}
    for cell in results.cells:
        if cell.identity in by_pairing:
            raise UsageError(f"{results.source} has two cells of {cell.identity}; compare runs that have one of each")
        by_pairing[cell.identity] = cell
    return by_pairing


def _benchmarks(cells: Iterable[CellId]) -> str:
    return ", ".join(sorted({cell.benchmark for cell in cells})) or "nothing"


def _status(cell: StoredCell | None) -> str:
    """The status of a cell on the side without a record of it."""
    return "not in the candidate" if cell is None else cell.ending


def _refuse_incomparable(before: FinishedCell, after: FinishedCell) -> None:
    mine, other = before.record.comparability.key, after.record.comparability.key
    if mine == other:
        return
    name = next(name for name in (*mine, *other) if mine.get(name) != other.get(name))
    first, second = _shortest(mine.get(name), other.get(name))
    raise UsageError(
        f"{before.identity.pairing}: the rows may not be compared: {name} is {first} in the baseline and {second} in "
        "the candidate"
    )


def _shortest(first: Any, second: Any) -> tuple[str, str]:
    """Two unlike values as text; of mappings only the entries that differ."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        unlike = {key for key in (*first, *second) if first.get(key) != second.get(key)}
        first, second = ({key: side[key] for key in side if key in unlike} for side in (first, second))
    return repr(first), repr(second)


class _Scores:
    """Scores of one side with their resamples, computed on first use."""

    def __init__(self, results: Results, registry: Registry, notes: list[str]) -> None:
        self._results = results
        self._registry = registry
        self._notes = notes
        self._found: dict[str, dict[tuple[str, str | None], Score]] = {}
        self._references = References(results.cells)

    def of(self, record: Record) -> dict[tuple[str, str | None], Score]:
        """Scores by metric and edition; empty where they do not recompute from samples."""
        if record.cell not in self._found:
            scores: Sequence[Score] = ()
            try:
                scores = rescored(record, self._results.samples_of, self._registry).reported
            except RecordError as error:
                self._notes.append(f"intervals are not paired: {error}")
            self._found[record.cell] = {(score.metric, score.edition): score for score in scores}
        return self._found[record.cell]

    def resamples(self, record: Record, metric: str, edition: str) -> Floats | None:
        """(R,) resampled values of a score; None where it has none."""
        scores = self.of(record)
        score = scores.get((metric, edition)) or scores.get((metric, None))
        return None if score is None or score.resamples is None else np.asarray(score.resamples, dtype=float)

    def balance(self, cell: FinishedCell) -> Balance:
        """Score, forgetting and utility of a cell."""
        return self._references.balance(cell)

    def target(self, cell: FinishedCell, metric: str) -> _Target:
        """The target of a metric: a number, or the retained model's value on this side."""
        target = cell.record.scores[metric].target
        if isinstance(target, int | float):
            return _Target(float(target), float(target))
        wanted = replace(cell.identity, method="retained")
        retained = next((other.record for other in self._results.finished if other.identity == wanted), None)
        if target != "retained" or retained is None or metric not in retained.scores:
            return _Target(math.nan, math.nan)
        value = retained.scores[metric].value
        resampled = self.resamples(retained, metric, retained.edition)
        return _Target(value, value if resampled is None else resampled)


@dataclass(frozen=True)
class _Target:
    """The target of a metric and its resamples; NaN where there is none."""

    value: float
    resamples: Floats | float


def _pair(before: FinishedCell, after: FinishedCell, old: _Scores, new: _Scores) -> Pair:
    shared = [name for name in before.record.scores if name in after.record.scores]
    spent = before.record.cost, after.record.cost
    costs = {name: (_float(read(spent[0])), _float(read(spent[1]))) for name, read in READ_COST.items()}
    balances = old.balance(before), new.balance(after)
    metrics = [
        *_balance_differences(before, *balances),
        *(_difference(name, before, after, old, new) for name in shared),
    ]
    return Pair(before.identity, tuple(metrics), costs)


def _balance_differences(before: FinishedCell, base: Balance, new: Balance) -> Iterator[Difference]:
    """Score, forgetting and utility on both sides; nothing where the benchmark names no parts of them."""
    parts = [entry for number in PARTS for entry in parts_of(before.record, number).values()]
    if not parts:
        return
    for name, label in NUMBERS.items():
        first, second = getattr(base, name), getattr(new, name)
        paired = first.resamples is not None and second.resamples is not None
        change, interval, extra = None, None, 0.0
        difference, n = float(_minus(second.value, first.value)), min(first.n, second.n)
        freedom = max(n - 1, 1)
        if paired:
            change = _minus(second.resamples, first.resamples)
            # As for places: n rows show (n − 1) / n of their variance.
            extra = float(change.var()) / freedom
            half = half_width(change, extra, freedom)
            interval = difference - half, difference + half
        yield Difference(
            metric=name,
            label=label,
            edition=before.record.edition,
            baseline=first.value,
            candidate=second.value,
            difference=difference,
            interval=interval,
            worsening=float(_minus(first.value, second.value)),
            paired=paired,
            n=n,
            reason=second.reason or first.reason,
            resampled_difference=change,
            resampled_worsening=None if change is None else -change,
            extra_variance=extra,
            freedom=freedom,
        )


def _pairing(pair: Pair | MeanPair) -> CellId:
    """What the runs of a pairing share."""
    return replace(pair.identity, seed=0, repeat=0)


def _means(pairs: Sequence[Pair]) -> Iterator[MeanPair]:
    """The mean over the runs of each pairing that has several."""
    by_pairing: dict[CellId, list[Pair]] = {}
    for pair in pairs:
        by_pairing.setdefault(_pairing(pair), []).append(pair)
    for runs in by_pairing.values():
        if len(runs) > 1:
            shared = [
                [change for pair in runs for change in pair.metrics if change.metric == metric.metric]
                for metric in runs[0].metrics
            ]
            seeds = [pair.identity.seed for pair in runs]
            # Values of damaged or hostile records may overflow.
            with np.errstate(over="ignore", invalid="ignore"):
                means = tuple(_mean(seeds, changes) for changes in shared if len(changes) == len(runs))
            yield MeanPair(runs[0].identity, len(runs), means)


def _mean(seeds: Sequence[int], changes: Sequence[Difference]) -> Difference:
    """One metric as the mean over runs, with an interval over rows and runs."""
    weights = run_weights(seeds)
    resampled = _weighted(weights, [change.resampled_difference for change in changes])
    differences, worsenings = ([getattr(c, name) for c in changes] for name in ("difference", "worsening"))
    difference, interval = float(weights @ differences), None
    if resampled is not None and math.isfinite(difference):
        spread, freedom = run_variance(seeds, differences)
        half = half_width(resampled, spread, freedom)
        interval = difference - half, difference + half
    spread, freedom = run_variance(seeds, worsenings)
    return replace(
        changes[0],
        baseline=float(weights @ [change.baseline for change in changes]),
        candidate=float(weights @ [change.candidate for change in changes]),
        difference=difference,
        interval=interval,
        worsening=float(weights @ worsenings),
        paired=resampled is not None,
        reason=next((change.reason for change in changes if change.reason), ""),
        resampled_difference=resampled,
        resampled_worsening=_weighted(weights, [change.resampled_worsening for change in changes]),
        extra_variance=spread,
        freedom=freedom,
    )


def _weighted(weights: Floats, resamples: Sequence[Floats | None]) -> Floats | None:
    known = [each for each in resamples if each is not None]
    return weights @ np.asarray(known) if len(known) == len(weights) else None


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _difference(metric: str, before: FinishedCell, after: FinishedCell, old: _Scores, new: _Scores) -> Difference:
    """One metric on both sides, resampled jointly where both have samples of equally many rows."""
    mine, other = before.record.scores[metric], after.record.scores[metric]
    edition = before.record.edition
    first, second = old.resamples(before.record, metric, edition), new.resamples(after.record, metric, edition)
    targets = old.target(before, metric), new.target(after, metric)
    worsening = _worse(mine.better, mine.value, other.value, targets[0].value, targets[1].value)
    resampled, change, bounds = None, None, _independent(mine, other)
    paired = first is not None and second is not None and mine.n == other.n
    if paired:
        resampled = _worse(mine.better, first, second, targets[0].resamples, targets[1].resamples)
        change = _minus(second, first)
        bounds = expanded_interval(change, mine.n)
    return Difference(
        metric=metric,
        label=mine.label,
        edition=edition,
        baseline=mine.value,
        candidate=other.value,
        difference=float(_minus(other.value, mine.value)),
        interval=bounds,
        worsening=float(worsening),
        paired=paired,
        n=mine.n,
        reason=other.reason or mine.reason,
        resampled_difference=change,
        resampled_worsening=resampled,
    )


def _independent(mine: ScoreEntry, other: ScoreEntry) -> tuple[float, float] | None:
    """The interval of a difference of two scores, assumed independent."""
    if not mine.interval or not other.interval:
        return None
    half = math.hypot(*((high - low) / 2 for low, high in (mine.interval, other.interval)))
    return other.value - mine.value - half, other.value - mine.value + half


def _minus(a: Any, b: Any) -> Any:
    """a − b, with 0 between equal infinities."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    with np.errstate(invalid="ignore"):
        return np.where(first == second, 0.0, first - second)


def _worse(better: str, base: Any, new: Any, base_target: Any, new_target: Any) -> Any:
    if better == "higher":
        return _minus(base, new)
    if better == "lower":
        return _minus(new, base)
    return _minus(np.abs(_minus(new, new_target)), np.abs(_minus(base, base_target)))


def judged(comparison: Comparison, gates: Sequence[Gate]) -> list[Finding]:
    """Judge every gate on its pairings; a value that the candidate lacks trips the gate.

    Raises:
        UsageError: a gate names a metric, method or benchmark that the comparison lacks.
    """
    return [finding for gate in gates for finding in _judged(comparison, gate)]


def _judged(comparison: Comparison, gate: Gate) -> Iterator[Finding]:
    pairs = [pair for pair in comparison.pairs if _concerns(gate, pair.identity)]
    lost = [cell for cell in comparison.only_baseline if _concerns(gate, cell.identity)]
    if not pairs and not lost:
        raise UsageError(f"gate {gate}: no pairing of the baseline is {gate.method} on {gate.benchmark}")
    known = sorted({change.metric for pair in pairs for change in pair.metrics})
    if gate.cost:
        yield from _cost_findings(comparison, gate, pairs)
    elif pairs and gate.metric not in known:
        raise UsageError(f"gate {gate}: no such metric there (known: {', '.join(known)})")
    else:
        for judged_pair in _of_runs(comparison, pairs) if gate.confidence else pairs:
            for change in judged_pair.metrics:
                if change.metric == gate.metric:
                    yield _metric_finding(gate, judged_pair, change)
    for cell in lost:
        yield Finding(gate, cell.identity.pairing, True, f"the candidate has no record of it: {cell.status}")


def _of_runs(comparison: Comparison, pairs: Sequence[Pair]) -> list[Pair | MeanPair]:
    """The means of pairings with several runs, and the pairs of those with one."""
    means = {_pairing(mean): mean for mean in comparison.means}
    return list({id(found): found for pair in pairs for found in [means.get(_pairing(pair), pair)]}.values())


def _concerns(gate: Gate, identity: CellId) -> bool:
    attacked = identity.attack == gate.attack or (gate.attack == "*" and bool(identity.attack))
    return attacked and gate.method in ("*", identity.method) and gate.benchmark in ("*", identity.benchmark)


def _metric_finding(gate: Gate, pair: Pair | MeanPair, change: Difference) -> Finding:
    title = f"{pair.title}: {change.label}"
    values = f"{change.baseline:.6g} → {change.candidate:.6g}"
    if math.isnan(change.baseline):
        return Finding(gate, title, False, f"missing in the baseline ({change.reason})")
    if math.isnan(change.candidate):
        return Finding(gate, title, True, f"{values}: missing in the candidate ({change.reason})")
    if gate.max_change is not None and abs(change.difference) > gate.max_change:
        return Finding(gate, title, True, f"{values}: moved by {change.difference:+.4g}, allowed ±{gate.max_change:g}")
    if gate.max_drop is None:
        return Finding(gate, title, False, values)
    worse = change.worsening
    sure = ""
    if gate.confidence:
        if change.resampled_worsening is None or np.isnan(change.resampled_worsening).any():
            return Finding(gate, title, worse > gate.max_drop, f"{values}: no paired interval, judged by the values")
        worse = _least_worsening(change, gate.confidence)
        sure = f" by {worse:.4g} at least, with {gate.confidence:.0%} confidence"
    if worse > gate.max_drop:
        return Finding(gate, title, True, f"{values}: worse{sure or f' by {worse:.4g}'}, allowed {gate.max_drop:g}")
    return Finding(gate, title, False, values)


def _least_worsening(change: Difference, confidence: float) -> float:
    """The one-sided lower bound of a worsening that has resamples."""
    resampled = change.resampled_worsening
    assert resampled is not None
    if math.isinf(change.freedom):
        return float(np.quantile(resampled, expanded_share(change.n, 1 - confidence), method="lower"))
    # One-sided confidence c is the lower end of the two-sided interval of level 2c − 1.
    return change.worsening - half_width(resampled, change.extra_variance, change.freedom, 2 * confidence - 1)


def _cost_findings(comparison: Comparison, gate: Gate, pairs: Iterable[Pair]) -> Iterator[Finding]:
    name, most = gate.cost, gate.max_ratio or 1.0
    for pair in pairs:
        if gate.relative_to == pair.identity.method:
            continue
        sides = pair.costs[name]
        if gate.relative_to:
            wanted = replace(pair.identity, method=gate.relative_to)
            other = next((p for p in comparison.pairs if p.identity == wanted), None)
            if other is None:
                raise UsageError(f"gate {gate}: both runs need a cell of {gate.relative_to} × {wanted.benchmark}")
            base, new = (_ratio(mine, theirs) for mine, theirs in zip(sides, other.costs[name], strict=True))
        else:
            base, new = sides
        title = f"{pair.title}: {name}"
        if not base or new is None:
            yield Finding(gate, title, False, "the baseline spent none of it, or does not say")
            continue
        grown = new / base
        words = f"{base:.4g} → {new:.4g}{f' of {gate.relative_to}' if gate.relative_to else ''}: × {grown:.2f}"
        yield Finding(gate, title, grown > most, f"{words}, allowed × {most:g}")


def _ratio(mine: float | None, theirs: float | None) -> float | None:
    return mine / theirs if mine is not None and theirs else None
