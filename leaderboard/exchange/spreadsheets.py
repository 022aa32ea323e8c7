"""Tables as CSV that spreadsheets open without running anything, and back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from unlearnbench.domain import NUMBERS
from unlearnbench.errors import RecordError
from unlearnbench.records.record import Record

from ..ranking import Table
from ..rows import Sweep, TableRow
from ..verdict import verdict
from .lines import ScoreLine, direction_of, lines_of

HEADER = tuple(
    "benchmark model method attack loss_edition seed repeat setting metric label better edition value low high n "
    "passes reason comparability cell".split()
)
PLACES = tuple(
    "benchmark model division method loss_edition seeds place best worst group score score_low score_high forgetting "
    "forgetting_low forgetting_high utility utility_low utility_high robust robust_low robust_high worst_attack "
    "setting settings_tried settings_failed rule selected_on sweep_seconds area area_low area_high verdict reason "
    "comparability cells".split()
)


def as_csv(tables: Iterable[Table]) -> str:
    """A line for each metric of each cell, in full precision; ``low`` and ``high`` bound the 95 % interval.

    Of a sweep the cells of every setting; ``places_as_csv`` tells which was chosen.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    seen = set()
    for table in tables:
        for row in (*table.references, *table.rows):
            attacked = [cell for found in row.attacks.values() for cell in found.cells]
            tried = [cell for other in (row.sweep.rows if row.sweep else ()) for cell in other.cells]
            for cell in (*row.cells, *attacked, *tried):
                record = cell.record
                if record is None or cell.key in seen:
                    continue
                seen.add(cell.key)
                for line in lines_of(record):
                    writer.writerow(map(safe, _line(line, table, record)))
    return out.getvalue()


def _line(line: ScoreLine, table: Table, record: Record) -> list[object]:
    low, high = line.interval or ("", "")
    passes = "" if line.passes is None else str(line.passes).lower()
    facts: list[object] = [line.benchmark, table.model, line.method, line.attack, record.identity.method_edition]
    facts += [line.seed, line.repeat, line.setting, line.metric, line.label, line.better, line.edition]
    facts += [line.value, low, high, line.n, passes, line.reason]
    return [*facts, record.comparability.sha256, line.cell]


def read(path: Path) -> list[ScoreLine]:
    """The scores of a file that ``as_csv`` wrote.

    Raises:
        RecordError: it is no such file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != HEADER:
                raise RecordError(f"{path} does not begin with the columns {', '.join(HEADER[:4])}, …")
            return [_read({name: unsafe(text) for name, text in row.items()}, path) for row in rows]
    except (OSError, ValueError, TypeError, AttributeError, KeyError, csv.Error) as error:
        raise RecordError(f"{path} is no CSV of unlearnbench: {error!r}"[:300]) from error


def _read(row: dict[str, str], path: Path) -> ScoreLine:
    texts = {name: row[name] for name in ("cell", "method", "benchmark", "model", "setting", "attack")}
    return ScoreLine(
        **texts,
        seed=int(row["seed"]),
        repeat=int(row["repeat"]),
        metric=row["metric"],
        label=row["label"],
        edition=row["edition"],
        better=direction_of(row["better"], path),
        value=float(row["value"]),
        interval=(float(row["low"]), float(row["high"])) if row["low"] else None,
        n=int(row["n"]),
        passes={"true": True, "false": False, "": None}[row["passes"].lower()],
        reason=row["reason"],
    )


def places_as_csv(tables: Iterable[Table]) -> str:
    """A line for each row of the tables: its place with its range and group, and the three numbers behind it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(PLACES)
    for table in tables:
        for row in (*table.references, *table.rows):
            if row.record:
                writer.writerow(map(safe, _place_line(table, row, row.record)))
    return out.getvalue()


def _place_line(table: Table, row: TableRow, record: Record) -> list[object]:
    place = row.place
    seeds = " ".join(str(cell.identity.seed) for cell in row.scored)
    division = "closed" if table.closed else "open"
    line: list[object] = [table.benchmark, table.model, division, row.method, row.edition, seeds]
    line += [place.place, place.best, place.worst, place.group] if place else ["", "", "", ""]
    for name in NUMBERS:
        line += [row.numbers[name].value, *(row.numbers[name].interval or ("", ""))]
    attack, robust = row.robust or ("", None)
    line += [robust.value, *(robust.interval or ("", "")), attack] if robust else [""] * 4
    line += [
        row.setting,
        *_sweep_facts(row.sweep),
        verdict(row),
        row.numbers["score"].reason,
        record.comparability.sha256,
    ]
    return [*line, " ".join(cell.key for cell in row.scored)]


def _sweep_facts(sweep: Sweep | None) -> list[object]:
    if sweep is None:
        return [""] * 8
    rows = "validation" if sweep.on_validation else "test"
    facts: list[object] = [len(sweep.rows), len(sweep.failed), sweep.rule, rows, round(sweep.seconds, 1)]
    return [*facts, sweep.area.value, *(sweep.area.interval or ("", ""))]


FORMULA = "=+-@\t\r\n\0＝＋－＠"
"""What a spreadsheet takes for the beginning of a formula, or skips before one (OWASP, CSV injection)."""


def safe(value: object) -> object:
    """Put an apostrophe before text that a spreadsheet would read as a formula, or that has one already."""
    return f"'{value}" if isinstance(value, str) and _is_dangerous(value) else value


def unsafe(text: str) -> str:
    """The text that ``safe`` was given."""
    return text[1:] if text.startswith("'") and _is_dangerous(text) else text


def _is_dangerous(text: str) -> bool:
    return text.lstrip("'")[:1] in FORMULA and bool(text.lstrip("'"))
