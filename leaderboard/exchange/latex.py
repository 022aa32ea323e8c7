"""Tables as LaTeX and citations as BibTeX, in any text that compiles."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files

from unlearnbench.domain import NUMBERS

from ..numbers import Number
from ..precision import SHARES, Precision
from ..ranking import Table
from ..rows import TableRow, Value


def as_latex(tables: Iterable[Table]) -> str:
    """Each table in the layout of the paper's after places and scores, with booktabs.

    Scores that cannot be told from the best are bold, and from the best of the rest underlined.
    """
    return "\n".join(line for table in tables for line in _latex(table)) + "\n"


LATEX_ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$", "target": r"$\rightarrow$"}


def _latex(table: Table) -> Iterable[str]:
    editions = f"metrics of edition {table.comparability.get('edition', '')}"
    if table.loss_edition:
        editions = f"losses of edition {table.loss_edition}, {editions}"
    division = "closed" if table.closed else "open"
    title = f"{table.benchmark}, {table.model}; {division} division; {editions}"
    limits = "".join(f"; {name} {fact}" for name, fact in table.limits.items())
    yield r"\begin{table}\centering"
    yield rf"\caption{{{tex(title + limits)}. References are not ranked.}}"
    yield rf"\begin{{tabular}}{{rl{'r' * (len(NUMBERS) + bool(table.attacks) + len(table.headline))}}}"
    yield r"\toprule"
    heads = [f"{tex(table.metric(name).label)} {LATEX_ARROWS[table.metric(name).better]}" for name in table.headline]
    robust = ["Robust"] if table.attacks else []
    yield " & ".join(["Place", "Method", *NUMBERS.values(), *robust, *heads]) + r" \\"
    yield r"\midrule"
    for number, row in enumerate((*table.references, *table.rows)):
        if number == len(table.references):
            yield r"\midrule"
        if row.record:
            place = tex(row.place.range) if row.place else ""
            numbers = [_latex_number(row, name, number) for name, number in row.numbers.items()]
            if table.attacks:
                numbers.append(tex(SHARES(row.robust[1].value)) if row.robust else "--")
            columns = [_latex_value(row.values[name], table.precisions[name]) for name in table.headline]
            yield " & ".join([place, tex(row.method), *numbers, *columns]) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}\end{table}"


def _latex_number(row: TableRow, name: str, number: Number) -> str:
    text = tex(SHARES(number.value))
    group = row.place.group if row.place and name == "score" else 0
    return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(group, text)


def _latex_value(value: Value, written: Precision) -> str:
    spread = "" if value.spread is None else rf" {{\small $\pm$ {tex(written(value.spread))}}}"
    return tex(written(value.value)) + spread


TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\textbraceleft{}",
    "}": r"\textbraceright{}",
    "−": "$-$",
    "∞": r"$\infty$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "’": "'",
    "‘": "`",
    "“": "``",
    "”": "''",
    "₁₀": "$_{10}$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    **{letter: rf"\{letter}" for letter in "&%$#_"},
}
"""What LaTeX writes instead of a letter. Braces by name, since BibTeX counts those behind a backslash too."""
LETTERS = frozenset("ßæøåœłÆØÅŒŁ")
ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
"""The accents that LaTeX's first font encoding can put on a letter."""


def tex(text: str) -> str:
    """A text that LaTeX typesets in its default fonts; a letter that these lack as its code point in brackets."""
    words = unicodedata.normalize("NFC", " ".join(text.split()))
    pieces = re.split("(" + "|".join(map(re.escape, TEX)) + ")", words)
    return "".join(TEX.get(piece) or "".join(map(_letter, piece)) for piece in pieces)


def _letter(letter: str) -> str:
    if letter.isascii():
        return letter if letter.isprintable() else ""
    base, *accents = list(unicodedata.normalize("NFD", letter))
    if letter in LETTERS or (base.isascii() and base.isalpha() and len(accents) == 1 and accents[0] in ACCENTS):
        return letter
    plain = unicodedata.normalize("NFKD", letter)
    ascii_letters = "".join(each for each in plain if each.isascii() and each.isalnum())
    return ascii_letters or f"[U+{ord(letter):04X}]"


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
    taken: set[str] = set()
    return "\n".join(_entry(citation, names, taken) for citation, names in entries.items())


def _entry(citation: str, names: list[str], taken: set[str]) -> str:
    if _is_bibtex(citation):
        return citation.strip() + "\n"
    arxiv = re.search(r"arXiv:(\d{4}\.\d{4,5})", citation)
    fields = {"note": tex(f"{citation}; {', '.join(names)}")}
    key = re.sub(r"[^a-z0-9]+", "", names[0].lower()) or "entry"
    if arxiv:
        fields |= {"eprint": arxiv[1], "archiveprefix": "arXiv"}
        if arxiv[1] in _papers():
            title, authors, year = _papers()[arxiv[1]]
            fields |= {"title": f"{{{tex(title)}}}", "author": authors, "year": str(year)}
            key = authors.partition(",")[0].lower() + str(year) + "".join(arxiv[1].split("."))
    unique, number = key, 2
    while unique in taken:
        unique, number = f"{key}x{number}", number + 1
    taken.add(unique)
    lines = "".join(f"  {name} = {{{text}}},\n" for name, text in sorted(fields.items()))
    return f"@misc{{{unique},\n{lines}}}\n"


def _is_bibtex(citation: str) -> bool:
    """Whether a citation is an entry already, with braces that balance as BibTeX counts them."""
    depth = 0
    for letter in citation:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth < 0:
            return False
    return citation.lstrip().startswith("@") and "{" in citation and not depth
