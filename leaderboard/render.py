"""Static pages from cells: one table per benchmark, one page of samples per cell.

Pages open from ``file://``, ask nothing of a network, read without JavaScript, and are byte-identical for
identical input. Everything shown is escaped: generations and names are other people's text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unlearnbench.runs import StoredCell
from unlearnbench.storage import finite, read_rows, write_bytes

from .downloads import as_csv, as_latex
from .published import published_for
from .ranking import ARROWS, Table, formatted, tables
from .scatter import scatter

SAMPLES_SHOWN = 40
"""Rows of each part on a cell's page; the sample file holds all."""


def render(cells: Iterable[StoredCell], out: Path) -> Path:
    """Write the site into ``out`` and return its first page. Other files in ``out`` are left alone."""
    cells = list(cells)
    found = tables(cells)
    write_bytes(out / "style.css", _text("style.css").encode())
    failed = [cell for cell in cells if cell.record is None]
    published = [published_for(table.benchmark, table.model) for table in found]
    page = _template("index.html.j2").render(
        tables=found,
        failed=failed,
        anchors=_anchors(found),
        published=published,
        plots=[scatter(table, table.rows, lambda row: f"cells/{row.cells[0].key}.html") for table in found],
        root="",
    )
    write_bytes(out / "index.html", page.encode())
    records = [json.loads(cell.record.model_dump_json()) for cell in cells if cell.record]
    write_bytes(out / "records.json", (json.dumps(finite(records), indent=1, ensure_ascii=False) + "\n").encode())
    write_bytes(out / "scores.csv", as_csv(found).encode())
    write_bytes(out / "tables.tex", as_latex(found).encode())
    samples = _Samples({cell.key: cell for cell in cells})
    for cell in cells:
        if cell.record:
            write_bytes(out / "cells" / f"{cell.key}.html", _cell_page(cell, samples).encode())
    return out / "index.html"


def _anchors(found: list[Table]) -> list[str]:
    """An id per table, distinct where one benchmark has several tables."""
    names: list[str] = []
    for table in found:
        base = f"{table.benchmark}-{table.model}".replace("/", "-").replace(" ", "-")
        names.append(base if base not in names else f"{base}-{len(names)}")
    return names


class _Samples:
    """Sample files, each read once; the references' are shown beside every cell's."""

    def __init__(self, cells: Mapping[str, StoredCell]) -> None:
        self._cells = cells
        self._read = cache(self._rows)

    def of(self, key: str) -> dict[tuple[str, int], dict[str, Any]]:
        return self._read(key)

    def _rows(self, key: str) -> dict[tuple[str, int], dict[str, Any]]:
        cell = self._cells.get(key)
        if cell is None or cell.record is None:
            return {}
        rows = read_rows(cell.folder / cell.record.samples.file)
        return {(str(row.get("part", "")), int(row.get("index", place))): row for place, row in enumerate(rows)}


def _cell_page(cell: StoredCell, samples: _Samples) -> str:
    record = cell.record
    assert record is not None
    mine = samples.of(cell.key)
    references = record.samples.references
    others = {role: samples.of(key) for role, key in references.items()}
    parts: dict[str, list[dict[str, Any]]] = {}
    for place, row in mine.items():
        if "generation" not in row:
            # Likelihoods alone: their scores are in the table above, their values in the sample file.
            continue
        shown = parts.setdefault(place[0], [])
        if len(shown) < SAMPLES_SHOWN:
            beside = {role: rows.get(place, {}).get("generation") for role, rows in others.items()}
            shown.append({**row, **{f"{role}_generation": text for role, text in beside.items()}})
    totals = {part: sum(place[0] == part for place in mine) for part in parts}
    page: str = _template("cell.html.j2").render(
        cell=cell, record=record, parts=parts, totals=totals, roles=list(others), root="../"
    )
    return page


def _text(name: str) -> str:
    return files("unlearnbench.leaderboard").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("unlearnbench.leaderboard", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = formatted
    environment.globals["arrows"] = ARROWS
    return environment


def _template(name: str) -> Any:
    return _environment().get_template(name)
