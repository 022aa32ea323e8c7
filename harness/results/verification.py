"""Verifies a submission without training: recomputes every score, and compares every question with the data.

Recomputing shows that scores follow from the samples. Only a rerun shows whether a model wrote these.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..data.sources import DataSource, fingerprints, read_tables
from ..domain import CellStatus
from ..errors import BundleError, HarnessError, RecordError, printable
from ..plugin.registry import Component, Registry
from ..plugin.specs import BenchmarkSpec, resolve
from ..records.badge import BADGE_SCHEMA, Badge
from ..records.judging import is_judged
from ..records.recomputation import agree, benchmark_of, differences, rescored
from ..records.record import Record
from ..records.results import Results
from ..records.run_folder import StoredCell
from ..records.tries import TRY, leaking_share
from ..storage import digest, file_digest, write_json
from .bundle import badge_path, read_badge

LISTED_FAULTS = 100
# Comparing two texts of the greatest length that a bundle may hold takes seconds.
SECONDS_A_CELL = 300
Pins = Mapping[str, Mapping[str, Sequence[str]]]
"""By part: ``fields`` that identify a row, and ``rows``, a hash of these fields for each row, in order."""


@dataclass
class Verification:
    """The result of ``verify``: faults of the submission, and notes for the reader."""

    source: str
    of_bundle: bool = False
    cells: list[str] = field(default_factory=list)
    scores: int = 0
    rows: int = 0
    faults: list[str] = field(default_factory=list)
    refuted: dict[str, str] = field(default_factory=dict)
    """The first fault of each cell that has one, by key."""
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.faults

    @property
    def sound(self) -> list[str]:
        """The cells that were checked and have no fault."""
        return [key for key in self.cells if key not in self.refuted]


def verify(results: Results, registry: Registry, data: DataSource | None = None) -> Verification:
    """Recompute every score of a bundle or run folder, and compare its questions with the data.

    Args:
        data: a folder with the benchmark's tables; without it, generated tables are generated again, and rows of
            published tables compare by hash.
    """
    result = Verification(results.source, of_bundle=results.manifest is not None)
    done = results.finished
    if not done:
        result.faults.append(f"{results.source} holds no finished cell")
    for cell in results.cells:
        if not cell.status.settled and cell.status != CellStatus.PENDING:
            result.notes.append(f"{cell.key}: {cell.ending}"[:300])
    pending = sum(cell.status == CellStatus.PENDING for cell in results.cells)
    if pending:
        result.notes.append(f"partial: {pending} of {len(results.cells)} cells were not run")
    known = {cell.key for cell in done}
    for cell in done:
        record = cell.record
        before = len(result.faults)
        absent = sorted(set(record.samples.references.values()) - known)
        if absent:
            result.faults.append(f"{cell.key}: the samples of its reference {absent[0]} are not in {results.source}")
            result.refuted[cell.key] = result.faults[-1]
            continue
        result.faults += _wrong_references(record, {other.key: other.record for other in done})
        try:
            with _time_limit(SECONDS_A_CELL):
                _verify_cell(record, results, registry, data, result)
        except HarnessError as error:
            result.faults.append(str(error))
        if len(result.faults) > before:
            result.refuted[cell.key] = result.faults[before]
    result.faults, result.notes = ([printable(line) for line in lines] for lines in (result.faults, result.notes))
    return result


def _verify_cell(
    record: Record, results: Results, registry: Registry, data: DataSource | None, result: Verification
) -> None:
    component, benchmark = benchmark_of(record, registry)
    if is_judged(benchmark):
        result.notes.append(f"{component.spec.name}: what its judge said is taken as it stands in the samples")
    rows = results.samples_of(record.cell)
    if len(rows) != record.samples.rows:
        result.faults.append(f"{record.cell}: {len(rows)} samples, its record says {record.samples.rows}")
    if results.folder and file_digest(results.folder / "cells" / record.cell / record.samples.file) != (
        record.samples.sha256
    ):
        result.faults.append(f"{record.cell}: its samples do not have the hash in its record")
    if digest(record.comparability.key) != record.comparability.sha256:
        result.faults.append(f"{record.cell}: the comparability key does not have the hash beside it")
    scores = rescored(record, results.samples_of, registry)
    result.faults += differences(record, scores, component)
    result.faults += _limits_shown(record, component)
    result.faults += _attack_told(record, rows)
    pins, where = _pins(record, component, data)
    if pins is None:
        result.notes.append(f"{record.cell}: {where}")
    else:
        limit = record.limits.get("limit", 0)
        limit = limit if type(limit) is int and limit > 0 else 0
        compare = unlike_attacked(rows, pins, where) if record.attack else unlike(rows, pins, where, limit)
        result.faults += [f"{record.cell}: {line}" for line in compare]
    result.cells.append(record.cell)
    result.scores += sum(len(entry.editions) for entry in record.scores.values())
    result.rows += len(rows)


def _wrong_references(record: Record, records: Mapping[str, Record]) -> Iterator[str]:
    """Yield a fault for each reference that is another model than its role says, and for samples that are a copy.

    A method that does nothing has the original model's samples; those of the retained model it can only have copied.
    """
    for role, key in record.samples.references.items():
        other = records[key]
        wanted = replace(record.identity.cell, method=role, repeat=0, setting="")
        if other.identity.cell != wanted or other.identity.method_qualified != f"unlearnbench/{role}":
            yield f"{record.cell}: it names a cell of {other.identity.method} as its {role} model: {key}"
        elif role == "retained" and not record.identity.reference and other.samples.sha256 == record.samples.sha256:
            yield f"{record.cell}: its samples are those of the retained model, to the last byte"


def _attack_told(record: Record, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a fault for each fact of an attack that its samples do not bear out."""
    if record.identity.attack != (record.attack.name if record.attack else ""):
        yield f"{record.cell}: it is a cell under {record.identity.attack or 'no attack'}, and its record is of another"
    if record.attack is None:
        return
    stored, again = record.attack.leaking, leaking_share(rows)
    if not agree(stored, again):
        yield f"{record.cell}: the share of answers that leak is stored as {stored!r}, and recomputed as {again!r}"
    tries = 1 + max((int(row.get(TRY, 0)) for row in rows), default=0)
    if tries != record.attack.tries:
        yield f"{record.cell}: its samples have {tries} tries, its record says {record.attack.tries}"


def _limits_shown(record: Record, component: Component[BenchmarkSpec]) -> Iterator[str]:
    """Yield a fault for each setting other than the default that a record's limits do not show."""
    settings = record.comparability.key.get("benchmark_settings")
    given = settings if isinstance(settings, Mapping) else {}
    for parameter in component.spec.parameters:
        value = given.get(parameter.name, parameter.default)
        shown = record.limits.get(parameter.name.replace("_", " "), parameter.default)
        if value != shown:
            yield f"{record.cell}: {parameter.name} = {value!r} is not shown among its limits"
    source = record.comparability.key.get("data_source")
    if (source == "generated") != ("data" in record.limits):
        yield f"{record.cell}: its data are {source}, and its limits do not say so"


# -- questions --------------------------------------------------------------------------------------------------------


def _pins(record: Record, component: Component[BenchmarkSpec], data: DataSource | None) -> tuple[Pins | None, str]:
    """The rows that the benchmark asks and their origin, or None and why they are unknown."""
    spec = component.spec
    if not spec.questions:
        return None, f"{spec.name} names no rows to hold the samples against"
    made = record.provenance.get("data")
    kind = made.get("kind") if isinstance(made, Mapping) else ""
    if kind == "generated" and isinstance(made, Mapping):
        seed, scale = made.get("seed"), made.get("scale")
        if type(seed) is not int or scale not in ("full", "quick"):
            raise RecordError(f"{record.cell}: generated data of seed {seed!r} and scale {scale!r} cannot be made")
        data = DataSource("generated", seed=seed, scale=scale)
        _same_fingerprints(record, fingerprints(spec.data, data))
    if data is None:
        pins = resolve(spec.published, component.qualified)(spec.name) if spec.published else None
        return pins, "the published rows" if pins else "its data are not known here; name them with --data-dir"
    return pins_of(component, read_tables(spec.data, data)), f"{data.kind} data"


def _same_fingerprints(record: Record, fresh: Mapping[str, str]) -> None:
    if record.comparability.key.get("data") != digest(fresh):
        raise RecordError(
            f"{record.cell}: its generated data are not those of this version of unlearnbench; verify with the one "
            "that made it"
        )


def pins_of(component: Component[BenchmarkSpec], tables: Any) -> Pins:
    """The rows that a benchmark asks of these tables."""
    asked: Mapping[str, Sequence[Mapping[str, Any]]] = resolve(component.spec.questions, component.qualified)(tables)
    return {
        part: {"fields": list(rows[0]), "rows": [_row_hash(row, list(rows[0])) for row in rows]}
        for part, rows in asked.items()
        if rows
    }


def _row_hash(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    return digest([row.get(name) for name in fields])[:16]


def unlike(rows: Sequence[Mapping[str, Any]], pins: Pins, where: str, limit: int = 0) -> Iterator[str]:
    """Yield a fault for each part whose samples are not the benchmark's questions in order."""
    for part, pinned in pins.items():
        fields, hashes = pinned["fields"], pinned["rows"]
        mine = [row for row in rows if row.get("part") == part]
        expected = hashes[: limit or None]
        if len(mine) != len(expected):
            yield f"{part} has {len(mine)} rows, {where} give {len(expected)}"
        wrong = [
            place for place, (row, pin) in enumerate(zip(mine, expected, strict=False)) if _row_hash(row, fields) != pin
        ]
        if wrong:
            yield f"{len(wrong)} rows of {part} are not {where}, the first is row {wrong[0]}"


def unlike_attacked(rows: Sequence[Mapping[str, Any]], pins: Pins, where: str) -> Iterator[str]:
    """Yield a fault for each part in which a row of an attack is not the benchmark's row of its index.

    An attack asks some rows of some parts, several times perhaps.
    """
    for part, pinned in pins.items():
        fields, hashes = pinned["fields"], pinned["rows"]
        wrong = [
            row.get("index")
            for row in rows
            if row.get("part") == part
            and not (
                isinstance(index := row.get("index"), int)
                and 0 <= index < len(hashes)
                and _row_hash(row, fields) == hashes[index]
            )
        ]
        if wrong:
            yield f"{len(wrong)} rows of {part} are not {where}, the first has the index {wrong[0]!r:.20}"


# -- badges -----------------------------------------------------------------------------------------------------------


def write_badge(bundle: Path, found: Verification, version: str) -> Path:
    """Write the result of a verification beside its bundle, faults included."""
    path = badge_path(bundle)
    write_json(
        path,
        {
            "schema_version": BADGE_SCHEMA,
            "level": "recomputed" if found.holds else "refuted",
            "bundle_sha256": file_digest(bundle),
            "date": datetime.now(UTC).date().isoformat(),
            "unlearnbench": version,
            "cells": found.sound,
            "refuted": found.refuted,
            "faults": found.faults[:LISTED_FAULTS],
            "notes": found.notes,
        },
    )
    return path


def held(results: Results, registry: Registry) -> Results:
    """The results that pages may show: a bundle's cells whose scores do not recompute hold their fault instead.

    Verifies a bundle without a badge. Returns a run folder, or records printed without samples, unchanged.
    """
    if results.manifest is None:
        return results
    badge = read_badge(Path(results.source))
    if badge is None:
        result = verify(results, registry)
        badge = Badge(cells=result.sound, refuted=result.refuted, faults=result.faults[:LISTED_FAULTS])
    cells = tuple(
        StoredCell(cell.key, cell.identity, CellStatus.REFUTED, badge.refuted[cell.key], cell.folder)
        if cell.key in badge.refuted
        else cell
        for cell in results.cells
    )
    return replace(results, cells=cells, badge=badge)


# -- reruns -----------------------------------------------------------------------------------------------------------


def study_of(record: Record, registry: Registry, data_dir: str = "") -> dict[str, Any]:
    """The study that makes one cell of a record again, as the tables of a study file."""
    identity, key = record.identity, record.comparability.key
    method = registry.find("method", identity.method_qualified).spec
    benchmark = registry.find("benchmark", identity.benchmark_qualified).spec
    free = {name: value for name, value in identity.hyperparameters.items() if name not in method.fixed}
    settings = {k: v for k, v in key.get("benchmark_settings", {}).items() if k not in benchmark.fixed}
    data = record.provenance.get("data", {})
    names = ("dir", "seed", "scale", "files", "allow_missing", "stand_ins")
    source = {"source": data.get("kind", "hub"), **{name: data[name] for name in names if data.get(name)}}
    if data_dir:
        source |= {"source": "local", "dir": data_dir}
    seeds: Any = [identity.seed]
    if identity.repeat:
        seeds = {"reference": seeds, "unlearning": [identity.repeat]}
    return {
        "study": {
            "name": "rerun",
            "methods": [identity.method_qualified],
            "benchmarks": [identity.benchmark_qualified],
            "models": [identity.model],
            "attacks": [record.attack.qualified] if record.attack else [],
            "seeds": seeds,
            "edition": record.edition,
        },
        "selection": {"rows": "validation" if record.split else "test"},
        "data": source,
        "recipe": record.provenance.get("recipe", {}),
        "methods": {identity.method_qualified: free},
        "benchmarks": {identity.benchmark_qualified: settings},
        "attacks": _attack_settings(record, registry),
    }


def _attack_settings(record: Record, registry: Registry) -> dict[str, Any]:
    if record.attack is None:
        return {}
    fixed = registry.find("attack", record.attack.qualified).spec.fixed
    values = {name: value for name, value in record.attack.hyperparameters.items() if name not in fixed}
    return {record.attack.qualified: values}


@dataclass(frozen=True)
class Distance:
    """The distance of a rerun from the stored value, in half widths of the stored interval."""

    metric: str
    stored: float
    rerun: float
    half_widths: float
    """NaN without an interval, or where a rerun differs from an interval of no width."""


def distances(stored: Record, rerun: Record) -> list[Distance]:
    """The distance of every metric of a cell from its rerun."""
    per_metric = []
    for name, entry in stored.scores.items():
        again = rerun.scores[name].value if name in rerun.scores else math.nan
        low, high = entry.interval or (math.nan, math.nan)
        width = (high - low) / 2
        apart = abs(again - entry.value)
        units = 0.0 if agree(entry.value, again) else apart / width if width > 0 else math.nan
        per_metric.append(Distance(name, entry.value, again, units))
    return per_metric


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Interrupt pure Python work that untrusted samples make endless."""

    # Only the main thread can set an alarm, and not on every system.
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise BundleError(f"recomputing took more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
