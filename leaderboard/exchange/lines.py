"""What formats of other tools hold of a record: a line for each metric of a cell."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from unlearnbench.domain import Direction
from unlearnbench.errors import HarnessError, RecordError
from unlearnbench.plugin.registry import Registry
from unlearnbench.plugin.specs import BenchmarkSpec
from unlearnbench.records.record import Record, ScoreEntry
from unlearnbench.records.results import Results
from unlearnbench.records.run_folder import FinishedCell


@dataclass(frozen=True)
class ScoreLine:
    """One metric of one cell, in one edition.

    Args:
        value: NaN where it was not measured; ``reason`` says why.
        interval: 95 %, over rows; None without one.
        n: rows behind it.
        passes: whether the paper's criterion holds; None without one.
    """

    cell: str
    method: str
    benchmark: str
    model: str
    seed: int
    repeat: int
    setting: str
    attack: str
    metric: str
    label: str
    edition: str
    better: Direction
    value: float
    interval: tuple[float, float] | None = None
    n: int = 0
    passes: bool | None = None
    reason: str = ""

    @property
    def missing(self) -> bool:
        return math.isnan(self.value)


IDENTITY = ("cell", "method", "benchmark", "model", "seed", "repeat", "setting", "attack")
"""What the lines of one cell share."""
NUMBERS = ("seed", "repeat")


def lines_of(record: Record) -> list[ScoreLine]:
    """The metrics of a record in its edition, missing ones too."""
    who = record.identity
    shared: dict[str, Any] = {name: getattr(who, name) for name in IDENTITY if name != "cell"}
    return [
        ScoreLine(
            cell=record.cell,
            metric=name,
            label=entry.label,
            edition=entry.edition,
            better=entry.better,
            value=entry.value,
            interval=entry.interval,
            n=entry.n,
            passes=entry.passes,
            reason=entry.reason,
            **shared,
        )
        for name, entry in record.scores.items()
    ]


def identity_of(line: ScoreLine) -> dict[str, str]:
    """What distinguishes a cell, as texts: the values of formats whose free fields hold nothing else."""
    return {name: str(getattr(line, name)) for name in IDENTITY}


def read_identity(facts: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The same back from texts.

    Raises:
        RecordError: it lacks a field, as results of other tools do.
    """
    missing = [name for name in IDENTITY if name not in facts]
    if missing:
        raise RecordError(f"{source} does not say its {missing[0]}: it was not written by unlearnbench")
    return {name: int(facts[name]) if name in NUMBERS else str(facts[name]) for name in IDENTITY}


def direction_of(text: object, source: Path) -> Direction:
    """A direction by its name. Raises RecordError for another text."""
    known: Sequence[Direction] = get_args(Direction)
    for direction in known:
        if direction == text:
            return direction
    raise RecordError(f"{source}: {str(text)[:40]!r} is not one of {', '.join(known)}")


def finished_cells(results: Iterable[Results]) -> Iterator[tuple[Results, FinishedCell]]:
    """Every cell with a record, with its source; a cell that several sources hold comes once."""
    seen = set()
    for some in results:
        for cell in some.finished:
            if cell.key not in seen:
                seen.add(cell.key)
                yield some, cell


def benchmark_spec(record: Record, registry: Registry) -> BenchmarkSpec | None:
    """The spec of a record's benchmark; None where its plugin is not installed."""
    try:
        spec = registry.find("benchmark", record.identity.benchmark_qualified).spec
    except HarnessError:
        return None
    return spec if isinstance(spec, BenchmarkSpec) else None


def base_model(record: Record) -> str:
    """Where the base model came from: a hub id, or the model's name where it came from a folder or from scratch."""
    model = record.provenance.get("model", {})
    # A folder's fingerprint is the hash of its files.
    from_hub = model.get("path") and model.get("fingerprint") == f"{model['path']}@{model.get('revision', '')}"
    return str(model["path"]) if from_hub else record.identity.model


def data_source(record: Record) -> str:
    """Where a record's rows came from: ``hub``, ``local`` or ``generated``; empty where it does not say."""
    return str(record.comparability.key.get("data_source", ""))


def hub_data(record: Record, spec: BenchmarkSpec | None) -> str:
    """The hub id of the data set that a record's rows are of; empty for invented rows and unknown benchmarks."""
    return spec.data.hub if spec and data_source(record) in ("hub", "local") else ""


def definition_of(spec: BenchmarkSpec | None, metric: str) -> str:
    """What a metric measures; empty where the benchmark's plugin is not installed."""
    return next((each.definition for each in spec.metrics if each.name == metric), "") if spec else ""


def standard_error(entry: ScoreEntry) -> float | None:
    """The standard deviation over resampled rows, where the record keeps them; None otherwise."""
    resampled = entry.resampled
    return None if resampled is None else float(resampled.std())


def export_time() -> int:
    """Seconds since 1970 that an export is dated with; ``SOURCE_DATE_EPOCH`` makes exports reproducible."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())


def unlearned_model(record: Record) -> str:
    """The name of an unlearned model, which is a model of its own, as a part of a path or of a hub id."""
    return f"{plain_name(record.identity.model)}--{plain_name(record.identity.method)}"


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object. Raises RecordError where it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise RecordError(f"{path} holds no JSON object")
    return content


def plain_name(text: str) -> str:
    """A text as a part of a path or of a hub id: letters, digits, dot, dash and underscore."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in text)
    return kept.strip(".-")[:80] or "unnamed"
