"""Rows are divided into validation rows and reported rows, or said to be too few."""

from __future__ import annotations

import pytest

from unlearnbench.domain import Measurement, Split
from unlearnbench.records.row_split import divided

SPLIT = Split(by={"forget": "author"})


def rows(part, authors, each):
    return tuple(
        {"part": part, "index": number * each + place, "author": f"author {number}"}
        for number in range(authors)
        for place in range(each)
    )


def test_authors_go_to_one_side_whole_and_every_row_to_one():
    measured = Measurement((*rows("forget", 6, 5), *rows("other", 1, 20)))
    found = divided(measured, SPLIT)
    sides = [[row for row in side.rows if row["part"] == "forget"] for side in (found.reported, found.validation)]
    authors = [{row["author"] for row in side} for side in sides]
    assert not authors[0] & authors[1]
    assert sorted(row["index"] for side in sides for row in side) == list(range(30))
    # Rows of a part that names no clusters stand alone.
    assert sum(row["part"] == "other" for row in found.validation.rows) == 10
    assert divided(measured, SPLIT) == found


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        (rows("forget", 3, 20), "forget has 60 rows in 3 clusters, too few to divide"),
        (rows("forget", 4, 4), "forget has 16 rows in 4 clusters, too few to divide"),
        ((*rows("forget", 6, 5), *rows("other", 1, 3)), "other has 3 rows in 3 clusters, too few to divide"),
    ],
)
def test_what_is_too_small_is_reported_whole_with_the_reason(measured, reason):
    found = divided(Measurement(measured), SPLIT)
    assert found.validation is None
    assert found.reported.rows == measured
    assert found.reason == reason


def test_a_single_row_of_a_part_stands_on_both_sides():
    measured = Measurement((*rows("forget", 6, 5), {"part": "note", "index": 0}))
    found = divided(measured, SPLIT)
    assert all(sum(row["part"] == "note" for row in side.rows) == 1 for side in (found.reported, found.validation))


def test_without_a_split_all_rows_are_reported():
    measured = Measurement(rows("forget", 6, 5))
    assert divided(measured, None).reported == measured
    assert divided(measured, None).validation is None
