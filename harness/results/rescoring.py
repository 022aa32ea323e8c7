"""Scores a run again from its stored samples after a change of scoring code alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import RecordError, UsageError
from ..plugin.registry import Component, Registry
from ..plugin.specs import BenchmarkSpec
from ..records.code_digest import modules_digest
from ..records.judging import NOT_JUDGED, SampleRows, is_judged, judged_rows
from ..records.recomputation import benchmark_of, differences, rescored
from ..records.record import SAMPLES, Record, score_entries, validation_values
from ..records.results import Results
from ..records.run_folder import RECORD, STATUS, read_status
from ..running.run_store import locked
from ..storage import rows_as_bytes, write_bytes, write_sealed
from .opening import opened


@dataclass(frozen=True)
class Rescored:
    """A cell that was scored again, and the changes to its scores."""

    key: str
    changes: tuple[str, ...]


def rescore(run: Path, registry: Registry, judge: bool = False) -> list[Rescored]:
    """Score every finished cell of a run folder again with the installed benchmarks, and store the scores.

    Trains and queries no model: the stored measurements stay unchanged, but for what an outside scorer says of them.

    Args:
        judge: ask the outside scorers of benchmarks that have one again.

    Raises:
        RecordError: samples or records are damaged, or the benchmark is of another version.
    """
    with locked(run), opened([run]) as (results,):
        judged = _judged(results, registry) if judge else {}

        def samples_of(key: str) -> SampleRows:
            return judged[key] if key in judged else results.samples_of(key)

        # Stored once all are scored: what fails in the middle leaves everything as it was.
        found = [(cell, *_again(cell.record, samples_of, registry)) for cell in results.finished]
        for cell, record, component, _ in found:
            if cell.key in judged:
                content = rows_as_bytes(judged[cell.key])
                samples = record.samples.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
                notes = [note for note in record.notes if not note.startswith(NOT_JUDGED)]
                record = record.model_copy(update={"samples": samples, "notes": notes})
                write_bytes(cell.folder / SAMPLES, content)
            _keep(cell.folder, record, modules_digest(component.spec.scoring))
        return [Rescored(cell.key, changes) for cell, _, _, changes in found]


def _judged(results: Results, registry: Registry) -> dict[str, SampleRows]:
    """The rows of every cell whose benchmark has a scorer, with what it says of them now."""
    found: dict[str, SampleRows] = {}
    for cell in results.finished:
        _, benchmark = benchmark_of(cell.record, registry)
        if is_judged(benchmark):
            found[cell.key] = judged_rows(benchmark, results.samples_of(cell.key))
    if not found:
        raise UsageError(f"{results.source}: no cell is of a benchmark with a judge (its class has no 'judge')")
    return found


def _again(
    record: Record, samples_of: Callable[[str], SampleRows], registry: Registry
) -> tuple[Record, Component[BenchmarkSpec], tuple[str, ...]]:
    """The record with fresh scores, its benchmark, and what changed."""
    fresh = rescored(record, samples_of, registry)
    component, _ = benchmark_of(record, registry)
    metrics = component.spec.metrics
    scores = score_entries(fresh.reported, metrics, record.edition)
    validation = validation_values(fresh.validation, metrics, record.edition)
    again = record.model_copy(update={"scores": scores, "validation": validation})
    return again, component, tuple(differences(record, fresh, component))


def _keep(folder: Path, record: Record, scoring: str) -> None:
    content = record.model_dump_json(indent=1).encode() + b"\n"
    status = read_status(folder)
    if status is None:
        raise RecordError(f"{folder / STATUS} does not exist; run the study again")
    fresh = {
        "record_sha256": hashlib.sha256(content).hexdigest(),
        "samples_sha256": record.samples.sha256,
        "scoring": scoring,
    }
    write_bytes(folder / RECORD, content)
    write_sealed(folder / STATUS, status.model_copy(update=fresh).model_dump(mode="json"))
