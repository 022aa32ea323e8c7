"""Scores publishers' evaluation logs with the pure functions that score our own measurements."""

from __future__ import annotations

from pathlib import Path

from ..domain import LogFile
from ..errors import UnknownName
from ..plugin.registry import Component, Registry
from ..plugin.specs import BenchmarkSpec, resolve
from ..records.record import LogRecord, Samples, comparability, score_entries
from ..storage import digest, file_digest


def scored_log(
    registry: Registry, log_format: str, path: str, retained: str | None, align: bool, edition: str
) -> LogRecord:
    """The record of a log.

    Args:
        retained: the retained model's log; without it forget scores are missing.
        align: score only the rows that both logs share.

    Raises:
        UnknownName: no benchmark reads this format.
        DataError: the log is unreadable, or the two logs hold different rows and ``align`` is off.
    """
    component = _reader(registry, log_format)
    spec = component.spec
    read = resolve(spec.log_readers[log_format], component.qualified)
    log: LogFile = read(Path(path), Path(retained) if retained else None, align)
    scores = log.benchmark.score(log.unlearned, None, log.retained)
    rows = [[row["part"], row.get("prompt"), row.get("truth")] for row in log.unlearned.rows]
    return LogRecord(
        log_format=log_format,
        edition=edition,
        benchmark=log.name,
        scores=score_entries(scores, spec.metrics, edition),
        samples=Samples(
            file=path,
            sha256=_digest(Path(path)),
            rows=len(rows),
            references={"retained": retained} if retained else {},
        ),
        comparability=comparability({"benchmark": log.name, "rows": digest(rows), "edition": edition}),
        notes=list(log.notes),
    )


def _digest(path: Path) -> str:
    """SHA-256 of a log file, or of the names and hashes of the files of a folder of logs."""
    if path.is_file():
        return file_digest(path)
    return digest({str(file.relative_to(path)): file_digest(file) for file in sorted(path.rglob("*.json"))})


def _reader(registry: Registry, log_format: str) -> Component[BenchmarkSpec]:
    readers = {name: c for c in registry.of_kind("benchmark") for name in c.spec.log_readers}
    if log_format not in readers:
        raise UnknownName("log format", log_format, readers)
    return readers[log_format]
