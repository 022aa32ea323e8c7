"""Recomputes scores from the samples beside a record. Loads no model and imports no torch.

The registry looks up the installed benchmark that a record names; nothing is imported by a path in a record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..domain import Measurement, Score, Split
from ..errors import RecordError
from ..plugin.parameters import parse_parameters
from ..plugin.registry import Component, Registry
from ..plugin.specs import BenchmarkSpec, resolve
from .record import EditionScore, Identity, Record, ScoreEntry, score_entries, validation_values
from .row_split import divided
from .tries import worst_tries

TOLERANCE = 1e-9
SampleRows = Sequence[Mapping[str, Any]]


def scores_of(
    benchmark: Any, identity: Identity, mine: Measurement, references: Mapping[str, Measurement]
) -> Iterable[Score]:
    """The benchmark's scores of a model against its references; a reference model is its own reference.

    Raises:
        RecordError: the retained model's measurement is missing.
    """
    original = mine if identity.method_qualified == "unlearnbench/original" else references.get("original")
    is_retained = identity.reference and identity.requires.start == "retained"
    retained = mine if is_retained else references.get("retained")
    if retained is None:
        raise RecordError(f"{identity.method}: the retained model's samples are not among its references")
    scores: Iterable[Score] = benchmark.score(mine, original, retained)
    return scores


@dataclass(frozen=True)
class DividedScores:
    """Scores of the reported rows, and of the validation rows; none of these, with a reason, where rows are whole."""

    reported: list[Score]
    validation: list[Score]
    whole: str = ""


def divided_scores(
    benchmark: Any,
    identity: Identity,
    mine: Measurement,
    references: Mapping[str, Measurement],
    split: Split | None,
) -> DividedScores:
    """``scores_of`` for reported and for validation rows; references are divided in the same way."""
    own = divided(worst_tries(mine), split)
    others = {role: divided(worst_tries(measured), split) for role, measured in references.items()}
    reported = scores_of(benchmark, identity, own.reported, {role: some.reported for role, some in others.items()})
    if own.validation is None:
        return DividedScores(list(reported), [], own.reason)
    held_back = {role: some.validation for role, some in others.items() if some.validation is not None}
    return DividedScores(list(reported), list(scores_of(benchmark, identity, own.validation, held_back)))


def benchmark_of(record: Record, registry: Registry) -> tuple[Component[BenchmarkSpec], Any]:
    """The installed benchmark that a record names, and an instance with the record's settings.

    Raises:
        RecordError: the installed benchmark has another version.
        UnknownName, UsageError: no such benchmark is installed, or it lacks a setting.
    """
    component = registry.find("benchmark", record.identity.benchmark_qualified)
    spec: BenchmarkSpec = component.spec
    if spec.version != record.identity.benchmark_version:
        raise RecordError(
            f"{record.cell}: benchmark {spec.name} is version {record.identity.benchmark_version} in the record and "
            f"{spec.version} here; install the version of unlearnbench that made it"
        )
    settings = record.comparability.key.get("benchmark_settings")
    given = settings if isinstance(settings, Mapping) else {}
    values = parse_parameters(
        spec.parameters, {k: v for k, v in given.items() if k not in spec.fixed}, f"benchmarks.{spec.name}"
    )
    return component, resolve(spec.target, component.qualified)(**values, **spec.fixed)


def rescored(record: Record, samples_of: Callable[[str], SampleRows], registry: Registry) -> DividedScores:
    """Every score of a record, from its samples and its references' samples.

    Args:
        samples_of: returns the rows of a cell's sample file, given the cell's key.

    Raises:
        RecordError: samples are missing, or are not what the benchmark measures.
    """
    _, benchmark = benchmark_of(record, registry)
    mine = Measurement(tuple(samples_of(record.cell)))
    references = {role: Measurement(tuple(samples_of(key))) for role, key in record.samples.references.items()}
    try:
        return divided_scores(benchmark, record.identity, mine, references, record.split)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise RecordError(
            f"{record.cell}: the samples are not what {record.identity.benchmark} measures "
            f"({type(error).__name__}: {error})"
        ) from error


def differences(record: Record, found: DividedScores, component: Component[BenchmarkSpec]) -> list[str]:
    """Departures of a record from its recomputed scores, a line each: value, number of rows, interval, criterion."""
    fresh = score_entries(found.reported, component.spec.metrics, record.edition)
    lines = []
    if record.split not in (None, component.spec.split):
        lines.append(
            f"{record.cell}: its rows are divided by {record.split}, the benchmark divides {component.spec.split}"
        )
    values = validation_values(found.validation, component.spec.metrics, record.edition)
    lines += [
        f"{record.cell}: {name} on validation rows is stored as {record.validation.get(name)}, and recomputed as "
        f"{values.get(name)}"
        for name in sorted({*record.validation, *values})
        if not _same_values(record.validation.get(name, {}), values.get(name, {}))
    ]
    for name in sorted({*fresh, *record.scores}):
        stored, again = record.scores.get(name), fresh.get(name)
        if stored is None or again is None:
            lines.append(f"{record.cell}: {name} is {'not stored' if stored is None else 'no metric here'}")
            continue
        lines += _entry_differences(f"{record.cell}: {name}", stored, again)
    return lines


def _entry_differences(where: str, stored: ScoreEntry, again: ScoreEntry) -> list[str]:
    lines = []
    for edition in sorted({*stored.editions, *again.editions}):
        old, new = stored.editions.get(edition), again.editions.get(edition)
        if old is None or new is None:
            lines.append(f"{where} ({edition}) is {'not stored' if old is None else 'no edition here'}")
            continue
        pairs: list[tuple[str, object, object]]
        pairs = [("value", old.value, new.value), ("n", old.n, new.n), ("passes", old.passes, new.passes)]
        if (old.interval is None) != (new.interval is None):
            pairs.append(("interval", old.interval, new.interval))
        elif old.interval and new.interval:
            pairs += zip(("low end", "high end"), old.interval, new.interval, strict=True)
        if not _same_resamples(old, new):
            lines.append(f"{where} ({edition}): the stored resamples are not those of its samples")
        lines += [
            f"{where} ({edition}) {what}: stored {kept!r}, recomputed {fresh!r}"
            for what, kept, fresh in pairs
            if not agree(kept, fresh)
        ]
    shown = stored.editions.get(stored.edition) or next(iter(stored.editions.values()), None)
    same = shown is not None and agree(stored.value, shown.value) and stored.interval == shown.interval
    if shown is None or not same or stored.resamples != shown.resamples:
        lines.append(f"{where}: the score on top ({stored.value!r}) is not that of its edition")
    described = ("label", "better", "headline", "target", "criterion", "part_of", "span", "two_sided")
    lines += [
        f"{where} {field}: stored {getattr(stored, field)!r}, here {getattr(again, field)!r}"
        for field in described
        if getattr(stored, field) != getattr(again, field)
    ]
    return lines


def _same_values(stored: Mapping[str, float], fresh: Mapping[str, float]) -> bool:
    return stored.keys() == fresh.keys() and all(agree(stored[edition], fresh[edition]) for edition in fresh)


def _same_resamples(old: EditionScore, new: EditionScore) -> bool:
    """Whether resamples are equal to the precision in which they are stored."""
    import numpy as np

    if old.resampled is None or new.resampled is None:
        return old.resampled is new.resampled
    return bool(np.allclose(old.resampled, new.resampled, rtol=1e-5, atol=1e-6, equal_nan=True))


def agree(stored: object, fresh: object) -> bool:
    """Whether values are equal: numbers within 1e-9, relative (absolute below 1), and NaN equals NaN."""
    if isinstance(stored, float) and isinstance(fresh, float):
        if math.isnan(stored) or math.isnan(fresh) or math.isinf(stored) or math.isinf(fresh):
            return stored == fresh or (math.isnan(stored) and math.isnan(fresh))
        return abs(stored - fresh) <= TOLERANCE * max(1.0, abs(fresh))
    return stored == fresh
