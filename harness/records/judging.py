"""Adds what an outside scorer says to the rows of a measurement. Needs no model and imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RecordError

JUDGED = "judged"
"""The field of a row that holds what a benchmark's outside scorer says of it."""
NOT_JUDGED = "not judged"
"""The beginning of the note of a cell whose scorer failed."""
SampleRows = Sequence[Mapping[str, Any]]


def is_judged(benchmark: Any) -> bool:
    """Whether a benchmark has an outside scorer."""
    return callable(getattr(benchmark, "judge", None))


def judged_rows(benchmark: Any, rows: SampleRows) -> list[Mapping[str, Any]]:
    """The rows with what the benchmark's scorer says of each, in place of what it said before.

    Raises:
        RecordError: it does not say one thing of each row, or something that is no JSON.
    """
    plain = [{name: value for name, value in row.items() if name != JUDGED} for row in rows]
    said = list(benchmark.judge(plain))
    if len(said) != len(plain):
        raise RecordError(
            f"judge returned {len(said)} values for {len(plain)} rows; return one for each, in their order"
        )
    try:
        json.dumps(said)
    except (TypeError, ValueError) as error:
        raise RecordError(f"judge returned what is no JSON: {error}") from error
    return [{**row, JUDGED: value} for row, value in zip(plain, said, strict=True)]
