"""The tables of the book and the other texts: the user's files, or the release's own rows."""

from __future__ import annotations

from unlearnbench import DataError, Tables

# The release has two tables of excerpts with different wordings; its evaluation asks this one.
RELEASED = "hp_test_qa_200"
FIELDS = {
    "book": ("text",),
    "retain": ("text",),
    RELEASED: ("prompt", "response"),
}
OPTIONAL = ("book", RELEASED)
# The paper's retain set: as many paragraphs of C4 as the book has chunks.
ELSEWHERE = {"retain": "allenai/c4:en:train:text:400"}
REMEDY = "name a book: --book FILE, or --data-dir with the release's hp_test_qa_200.jsonl"


def check(tables: Tables) -> None:
    """Raise DataError unless the tables hold a book with words, or its released rows, and a text to retain."""
    if not tables.get("book") and not tables.get(RELEASED):
        raise DataError(f"there is no book to forget; {REMEDY}")
    for name in ("book", "retain"):
        if tables.get(name) and not any(row["text"].strip() for row in tables[name]):
            raise DataError(f"the text of table {name!r} is empty; name another file")
    book = {row["text"] for row in tables.get("book", []) if row["text"].strip()}
    shared = book & {row["text"] for row in tables["retain"]}
    if shared:
        raise DataError("the book and the text to retain are the same; name another file with --other-text")
    for number, row in enumerate(tables.get(RELEASED, [])):
        if not row["prompt"].strip() or not row["response"].strip():
            raise DataError(f"{RELEASED}, row {number}: prompt or response is empty; complete the row or remove it")
