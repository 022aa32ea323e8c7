"""Scores a run again from its stored samples after a change of scoring code alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import RecordError, UsageError
from ..plugin.registry import Registry
from ..records.code_digest import modules_digest
from ..records.judging import NOT_JUDGED, is_judged, judged_rows
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
        judge: ask the outside scorers of benchmarks that have one again, for all cells before any is scored.

    Raises:
        RecordError: samples or records are damaged, or the benchmark is of another version.
    """
    if judge:
        with locked(run), opened([run]) as (results,):
            _judge(results, registry)
    with locked(run), opened([run]) as (results,):
        made = []
        for cell in results.finished:
            record, fresh = cell.record, rescored(cell.record, results.samples_of, registry)
            component, _ = benchmark_of(record, registry)
            changes = tuple(differences(record, fresh, component))
            metrics = component.spec.metrics
            scores = score_entries(fresh.reported, metrics, record.edition)
            validation = validation_values(fresh.validation, metrics, record.edition)
            again = record.model_copy(update={"scores": scores, "validation": validation})
            _keep(cell.folder, again, modules_digest(component.spec.scoring))
            made.append(Rescored(cell.key, changes))
        return made


def _judge(results: Results, registry: Registry) -> None:
    """Ask the scorers of the results' benchmarks about every sample, and store what they say."""
    found = []
    for cell in results.finished:
        component, benchmark = benchmark_of(cell.record, registry)
        if is_judged(benchmark):
            found.append((cell, component, judged_rows(benchmark, results.samples_of(cell.key))))
    if not found:
        raise UsageError(f"{results.source}: no cell is of a benchmark with a judge (its class has no 'judge')")
    # Stored once all are judged: a scorer that fails in the middle leaves everything as it was.
    for cell, component, rows in found:
        content = rows_as_bytes(rows)
        samples = cell.record.samples.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
        notes = [note for note in cell.record.notes if not note.startswith(NOT_JUDGED)]
        write_bytes(cell.folder / SAMPLES, content)
        again = cell.record.model_copy(update={"samples": samples, "notes": notes})
        _keep(cell.folder, again, modules_digest(component.spec.scoring))


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
