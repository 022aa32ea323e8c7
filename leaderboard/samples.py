"""Samples as pages show them: generations beside the truth and the references, with words marked and a score each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from unlearnbench.domain import Measurement
from unlearnbench.metrics.overlap import rouge_l_recall
from unlearnbench.records.results import Results
from unlearnbench.records.tries import worst_tries

KEPT = 8
LONGEST = 400
"""Most words of a text that is compared with the truth."""

Place = tuple[str, int]
SampleRows = Mapping[Place, Mapping[str, Any]]


class Shown(NamedTuple):
    """A row as pages show it: every text escaped, and marked or replaced by its number of words."""

    number: int
    prompt: Markup
    truth: Markup
    answers: tuple[tuple[str, Markup | None], ...]
    """The role and the answer of each reference; None where it was not asked."""
    mine: Markup
    scores: Mapping[str, float]
    """ROUGE-L recall of the truth in the answer, by role and, under an empty name, of the cell's own; NaN where ROUGE
    knows no word of the truth."""
    difference: float
    """By how much the cell's own score differs from those of the references together."""


class Samples:
    """A cache of the sample files used last, so that references are not read again for every cell."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], SampleRows] = {}

    def of(self, results: Results, key: str) -> SampleRows:
        """The rows of a cell by part and index. Raises a HarnessError where its file is missing or broken."""
        place = (results.source, key)
        cached = self._kept.pop(place, None)
        if cached is None:
            rows = worst_tries(Measurement(tuple(results.samples_of(key)))).rows
            cached = {(str(row.get("part", "")), _place(row, number)): row for number, row in enumerate(rows)}
        self._kept[place] = cached
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return cached


def _place(row: Mapping[str, Any], number: int) -> int:
    index = row.get("index", number)
    return index if type(index) is int else number


def shown_parts(
    mine: SampleRows, references: Mapping[str, SampleRows], most: int, shown: str, forget: Sequence[str] = ()
) -> tuple[dict[str, list[Shown]], dict[str, int]]:
    """The rows of each part that differ most from the references', and how many rows each part has.

    Args:
        most: rows of each part that are returned; the sample file holds all.
        shown: ``public`` for texts, ``redacted`` for their numbers of words.
        forget: the parts where a departure from the truth is no fault, and what is left of the truth is marked.
    """
    scored: dict[str, list[tuple[Mapping[str, Any], dict[str, Any], dict[str, float]]]] = {}
    for place, row in mine.items():
        if "generation" not in row:
            # Rows of likelihoods only: the table has their scores, the sample file their values.
            continue
        answers = {role: rows.get(place, {}).get("generation") for role, rows in references.items()}
        truth = str(row.get("truth", ""))
        given = {"": row["generation"], **{role: text for role, text in answers.items() if text is not None}}
        scores = {role: rouge_l_recall(truth, str(text)) for role, text in given.items()}
        scored.setdefault(place[0], []).append((row, answers, scores))
    parts = {}
    for part, rows in scored.items():
        show = _redacted if shown == "redacted" else kept_words if part in forget else marked
        found = sorted(rows, key=lambda each: -_difference(each[2]))
        parts[part] = [_row(*each, show) for each in found[:most]]
    return parts, {part: len(rows) for part, rows in scored.items()}


def _difference(scores: Mapping[str, float]) -> float:
    """By how much a cell's own score differs from those of its references together."""
    own = scores[""]
    return sum(abs(own - score) for role, score in scores.items() if role and not math.isnan(own - score))


def _row(
    row: Mapping[str, Any],
    answers: Mapping[str, Any],
    scores: Mapping[str, float],
    show: Callable[[str, str], Markup],
) -> Shown:
    truth = str(row.get("truth", ""))
    return Shown(
        row.get("index", 0),
        show(str(row.get("asked") or row.get("prompt", "")), ""),
        show(truth, ""),
        tuple((role, None if text is None else show(str(text), truth)) for role, text in answers.items()),
        show(str(row["generation"]), truth),
        scores,
        _difference(scores),
    )


def _redacted(text: str, _: str) -> Markup:
    return Markup("row of {} words").format(len(text.split())) if text else Markup("")


def kept_words(text: str, truth: str) -> Markup:
    """The text, escaped, with the words marked that are left of the truth, in its order; unmarked without a truth."""
    return marked(text, truth, kept=True)


@lru_cache(maxsize=8192)
def marked(text: str, truth: str, kept: bool = False) -> Markup:
    """The text, escaped, with words marked that do not match the truth in order (``kept``: that do).

    Cached, since prompts, truths and the references' answers recur in every cell of a table.
    """
    words, known = text.split(), truth.split()
    if not known or (words == known and not kept) or max(len(words), len(known)) > LONGEST:
        return escape(text)
    departed, left = ("{}", '<mark class="kept">{}</mark>') if kept else ("<mark>{}</mark>", "{}")
    pieces: list[str] = []
    blocks = SequenceMatcher(None, words, known, autojunk=False).get_matching_blocks()
    done = 0
    for block in blocks:
        if block.a > done:
            pieces.append(departed.format(escape(" ".join(words[done : block.a]))))
        if block.size:
            pieces.append(left.format(escape(" ".join(words[block.a : block.a + block.size]))))
        done = block.a + block.size
    return Markup(" ".join(pieces))


def texts_of(parts: Mapping[str, Sequence[Shown]]) -> dict[str, dict[str, str]]:
    """The answers with marks, by part and index, which the comparison of two methods loads."""
    return {
        f"{part} {row.number}": {"prompt": row.prompt, "truth": row.truth, "mine": row.mine}
        for part, rows in parts.items()
        for row in rows
    }
