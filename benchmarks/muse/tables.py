"""MUSE-News's tables, by the hub's subset and split, and the constraints between them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from unlearnbench import DataError, Row, Tables

FOLDS = (1, 2, 3, 4)
TEXT = ("text",)
QA = ("question", "answer")
RETAIN = ("raw/retain1", "raw/retain2")
DISPENSABLE = (*RETAIN, "raw/holdout")
EVALUATION = {
    "verbmem/forget": ("prompt", "gt"),
    "knowmem/forget_qa": QA,
    "knowmem/forget_qa_icl": QA,
    "knowmem/retain_qa": QA,
    "knowmem/retain_qa_icl": QA,
    "privleak/forget": TEXT,
    "privleak/holdout": TEXT,
}


def forget_tables(study: str, step: int) -> tuple[str, ...]:
    """The tables to forget, in order: one, larger ones (``scal``), or one after another (``sust``)."""
    if study == "scal":
        return (f"scal/forget_{step}",)
    return tuple(f"sust/forget_{fold}" for fold in range(1, step + 1)) if study == "sust" else ("raw/forget",)


def seen_tables(study: str) -> tuple[str, ...]:
    """The tables of the forget corpus that the original model has read."""
    if study == "scal":
        return (f"scal/forget_{FOLDS[-1]}",)
    return tuple(f"sust/forget_{fold}" for fold in FOLDS) if study == "sust" else ("raw/forget",)


def table_fields(study: str, step: int) -> dict[str, tuple[str, ...]]:
    """The tables of one variant and the fields that the code reads."""
    read = dict.fromkeys((*forget_tables(study, step), *seen_tables(study), *DISPENSABLE), TEXT)
    return {**read, **EVALUATION}


def check(tables: Tables) -> None:
    """Raise DataError where tables that must differ are equal, or a row has an empty text."""
    parts = ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl")
    for name, fields in (("verbmem/forget", ("prompt", "gt")), *((f"knowmem/{part}", QA) for part in parts)):
        for number, row in enumerate(tables[name]):
            for field in fields:
                if not row[field].strip():
                    raise DataError(f"{name}, row {number}: {field!r} is empty; complete the row or remove it")
    for name, other, shared, total in overlaps(tables):
        if 2 * shared > total:
            raise DataError(
                f"{shared} of the {total} texts of {name} are also in {other}; these must be different texts: is one "
                "file there twice?"
            )
    members, strangers = tables["privleak/forget"], tables["privleak/holdout"]
    if len(members) != len(strangers):
        raise DataError(
            f"privleak/forget has {len(members)} texts and privleak/holdout {len(strangers)}; "
            "the splits must have the same size"
        )
    both = _texts(members) & _texts(strangers)
    if both:
        raise DataError(
            f"privleak/forget and privleak/holdout overlap in {len(both)} texts, for example {min(both)[:60]!r}; "
            "a text is either read or not"
        )


def questions(tables: Tables) -> dict[str, list[dict[str, str]]]:
    """The rows to ask, by part. The length of a true continuation depends on the tokenizer, so it is left out."""
    asked = {"verbmem_f": [{"prompt": row["prompt"]} for row in tables["verbmem/forget"]]}
    for part, table in (("knowmem_f", "forget_qa"), ("knowmem_r", "retain_qa")):
        asked[part] = [{"prompt": row["question"], "truth": row["answer"]} for row in tables[f"knowmem/{table}"]]
    for part in ("forget", "holdout"):
        asked[f"privleak_{part}"] = [{"text_sha256": text_hash(row["text"])} for row in tables[f"privleak/{part}"]]
    return asked


def text_hash(text: str) -> str:
    """The hash that replaces a text in a record that does not show it."""
    return hashlib.sha256(text.encode()).hexdigest()


def overlaps(tables: Tables) -> Iterator[tuple[str, str, int, int]]:
    """Yield pairs of tables with shared texts: two names, the number of shared texts, the size of the first table.

    The newspaper printed some articles twice, so published folds share a few.
    """
    raw = {name: _texts(rows) for name, rows in tables.items() if name.startswith(("raw/", "scal/", "sust/"))}
    for name, texts in raw.items():
        for other, others in raw.items():
            forgets = "forget" in name and "forget" not in other
            if (forgets or (name in RETAIN and other == "raw/holdout")) and texts & others:
                yield name, other, len(texts & others), len(texts)


def _texts(rows: list[Row]) -> set[str]:
    return {row["text"] for row in rows if row["text"].strip()}
