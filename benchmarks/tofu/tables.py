"""TOFU's tables, by the hub's config names, and the constraints between them."""

from __future__ import annotations

from collections.abc import Sequence

from unlearnbench import DataError, Example, Row, Tables

QA = ("question", "answer")
PERTURBED = (*QA, "perturbed_answer[]")
PARAPHRASED = (*PERTURBED, "paraphrased_answer")
RETAIN_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
"""The retain split of each forget split; a name ends with the split's per cent of all rows."""


ROWS_PER_AUTHOR = 20


def table_fields(forget_split: str, retain_split: str) -> dict[str, tuple[str, ...]]:
    """The tables of one split and the fields that the code reads.

    Only generated data have ``general``: what a pretrained model would know of real authors and world facts.
    """
    return {
        "full": QA,
        forget_split: QA,
        retain_split: QA,
        f"{forget_split}_perturbed": PARAPHRASED,
        "retain_perturbed": PARAPHRASED,
        "real_authors_perturbed": PERTURBED,
        "world_facts_perturbed": PERTURBED,
        "general": QA,
    }


def check(tables: Tables) -> None:
    """Raise DataError unless forget and retain partition the full table, and the perturbed rows match.

    Rows compare by position: one question of the real data occurs twice.
    """
    forget_name = next(name for name in tables if name.startswith("forget") and not name.endswith("_perturbed"))
    retain_name = next(name for name in tables if name.startswith("retain") and not name.endswith("_perturbed"))
    full, forget, retain = ([_pair(row) for row in tables[name]] for name in ("full", forget_name, retain_name))
    shared = set(forget) & set(retain)
    if shared:
        question = min(shared)[0]
        raise DataError(f"{forget_name} and {retain_name} overlap in {len(shared)} rows, for example {question!r}")
    if retain + forget != full:
        raise DataError(
            f"{retain_name} ({len(retain)} rows) followed by {forget_name} ({len(forget)} rows) "
            f"is not full ({len(full)} rows)"
        )
    _same_rows(f"{forget_name}_perturbed", forget, [_pair(row) for row in tables[f"{forget_name}_perturbed"]])
    retained = [_pair(row) for row in tables["retain_perturbed"]]
    _same_rows("retain_perturbed", full[: len(retained)], retained)


def questions(tables: Tables) -> dict[str, list[dict[str, str]]]:
    """The rows to ask, by part."""
    forget = next(name for name in tables if name.startswith("forget") and name.endswith("_perturbed"))
    asked = {
        "forget": forget,
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
    }
    return {
        part: [{"prompt": row["question"], "truth": row["answer"]} for row in tables[name]]
        for part, name in asked.items()
    }


def author(part: str, rows: Sequence[Row], example: Example) -> str:
    """The author whom a row is about: as generated data say, or by the published order, twenty rows each.

    Empty for real authors and world facts, and where rows are not whole authors: such rows stand alone.
    """
    if part not in ("forget", "retain"):
        return ""
    named = rows[example.index].get("author", "")
    return named or (str(example.index // ROWS_PER_AUTHOR) if len(rows) % ROWS_PER_AUTHOR == 0 else "")


def _same_rows(name: str, expected: list[tuple[str, str]], found: list[tuple[str, str]]) -> None:
    if len(expected) != len(found):
        raise DataError(f"{name} has {len(found)} rows, expected {len(expected)}")
    for row, (want, have) in enumerate(zip(expected, found, strict=True)):
        if want != have:
            raise DataError(f"{name}, row {row} is {have[0]!r}, expected {want[0]!r}: the tables are out of step")


def _pair(row: dict[str, str]) -> tuple[str, str]:
    return row["question"], row["answer"]
