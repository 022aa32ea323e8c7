"""Exports of the pages' tables and citations: CSV, LaTeX and BibTeX."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files

from unlearnbench.domain import NUMBERS
from unlearnbench.records.record import Record

from .numbers import Number
from .precision import SHARES, Precision
from .ranking import Table
from .rows import Sweep, TableRow, Value
from .verdict import verdict

HEADER = tuple(
    "benchmark model method attack loss_edition seed metric edition value low high n passes reason comparability "
    "cell".split()
)
PLACES = tuple(
    "benchmark model division method loss_edition seeds place best worst group score score_low score_high forgetting "
    "forgetting_low forgetting_high utility utility_low utility_high robust robust_low robust_high worst_attack "
    "setting settings_tried settings_failed rule selected_on sweep_seconds area area_low area_high verdict reason "
    "comparability cells".split()
)


def as_csv(tables: Iterable[Table]) -> str:
    """A line for each metric of each cell, in full precision; ``low`` and ``high`` bound the 95 % interval."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    seen = set()
    for table in tables:
        for row in (*table.references, *table.rows):
            attacked = [cell for found in row.attacks.values() for cell in found.cells]
            for cell in (*row.cells, *attacked):
                record = cell.record
                if record is None or cell.key in seen:
                    continue
                seen.add(cell.key)
                who = record.identity
                for name, entry in record.scores.items():
                    low, high = entry.interval or ("", "")
                    passes = "" if entry.passes is None else str(entry.passes).lower()
                    line = [
                        who.benchmark,
                        table.model,
                        who.method,
                        who.attack,
                        who.method_edition,
                        who.seed,
                        name,
                        entry.edition,
                    ]
                    line += [entry.value, low, high, entry.n, passes, entry.reason, record.comparability.sha256]
                    writer.writerow(map(_plain, [*line, cell.key]))
    return out.getvalue()


def places_as_csv(tables: Iterable[Table]) -> str:
    """A line for each row of the tables: its place with its range and group, and the three numbers behind it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(PLACES)
    for table in tables:
        for row in (*table.references, *table.rows):
            if row.record:
                writer.writerow(map(_plain, _place_line(table, row, row.record)))
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


def _plain(value: object) -> object:
    """Put an apostrophe before text that a spreadsheet would read as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def as_latex(tables: Iterable[Table]) -> str:
    """Each table in the layout of the paper's after places and scores, with booktabs.

    Scores that cannot be told from the best are bold, and from the best of the rest underlined.
    """
    return "\n".join(line for table in tables for line in _latex(table)) + "\n"


LATEX_ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$", "target": r"$\rightarrow$"}


def _latex(table: Table) -> Iterable[str]:
    title = f"{table.benchmark}, {table.model}; metrics of edition {table.comparability.get('edition', '')}"
    limits = "".join(f"; {name} {fact}" for name, fact in table.limits.items())
    yield r"\begin{table}\centering"
    yield rf"\caption{{{_tex(title + limits)}. References are not ranked.}}"
    yield rf"\begin{{tabular}}{{rl{'r' * (len(NUMBERS) + bool(table.attacks) + len(table.headline))}}}"
    yield r"\toprule"
    heads = [f"{_tex(table.metric(name).label)} {LATEX_ARROWS[table.metric(name).better]}" for name in table.headline]
    robust = ["Robust"] if table.attacks else []
    yield " & ".join(["Place", "Method", *NUMBERS.values(), *robust, *heads]) + r" \\"
    yield r"\midrule"
    for number, row in enumerate((*table.references, *table.rows)):
        if number == len(table.references):
            yield r"\midrule"
        if row.record:
            place = _tex(row.place.range) if row.place else ""
            numbers = [_latex_number(row, name, number) for name, number in row.numbers.items()]
            if table.attacks:
                numbers.append(_tex(SHARES(row.robust[1].value)) if row.robust else "--")
            columns = [_latex_value(row.values[name], table.precisions[name]) for name in table.headline]
            yield " & ".join([place, _tex(row.method), *numbers, *columns]) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}\end{table}"


def _latex_number(row: TableRow, name: str, number: Number) -> str:
    text = _tex(SHARES(number.value))
    group = row.place.group if row.place and name == "score" else 0
    return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(group, text)


def _latex_value(value: Value, written: Precision) -> str:
    spread = "" if value.spread is None else rf" {{\small $\pm$ {_tex(written(value.spread))}}}"
    return _tex(written(value.value)) + spread


TEX = {
    "\\": r"\textbackslash{}",
    "−": "$-$",
    "∞": r"$\infty$",
    "–": "--",
    "₁₀": "$_{10}$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, TEX)), lambda match: TEX[match[0]], " ".join(text.split()))


@cache
def _papers() -> dict[str, tuple[str, str, int]]:
    content = json.loads(files("unlearnbench.leaderboard").joinpath("papers.json").read_text(encoding="utf-8"))
    return {number: tuple(facts) for number, facts in content.items()}


def as_bibtex(citations: Mapping[str, str]) -> str:
    """BibTeX entries for citations, given by the name of the component that cites them; keeps BibTeX unchanged."""
    entries: dict[str, list[str]] = {}
    for name, citation in citations.items():
        if citation:
            entries.setdefault(citation, []).append(name)
    return "\n".join(_entry(citation, names) for citation, names in entries.items())


def _entry(citation: str, names: list[str]) -> str:
    if citation.lstrip().startswith("@"):
        return citation.strip() + "\n"
    arxiv = re.search(r"arXiv:(\d{4}\.\d{4,5})", citation)
    fields = {"note": _tex(f"{citation}; {', '.join(names)}")}
    key = re.sub(r"\W+", "", names[0].lower())
    if arxiv:
        fields |= {"eprint": arxiv[1], "archiveprefix": "arXiv"}
        if arxiv[1] in _papers():
            title, authors, year = _papers()[arxiv[1]]
            fields |= {"title": f"{{{_tex(title)}}}", "author": authors, "year": str(year)}
            key = authors.partition(",")[0].lower() + str(year) + "".join(arxiv[1].split("."))
    lines = "".join(f"  {name} = {{{text}}},\n" for name, text in sorted(fields.items()))
    return f"@misc{{{key},\n{lines}}}\n"
