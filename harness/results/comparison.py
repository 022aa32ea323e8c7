"""Two results row by row: differences with paired intervals, cost included; and the gates of a study over them.

Both models of a pairing answered the same rows, and resamples draw the same rows on both sides (``Score.resamples``),
so a difference is resampled with what the two have in common left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..domain import Score
from ..errors import NothingSelected, RecordError, UsageError
from ..metrics.statistics import Floats, expanded_interval, expanded_share
from ..plugin.registry import Registry
from ..records.comparison import Comparison, Difference, Finding, Pair
from ..records.gates import Gate
from ..records.recomputation import rescored
from ..records.record import Cost, Record
from ..records.results import Results
from ..records.run_folder import StoredCell

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
    """Every pairing that both sides have a record of.

    Raises:
        UsageError: two rows may not be compared, and which field of their comparability keys says so.
        NothingSelected: no pairing is on both sides.
    """
    ours, theirs = _by_pairing(baseline), _by_pairing(candidate)
    shared = [key for key in ours if key in theirs and ours[key].record and theirs[key].record]
    for key in shared:
        _refuse_incomparable(ours[key], theirs[key])
    notes: list[str] = []
    scored = {side.source: _Scores(side, registry, notes) for side in (baseline, candidate)}
    sides = scored[baseline.source], scored[candidate.source]
    pairs = tuple(_pair(ours[key], theirs[key], *sides) for key in shared)
    if not pairs:
        raise NothingSelected(
            f"{baseline.source} and {candidate.source} have no finished pairing of method, benchmark, model and seed "
            f"in common ({_named(ours)} against {_named(theirs)})"
        )
    return Comparison(
        baseline.source,
        candidate.source,
        pairs,
        tuple(_alone(ours[key], theirs.get(key)) for key in ours if key not in shared and ours[key].record),
        tuple(_alone(theirs[key], None) for key in theirs if key not in ours),
        tuple(dict.fromkeys(notes)),
    )


def _by_pairing(results: Results) -> dict[tuple[Any, ...], StoredCell]:
    """Cells by what they pair; where a method stands twice, its hyperparameters tell the rows apart."""
    found: dict[tuple[Any, ...], StoredCell] = {}
    for cell in results.cells:
        key = tuple(cell.identity[name] for name in ("method", "benchmark", "model", "seed"))
        if key in found:
            raise UsageError(
                f"{results.source} has two cells of {cell.identity['method']} × {cell.identity['benchmark']} × "
                f"{cell.identity['model']} seed {cell.identity['seed']}; compare runs that have one of each"
            )
        found[key] = cell
    return found


def _named(cells: Mapping[tuple[Any, ...], StoredCell]) -> str:
    return ", ".join(sorted({str(cell.identity["benchmark"]) for cell in cells.values()})) or "nothing"


def _alone(cell: StoredCell, other: StoredCell | None) -> dict[str, Any]:
    status = "not in the candidate" if other is None else f"{other.status}: {other.reason}".rstrip(": ")
    return {**cell.identity, "status": status}


def _refuse_incomparable(ours: StoredCell, theirs: StoredCell) -> None:
    assert ours.record is not None
    assert theirs.record is not None
    mine, other = ours.record.comparability.key, theirs.record.comparability.key
    if mine == other:
        return
    name = next(name for name in (*mine, *other) if mine.get(name) != other.get(name))
    first, second = _shortest(mine.get(name), other.get(name))
    i = ours.identity
    raise UsageError(
        f"{i['method']} × {i['benchmark']}: the rows may not be compared: {name} is {first} in the baseline and "
        f"{second} in the candidate"
    )


def _shortest(first: Any, second: Any) -> tuple[str, str]:
    """Two unlike values; of mappings only what differs in them."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        unlike = {key for key in (*first, *second) if first.get(key) != second.get(key)}
        first, second = ({key: side[key] for key in side if key in unlike} for side in (first, second))
    return repr(first), repr(second)


class _Scores:
    """Scores of one side with their resamples, computed when first asked for."""

    def __init__(self, results: Results, registry: Registry, notes: list[str]) -> None:
        self._results = results
        self._registry = registry
        self._notes = notes
        self._found: dict[str, dict[tuple[str, str | None], Score]] = {}

    def of(self, record: Record) -> dict[tuple[str, str | None], Score]:
        """By metric and edition; empty where there are no samples to compute them from."""
        if record.cell not in self._found:
            scores: Sequence[Score] = ()
            try:
                scores = rescored(record, self._results.samples_of, self._registry)
            except RecordError as error:
                self._notes.append(f"intervals are not paired: {error}")
            self._found[record.cell] = {(score.metric, score.edition): score for score in scores}
        return self._found[record.cell]

    def resamples(self, record: Record, metric: str, edition: str) -> Floats | None:
        """(R,) resampled values of a score that recomputes."""
        found = self.of(record)
        score = found.get((metric, edition)) or found.get((metric, None))
        return None if score is None or score.resamples is None else np.asarray(score.resamples, dtype=float)

    def retained(self, cell: StoredCell) -> Record | None:
        """The record of the retained model beside a cell."""
        wanted = {**cell.identity, "method": "retained"}
        return next((other.record for other in self._results.cells if dict(other.identity) == wanted), None)


def _pair(ours: StoredCell, theirs: StoredCell, base: _Scores, new: _Scores) -> Pair:
    mine, other = ours.record, theirs.record
    assert mine is not None
    assert other is not None
    metrics = tuple(_difference(name, ours, theirs, base, new) for name in mine.scores if name in other.scores)
    costs = {name: (_number(read(mine.cost)), _number(read(other.cost))) for name, read in READ_COST.items()}
    return Pair(ours.identity, metrics, costs)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _difference(name: str, ours: StoredCell, theirs: StoredCell, base: _Scores, new: _Scores) -> Difference:
    assert ours.record is not None
    assert theirs.record is not None
    mine, other = ours.record.scores[name], theirs.record.scores[name]
    edition = ours.record.edition
    resampled = base.resamples(ours.record, name, edition), new.resamples(theirs.record, name, edition)
    paired = None not in [None if values is None else 1 for values in resampled] and mine.n == other.n
    targets = [_target(mine.target, name, cell, side) for cell, side in ((ours, base), (theirs, new))]
    worsening = float(_worse(mine.better, mine.value, other.value, targets[0][0], targets[1][0]))
    found: Floats | None = None
    bounds = None
    if paired:
        first, second = (np.asarray(values) for values in resampled)
        found = _worse(mine.better, first, second, targets[0][1], targets[1][1])
        bounds = expanded_interval(_minus(second, first), mine.n)
    elif mine.interval and other.interval:
        half = math.hypot(*((high - low) / 2 for low, high in (mine.interval, other.interval)))
        bounds = (other.value - mine.value - half, other.value - mine.value + half)
    return Difference(
        name, mine.label, edition, mine.value, other.value, float(_minus(other.value, mine.value)), bounds, worsening,
        paired, mine.n, other.reason or mine.reason, found,
    )  # fmt: skip


def _target(target: object, metric: str, cell: StoredCell, side: _Scores) -> tuple[float, Any]:
    """The value that is aimed at, and its resamples: a number, or the retained model's value on the same side."""
    if isinstance(target, int | float):
        return float(target), float(target)
    retained = side.retained(cell) if target == "retained" else None
    if retained is None or metric not in retained.scores:
        return math.nan, math.nan
    resampled = side.resamples(retained, metric, retained.edition)
    value = retained.scores[metric].value
    return value, value if resampled is None else resampled


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
    """Every gate over every pairing that it is for; what the candidate lacks trips it.

    Raises:
        UsageError: a gate names a metric, method or benchmark that is nowhere in the comparison.
    """
    return [finding for gate in gates for finding in _judged(comparison, gate)]


def _judged(comparison: Comparison, gate: Gate) -> Iterator[Finding]:
    pairs = [pair for pair in comparison.pairs if _concerns(gate, pair.identity)]
    lost = [cell for cell in comparison.only_baseline if _concerns(gate, cell)]
    if not pairs and not lost:
        raise UsageError(f"gate {gate}: no pairing of the baseline is {gate.method} on {gate.benchmark}")
    known = sorted({found.metric for pair in pairs for found in pair.metrics})
    if gate.metric.startswith("cost."):
        yield from _cost_findings(comparison, gate, pairs)
    elif pairs and gate.metric not in known:
        raise UsageError(f"gate {gate}: no such metric there (known: {', '.join(known)})")
    else:
        for pair in pairs:
            for found in pair.metrics:
                if found.metric == gate.metric:
                    yield _metric_finding(gate, pair, found)
    for cell in lost:
        title = f"{cell['method']} × {cell['benchmark']}"
        yield Finding(gate, title, True, f"the candidate has no record of it: {cell['status']}")


def _concerns(gate: Gate, identity: Mapping[str, Any]) -> bool:
    return gate.method in ("*", identity["method"]) and gate.benchmark in ("*", identity["benchmark"])


def _metric_finding(gate: Gate, pair: Pair, found: Difference) -> Finding:
    title = f"{pair.title}: {found.label}"
    values = f"{found.baseline:.6g} → {found.candidate:.6g}"
    if math.isnan(found.baseline):
        return Finding(gate, title, False, f"missing in the baseline ({found.reason})")
    if math.isnan(found.candidate):
        return Finding(gate, title, True, f"{values}: missing in the candidate ({found.reason})")
    if gate.max_change is not None and abs(found.difference) > gate.max_change:
        return Finding(gate, title, True, f"{values}: moved by {found.difference:+.4g}, allowed ±{gate.max_change:g}")
    if gate.max_drop is None:
        return Finding(gate, title, False, values)
    worse = found.worsening
    sure = ""
    if gate.confidence:
        if found.resampled_worsening is None or np.isnan(found.resampled_worsening).any():
            return Finding(gate, title, worse > gate.max_drop, f"{values}: no paired interval, judged by the values")
        share = expanded_share(found.n, 1 - gate.confidence)
        worse = float(np.quantile(found.resampled_worsening, share, method="lower"))
        sure = f" by {worse:.4g} at least, with {gate.confidence:.0%} confidence"
    if worse > gate.max_drop:
        return Finding(gate, title, True, f"{values}: worse{sure or f' by {worse:.4g}'}, allowed {gate.max_drop:g}")
    return Finding(gate, title, False, values)


def _cost_findings(comparison: Comparison, gate: Gate, pairs: Sequence[Pair]) -> Iterator[Finding]:
    name = gate.metric.removeprefix("cost.")
    assert gate.max_ratio is not None
    for pair in pairs:
        if gate.relative_to == pair.identity["method"]:
            continue
        sides = pair.costs[name]
        if gate.relative_to:
            wanted = {**pair.identity, "method": gate.relative_to}
            other = next((p for p in comparison.pairs if dict(p.identity) == wanted), None)
            if other is None:
                raise UsageError(f"gate {gate}: both runs need a cell of {gate.relative_to} × {wanted['benchmark']}")
            base, new = (_ratio(mine, theirs) for mine, theirs in zip(sides, other.costs[name], strict=True))
        else:
            base, new = sides
        title = f"{pair.title}: {name}"
        if not base or new is None:
            yield Finding(gate, title, False, "the baseline spent none of it, or does not say")
            continue
        grown = new / base
        words = f"{base:.4g} → {new:.4g}{f' of {gate.relative_to}' if gate.relative_to else ''}: × {grown:.2f}"
        yield Finding(gate, title, grown > gate.max_ratio, f"{words}, allowed × {gate.max_ratio:g}")


def _ratio(mine: float | None, theirs: float | None) -> float | None:
    return mine / theirs if mine is not None and theirs else None
