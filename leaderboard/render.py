"""Renders static pages from results: an overview, a page per benchmark, method and cell, and explanations.

Pages open from ``file://`` without a network, read without JavaScript, and are byte-identical for identical input.
Templates escape all text: generations and names are untrusted.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unlearnbench.domain import NUMBERS
from unlearnbench.errors import HarnessError
from unlearnbench.leaderboard.publishing import MADE
from unlearnbench.plugin.registry import Registry
from unlearnbench.records.record import Record
from unlearnbench.records.results import Results
from unlearnbench.storage import as_storage_error, file_digest

from . import SHOWN
from .curve import curve
from .exchange.croissant import croissant
from .exchange.latex import as_bibtex, as_latex
from .exchange.spreadsheets import HEADER, PLACES, as_csv, places_as_csv
from .pairs import pairs
from .precision import SHARES, Precision, precision_of
from .published import PublishedTable, published_for
from .ranking import ARROWS, Table
from .rows import TableRow
from .samples import Samples, Shown, shown_parts, texts_of
from .scatter import scatter
from .site import Entry, MethodEntry, Part, Site
from .stability import stability
from .trust import by_benchmark
from .verdict import DEARER, answering, fails, unlearning_cost, verdict

MATRIX_ROWS = 500
"""Most methods in the overview's matrix; it links to the others."""
MORE_TABLES = 500
"""Most tables that the overview names."""
PLOTS, METHOD_PLOTS = 6, 12
"""Most plots of the overview, and of a method's page."""
INVENTED = (
    "All rows here are on generated data: they show that everything works and what a comparison is worth, "
    "not which method is best."
)
LISTED = 100
"""Most cells without a score that the overview names."""


def render(
    results: Sequence[Results], out: Path, registry: Registry, samples: int = SHOWN, records: bool = True
) -> Path:
    """Write the site into ``out`` and return its first page.

    Removes pages of an earlier site that this one lacks; leaves files that no site wrote.

    Args:
        samples: rows of each part on a cell's page, those that differ most from the references'.
        records: offer all records as a download, most of a site's bytes.

    Raises:
        StorageError: the disk refused a write.
        UsageError: ``out`` cannot be written.
    """
    # The records stay alive until the site is written. With thousands of them, repeated garbage collections over all
    # records take longer than rendering; freezing exempts the records.
    gc.freeze()
    try:
        site = Site(results, registry)
        gc.freeze()
        return _written(site, out, samples, records)
    finally:
        gc.unfreeze()


def _written(site: Site, out: Path, shown: int, records: bool) -> Path:
    pages = _Pages(site, out)
    pages.overview(records)
    for benchmark in site.benchmarks:
        pages.benchmark(benchmark)
    for method in site.methods.values():
        pages.method(method)
    for name in ("methods", "metrics", "about", *(["trust"] if site.meta else [])):
        pages.write(f"{name}.html", f"{name}.html.j2")
    pages.downloads(records)
    samples = Samples()
    # Group cells by their references, so that a reference's samples are read once.
    for entry in sorted(site.entries.values(), key=_references):
        if entry.cell.record:
            pages.cell(entry, samples, shown)
    pages.remove_stale()
    return out / "index.html"


class _Pages:
    """Writes the site's files and records their hashes."""

    def __init__(self, site: Site, out: Path) -> None:
        self.site, self.out = site, out
        self.made: dict[str, str] = {}
        for name in ("style.css", "site.js"):
            self._put(name, [files("unlearnbench.leaderboard").joinpath("templates", name).read_text(encoding="utf-8")])

    def _put(self, name: str, pieces: Iterable[str]) -> None:
        """Write a file piece by piece, without fsync: pages can be rendered again."""
        path, total = self.out / name, sha256()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_name(f".{path.name}.part").open("wb") as file:
                for piece in pieces:
                    content = piece.encode("utf-8", "replace")
                    total.update(content)
                    file.write(content)
            os.replace(path.with_name(f".{path.name}.part"), path)
        except OSError as error:
            raise as_storage_error(error, path) from error
        self.made[name] = total.hexdigest()

    def remove_stale(self) -> None:
        """Remove unchanged files of an earlier site, whose submissions may be withdrawn."""
        listing = self.out / MADE
        try:
            before = json.loads(listing.read_bytes())
            old = {name: known for name, known in before.items() if name not in self.made and _inside(name)}
        except (OSError, ValueError, AttributeError):
            old = {}
        for name, known in old.items():
            path = self.out / name
            if path.is_file() and file_digest(path) == known:
                path.unlink()
        self._put(MADE, [json.dumps(self.made, sort_keys=True)])

    def write(self, name: str, template: str, **facts: Any) -> None:
        """Render one page. ``root`` is the relative path from the page to the site's folder."""
        root = "../" * name.count("/")
        self._put(name, [_template(template).render(site=self.site, root=root, **facts)])

    def overview(self, records: bool) -> None:
        site = self.site
        matrix, columns = site.matrix, site.columns
        plots = [
            (table, site.table_links[number], scatter(table, table.rows, self._row_link("")), f"plot-{number}")
            for number, table in columns[:PLOTS]
        ]
        invented = [table for table in site.tables if "data" in table.limits]
        self.write(
            "index.html",
            "index.html.j2",
            matrix=matrix[:MATRIX_ROWS],
            hidden=max(0, len(matrix) - MATRIX_ROWS),
            columns=columns,
            more=list(enumerate(site.tables))[len(columns) : MORE_TABLES],
            plots=[plot for plot in plots if plot[2]],
            listed=LISTED,
            records=records,
            notice=INVENTED if site.tables and len(invented) == len(site.tables) else "",
        )

    def _row_link(self, root: str) -> Callable[[TableRow], str]:
        return lambda row: f"{root}cells/{_first(row)}.html"

    def benchmark(self, benchmark: str) -> None:
        pages = self.site.benchmarks[benchmark]
        for number, parts in enumerate(pages):
            self.write(
                self.site.benchmark_page(benchmark, number),
                "benchmark.html.j2",
                benchmark=benchmark,
                number=number,
                pages=[self.site.benchmark_page(benchmark, i) for i in range(len(pages))],
                parts=[(part, self._plot(part), _published(part.table)) for part in parts],
            )
            for part in parts:
                self._pairs(benchmark, part)

    def _pairs(self, benchmark: str, part: Part) -> None:
        """The file that a page loads when a reader compares two of its rows."""
        table = (
            f"{Path(self.site.benchmark_page(benchmark)).stem}-{part.anchor}{f'-{part.first}' if part.first else ''}"
        )
        rows = [row for row in (*part.table.references, *part.rows) if row.record]
        content = json.dumps({"table": table, "numbers": list(NUMBERS.values()), "pairs": pairs(rows)})
        self._put(f"samples/{table}.pairs.js", ["unlearnbenchPairs(", content, ");\n"])

    def _plot(self, part: Part) -> Any:
        return scatter(part.table, part.rows, self._row_link("../"))

    def method(self, method: MethodEntry) -> None:
        rows = [(table, row) for table, row in method.rows if not row.reference][:METHOD_PLOTS]
        plots = [
            (table, scatter(table, [row], self._row_link("../"), settings=True), f"plot-{number}")
            for number, (table, row) in enumerate(rows)
        ]
        cite = as_bibtex({method.name: method.spec.citation}) if method.spec else ""
        drawn = [plot for plot in plots if plot[1]]
        self.write(method.page, "method.html.j2", method=method, plots=drawn, cite=cite.strip())

    def cell(self, entry: Entry, samples: Samples, shown: int) -> None:
        cell, record = entry.cell, entry.cell.record
        assert record is not None
        parts: dict[str, list[Shown]] = {}
        totals: dict[str, int] = {}
        lost = ""
        spec = self.site.specs.get(cell.identity.benchmark)
        forget = spec.forget_parts if spec else ()
        if record.samples.shown != "none":
            try:
                mine = samples.of(entry.results, record.cell)
                others = {
                    role: samples.of(entry.results, key)
                    for role, key in record.samples.references.items()
                    if key != record.cell
                }
                parts, totals = shown_parts(mine, others, shown, record.samples.shown, forget)
            except HarnessError as error:
                # Without samples the page still shows scores, and says that they cannot be recomputed.
                lost = str(error).replace(str(entry.results.folder), "")
        references = self.site.reference_records(entry)
        self.write(
            f"cells/{cell.key}.html",
            "cell.html.j2",
            entry=entry,
            cell=cell,
            record=record,
            parts=parts,
            totals=totals,
            lost=lost,
            forget=forget,
            references=references,
            precision=lambda name: _cell_precision(name, record, references),
            losses=curve(record.losses),
            limits=[
                self.site.limit_in_words(cell.identity.benchmark, name, value) for name, value in record.limits.items()
            ],
            method=self.site.methods[record.identity.method_qualified],
        )
        if parts:
            content = json.dumps({"cell": cell.key, "rows": texts_of(parts)}, sort_keys=True)
            self._put(f"samples/{cell.key}.js", ["unlearnbenchSamples(", content, ");\n"])

    def downloads(self, records: bool) -> None:
        site = self.site
        described: dict[str, tuple[str, Sequence[str]]] = {}
        for benchmark in site.benchmarks:
            mine = [table for table in site.tables if table.benchmark == benchmark]
            name = Path(site.benchmark_page(benchmark)).stem
            self._put(f"data/{name}.csv", [as_csv(mine)])
            self._put(f"data/{name}-places.csv", [places_as_csv(mine)])
            self._put(f"data/{name}.tex", [as_latex(mine)])
            for file, columns in ((f"{name}.csv", HEADER), (f"{name}-places.csv", PLACES)):
                described[file] = self.made[f"data/{file}"], columns
        licences = sorted({source.licence for source in site.sources if source.licence})
        self._put("data/croissant.json", [croissant(described, licences)])
        if records:
            self._put("data/records.json", self._records())
        citations = {entry.name: entry.spec.citation for entry in site.methods.values() if entry.spec}
        citations |= {name: spec.citation for name, spec in site.specs.items() if spec}
        self._put("data/citations.bib", [as_bibtex(citations)])

    def _records(self) -> Iterable[str]:
        """All records, a line each, in the format that ``unlearnbench results`` and ``compare`` read."""
        yield '{"records": [\n'
        first = True
        for entry in self.site.entries.values():
            if entry.cell.record:
                yield ("" if first else ",\n") + entry.cell.record.model_dump_json()
                first = False
        yield "\n]}\n"


def _inside(name: str) -> bool:
    """Whether a listed name is a safe relative path inside the site."""
    parts = name.split("/")
    return len(parts) <= 2 and not any(part in ("", ".", "..") for part in parts) and "\\" not in name


def _published(table: Table) -> list[PublishedTable]:
    """The published tables of a benchmark whose metrics the table also has."""
    papers = published_for(table.benchmark, table.model)
    return [paper for paper in papers if set(paper.metrics) <= set(table.names)]


def _references(entry: Entry) -> list[tuple[str, str]]:
    return sorted(entry.cell.record.samples.references.items()) if entry.cell.record else []


def _first(row: TableRow) -> str:
    """The key of the cell to which a row links."""
    return next(cell.key for cell in row.cells if cell.record)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("unlearnbench.leaderboard", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        shares=SHARES,
        stability=stability,
        verdict=verdict,
        fails=fails,
        unlearning_cost=unlearning_cost,
        answering=answering,
        dearer=DEARER,
        numbers=NUMBERS,
        arrows=ARROWS,
        first_cell=_first,
        linked=_linked,
        question=_question,
        answered=_answered,
        scored=_scored,
        by_benchmark=by_benchmark,
    )
    return environment


def _linked(text: str) -> list[tuple[str, str]]:
    """A citation in pieces, each with the address that it names or none: arXiv numbers, and https addresses."""
    pieces, done = [], 0
    for match in re.finditer(r"arXiv:(\d{4}\.\d{4,5})|https://[\w./~%#?=&+-]+[\w/]", text):
        address = f"https://arxiv.org/abs/{match[1]}" if match[1] else match[0]
        pieces += [(text[done : match.start()], ""), (match[0], address)]
        done = match.end()
    return [*pieces, (text[done:], "")]


def _cell_precision(name: str, record: Record, references: Mapping[str, Record]) -> Precision:
    """How a metric is written on a cell's page: alike for the cell and its references."""
    score = record.scores[name]
    others = [other.scores[name].value for other in references.values() if name in other.scores]
    return precision_of([score.value, *others], score.scale == "log")


def _answered(row: Shown) -> tuple[tuple[str, Any, str | None], ...]:
    """The references' answers to a sample, each with its score in words."""
    return tuple((role, answer, _scored(row.scores.get(role))) for role, answer in row.answers)


def _scored(score: float | None) -> str | None:
    return None if score is None or math.isnan(score) else f"{score:.2f}"


@lru_cache(maxsize=8192)
def _question(prompt: str, truth: str, answers: tuple[tuple[str, str | None, str | None], ...]) -> Any:
    """A sample's prompt, truth and references' answers as HTML; cached, since all cells of a table share them."""
    return _environment().get_template("parts.html.j2").module.question(prompt, truth, answers)  # type: ignore[attr-defined]


def _template(name: str) -> Any:
    return _environment().get_template(name)
