"""The content of a site: cells of all sources under unique names, tables split into pages, methods, coverage."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from unlearnbench.domain import CellStatus
from unlearnbench.errors import HarnessError
from unlearnbench.plugin.registry import Registry
from unlearnbench.plugin.specs import AttackSpec, BenchmarkSpec, Kind, MethodSpec
from unlearnbench.records.badge import Badge
from unlearnbench.records.record import Record
from unlearnbench.records.results import Results
from unlearnbench.records.run_folder import StoredCell

from .ranking import Table, tables
from .robustness import unexpected
from .rows import TableRow

ROWS_PER_PAGE = 60
"""Most rows of a benchmark on one page, which keeps pages below 300 KB."""
SERIOUS = {"data": "The data are", "model": "The model was", "optimiser": "Trained with the optimiser"}
"""Limits that decide what rows are worth, with the words before their value."""
MATRIX_COLUMNS = 12
"""Most tables in the overview's matrix; it links to the others."""


@dataclass(frozen=True)
class Source:
    """A run, bundle or file of records that cells come from."""

    name: str
    done: int
    total: int
    partial: bool
    verified: str
    """``recomputed`` with date and version, or empty."""
    contact: str = ""
    paper: str = ""
    code: str = ""
    licence: str = ""
    selection: str = ""
    budget: str = ""
    faults: tuple[str, ...] = ()
    """The scores that do not recompute, or why the source cannot be read."""


@dataclass(frozen=True)
class Entry:
    """A cell in the site; its key is unique there and names its page."""

    cell: StoredCell
    results: Results
    source: Source
    verified: str


@dataclass(frozen=True)
class Part:
    """The rows of a table on one page; ``first`` is the index of the first of them."""

    table: Table
    anchor: str
    rows: tuple[TableRow, ...]
    first: int


@dataclass(frozen=True)
class MatrixCell:
    """A method's rows in one table, the best first, and the table's address."""

    link: str
    rows: tuple[TableRow, ...]

    @property
    def row(self) -> TableRow | None:
        """The row that stands for the method; None where no row has a record."""
        return next((row for row in self.rows if row.record), None)


@dataclass(frozen=True)
class MatrixRow:
    """A method in the overview's matrix, with the address of its page where it has one."""

    name: str
    page: str
    reference: bool
    cells: tuple[MatrixCell, ...]


@dataclass
class MethodEntry:
    """A method of the site: its rows, and its spec, None where its plugin is not installed."""

    name: str
    qualified: str
    spec: MethodSpec | None
    page: str
    rows: list[tuple[Table, TableRow]] = field(default_factory=list)

    @property
    def record(self) -> Record:
        record = self.rows[0][1].record
        assert record is not None
        return record


class Names:
    """Assigns file names to texts: readable, safe in every file system, and distinct."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}

    def of(self, text: str) -> str:
        """The name of ``text``, the same at each call."""
        plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip(".-")[:64] or "unnamed"
        if self._taken.setdefault(plain.lower(), text) != text:
            plain = f"{plain[:52]}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
            self._taken[plain.lower()] = text
        return plain


class Site:
    """All that pages show, computed once."""

    def __init__(self, results: Sequence[Results], registry: Registry) -> None:
        self.registry = registry
        self.meta = [some.meta for some in results if some.meta]
        """Meta-evaluations of metrics, which have a page of their own."""
        results = [some for some in results if not some.meta]
        self.sources = [_source(some) for some in results]
        self.entries = dict(_entries(results, self.sources))
        self.tables = tables(entry.cell for entry in self.entries.values())
        self._names = Names()

    @property
    def recomputed(self) -> bool:
        """Whether every score of the site was recomputed from its samples."""
        return bool(self.tables) and all(entry.verified for entry in self.entries.values() if entry.cell.record)

    @property
    def missing(self) -> list[StoredCell]:
        """Cells without a score."""
        cells = [entry.cell for entry in self.entries.values() if entry.cell.record is None]
        return [cell for cell in cells if unexpected(cell)]

    @cached_property
    def anchors(self) -> dict[int, str]:
        """An id for each table, by its index; a number distinguishes tables with equal headings."""
        names, seen = Names(), dict[str, int]()
        ids: dict[int, str] = {}
        for place, table in enumerate(self.tables):
            editions = dict.fromkeys((table.loss_edition, str(table.comparability["edition"])))
            title = " ".join([table.benchmark, table.model, *(e for e in editions if e not in ("", "paper"))])
            seen[title] = seen.get(title, 0) + 1
            ids[place] = names.of(title if seen[title] == 1 else f"{title} {seen[title]}")
        return ids

    @cached_property
    def benchmarks(self) -> dict[str, list[list[Part]]]:
        """The pages of each benchmark, each a list of parts of tables."""
        by_benchmark: dict[str, list[list[Part]]] = {}
        for place, table in enumerate(self.tables):
            pages = by_benchmark.setdefault(table.benchmark, [[]])
            for first in range(0, max(len(table.rows), 1), ROWS_PER_PAGE):
                part = Part(table, self.anchors[place], table.rows[first : first + ROWS_PER_PAGE], first)
                rows = sum(len(p.rows) + len(p.table.references) for p in pages[-1])
                if pages[-1] and rows + len(part.rows) > ROWS_PER_PAGE:
                    pages.append([])
                pages[-1].append(part)
        return by_benchmark

    def benchmark_page(self, benchmark: str, number: int = 0) -> str:
        """Address of a benchmark's page."""
        return f"b/{self._names.of(benchmark)}{f'-{number + 1}' if number else ''}.html"

    @cached_property
    def table_links(self) -> dict[int, str]:
        """Address of each table, by its index."""
        first: dict[str, str] = {}
        for benchmark, pages in self.benchmarks.items():
            for number, parts in enumerate(pages):
                for part in parts:
                    first.setdefault(part.anchor, f"{self.benchmark_page(benchmark, number)}#{part.anchor}")
        return {place: first[anchor] for place, anchor in self.anchors.items()}

    @cached_property
    def methods(self) -> dict[str, MethodEntry]:
        """Every method with a score, by qualified name."""
        methods: dict[str, MethodEntry] = {}
        for table in self.tables:
            for row in (*table.references, *table.rows):
                if not row.record:
                    continue
                name = row.record.identity.method_qualified
                if name not in methods:
                    page = f"m/{self._names.of('method ' + name).removeprefix('method-')}.html"
                    methods[name] = MethodEntry(row.method, name, self._offered("method", name), page)
                methods[name].rows.append((table, row))
        return methods

    @cached_property
    def ambiguous(self) -> frozenset[str]:
        """Short names that methods of several distributions share, which pages show in full."""
        names = [entry.name for entry in self.methods.values()]
        return frozenset(name for name in names if names.count(name) > 1)

    def shown(self, row: TableRow) -> str:
        """A row's name as tables show it."""
        full = row.record.identity.method_qualified if row.record else row.method
        return full if row.method in self.ambiguous else row.method

    @cached_property
    def specs(self) -> dict[str, BenchmarkSpec | None]:
        """The specs of the site's benchmarks; None where a plugin is not installed."""
        records = [(table.benchmark, row.record) for table in self.tables for row in (*table.references, *table.rows)]
        return {
            name: self._offered("benchmark", record.identity.benchmark_qualified) for name, record in records if record
        }

    @cached_property
    def attacks(self) -> dict[str, AttackSpec | None]:
        """The specs of the site's attacks, by name; None where a plugin is not installed."""
        cells = (entry.cell for entry in self.entries.values())
        records = [cell.record for cell in cells if cell.record and cell.record.attack]
        names = dict.fromkeys((record.attack.name, record.attack.qualified) for record in records if record.attack)
        return {name: self._offered("attack", qualified) for name, qualified in names}

    def _offered(self, kind: Kind, name: str) -> Any:
        """The spec of a component; None where its plugin is not installed."""
        try:
            return self.registry.find(kind, name).spec
        except HarnessError:
            return None

    def kind_of(self, table: Table) -> str:
        """What distinguishes a table from another of its benchmark and model, in words; empty for the usual one."""
        words = [
            f"losses {table.loss_edition}" if table.loss_edition not in ("", "paper") else "",
            f"metrics {table.comparability['edition']}" if table.comparability["edition"] != "paper" else "",
            "closed division" if table.closed and self._has_both_divisions(table) else "",
            "open division" if not table.closed and self._has_both_divisions(table) else "",
        ]
        return "".join(f" · {word}" for word in words if word)

    def _has_both_divisions(self, table: Table) -> bool:
        mine = (table.benchmark, table.model)
        return len({other.closed for other in self.tables if (other.benchmark, other.model) == mine}) > 1

    def limits_in_words(self, table: Table) -> dict[str, list[str]]:
        """What sets a table's rows apart from full ones: ``first`` what decides their worth, and the ``rest``."""
        first = [name for name in table.limits if name in SERIOUS]
        words = {name: self.limit_in_words(table.benchmark, name, value) for name, value in table.limits.items()}
        return {"first": [words[name] for name in first], "rest": [words[n] for n in words if n not in first]}

    def limit_in_words(self, benchmark: str, name: str, value: object) -> str:
        """One limit as a sentence; a parameter of the benchmark with what it means and its usual value."""
        spec = self.specs.get(benchmark)
        for parameter in spec.parameters if spec else ():
            if parameter.name.replace("_", " ") == name:
                meaning = parameter.summary[:1].upper() + parameter.summary[1:]
                return f"{meaning}: {value}, not {parameter.default}."
        if name in SERIOUS:
            return f"{SERIOUS[name]} {value}."
        return f"{name[:1].upper()}{name[1:]}: {value}."

    @cached_property
    def matrix(self) -> list[MatrixRow]:
        """Every method with a cell for each table of ``columns``.

        References first, then methods by the number of tables in which they have a score and by its mean.
        """
        columns = [(number, table, _by_method(self, table)) for number, table in self.columns]
        names = dict.fromkeys(name for _, _, rows in columns for name in rows)
        pages = {
            entry.qualified if entry.name in self.ambiguous else entry.name: entry.page
            for entry in self.methods.values()
        }
        found = []
        for name in names:
            cells = [MatrixCell(self.table_links[number], tuple(rows.get(name, ()))) for number, _, rows in columns]
            scores = [cell.row.numbers["score"].value for cell in cells if cell.row and cell.row.place]
            reference = any(cell.rows and cell.rows[0].reference for cell in cells)
            order = (not reference, -len(scores), -fmean(scores) if scores else 0.0)
            found.append((order, MatrixRow(name, pages.get(name, ""), reference, tuple(cells))))
        return [row for _, row in sorted(found, key=lambda pair: pair[0])]

    @property
    def columns(self) -> list[tuple[int, Table]]:
        """The tables of the matrix with their indices."""
        return list(enumerate(self.tables))[:MATRIX_COLUMNS]

    @cached_property
    def _cells(self) -> dict[tuple[str, str], StoredCell]:
        """Every cell by its source and its key there."""
        sources = {id(entry.results): entry.results for entry in self.entries.values()}
        return {(some.source, cell.key): cell for some in sources.values() for cell in some.cells}

    def reference_records(self, entry: Entry) -> dict[str, Record]:
        """The records of the reference models with which an entry's cell compares, by role."""
        record = entry.cell.record
        keys = record.samples.references if record else {}
        found = {role: self._cells.get((entry.results.source, keys.get(role, ""))) for role in ("original", "retained")}
        return {role: cell.record for role, cell in found.items() if cell and cell.record}


def _by_method(site: Site, table: Table) -> dict[str, list[TableRow]]:
    """The rows of a table by the names that pages show, the best of each first."""
    found: dict[str, list[TableRow]] = {}
    for row in (*table.references, *table.rows):
        found.setdefault(site.shown(row), []).append(row)
    return found


def _source(results: Results) -> Source:
    done = sum(cell.status.settled for cell in results.cells)
    # Show the name of a bundle or folder alone: its path is private, and would change the bytes of the pages.
    name = Path(results.source).name or results.source
    if results.fault:
        return Source(name, 0, 0, False, "", faults=(results.fault,))
    if results.manifest is None:
        waiting = any(cell.status == CellStatus.PENDING for cell in results.cells)
        return Source(name, done, len(results.cells), waiting, "")
    manifest = results.manifest
    badge = results.badge
    verified = "" if badge is None or badge.faults else _words(badge)
    faults = () if badge is None else tuple(badge.faults)
    facts = manifest.submission.model_dump()
    told = {name: str(facts.get(name) or "") for name in ("contact", "paper", "code", "licence", "selection", "budget")}
    return Source(name, done, len(results.cells), manifest.partial, verified, faults=faults, **told)


def _words(badge: Badge) -> str:
    """A badge in words; one made with these pages has no date, so that equal input gives equal pages."""
    return f"recomputed {badge.date}, unlearnbench {badge.unlearnbench}" if badge.date else "recomputed"


def _entries(results: Sequence[Results], sources: Sequence[Source]) -> Iterator[tuple[str, Entry]]:
    """Cells under unique keys; a result that several sources share appears once, verified if any copy is."""
    taken: dict[str, list[Entry]] = {}
    for some, source in zip(results, sources, strict=True):
        badge = some.badge
        sound = set(badge.cells) - set(badge.refuted) if badge else set()
        for cell in some.cells:
            entry = Entry(cell, some, source, _words(badge) if badge and cell.key in sound else "")
            same = [other for other in taken.get(cell.key, []) if _same(other.cell, cell)]
            if not same:
                taken.setdefault(cell.key, []).append(entry)
            elif (entry.verified and not same[0].verified) or (same[0].source.faults and not source.faults):
                others = taken[cell.key]
                others[others.index(same[0])] = entry
    for key, entries in taken.items():
        for number, entry in enumerate(entries):
            unique = f"{key}-{number + 1}" if number else key
            yield unique, replace(entry, cell=replace(entry.cell, key=unique))


def _same(one: StoredCell, other: StoredCell) -> bool:
    if one.record is None or other.record is None:
        return one.record is other.record and (one.status, one.reason) == (other.status, other.reason)
    # As JSON: a missing score is NaN, which equals nothing.
    mine, theirs = (record.model_dump_json(include={"scores"}) for record in (one.record, other.record))
    return one.record.samples.sha256 == other.record.samples.sha256 and mine == theirs
