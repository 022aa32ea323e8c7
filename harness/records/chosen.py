"""The setting that a sweep chooses, and which planned cells are run for that setting alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

from ..domain import CellStatus
from .node_spec import CellSpec
from .record import Record, read_record
from .run_folder import LEFT_OUT, RECORD, read_status

Choose = Callable[[Path, tuple[str, ...], str], str | None]
"""``chosen_setting``, or one that remembers what it chose."""


def chosen_place(values: Sequence[Sequence[float]]) -> int:
    """Where among its settings a sweep's choice stands: of those measured in most runs, the first of the highest mean.

    Args:
        values: of each setting what the rule says of its runs, more being better; NaN where that is not known. With
            none known the first is chosen.
    """
    known = [[value for value in runs if not math.isnan(value)] for runs in values]
    most = max(map(len, known))
    return max(range(len(known)), key=lambda place: fmean(known[place]) if len(known[place]) == most > 0 else -math.inf)


def chosen_setting(cells: Path, keys: tuple[str, ...], edition: str) -> str | None:
    """The setting that a sweep's rule chooses among these cells; None where none of them is measured.

    Args:
        cells: the folder of the cells' folders.
        edition: of the metrics that the rule reads.

    Raises:
        RecordError: a record is damaged.
    """
    record_of = cache(lambda key: read_record(cells / key / RECORD).in_edition(edition))
    by_setting: dict[str, list[float]] = {}
    for key in keys:
        status = read_status(cells / key)
        if status and status.status == CellStatus.DONE:
            record = record_of(key)
            by_setting.setdefault(record.identity.setting, []).append(_value(record, record_of))
    return list(by_setting)[chosen_place(list(by_setting.values()))] if by_setting else None


def left_out(cells: Path, spec: CellSpec, choose: Choose) -> str:
    """Why a planned cell is not run, once those that it comes after have ended; empty where it is.

    An attack needs the cell that it attacks; where a sweep chooses, other settings are not attacked or run again.

    Args:
        cells: the folder of the cells' folders.

    Raises:
        RecordError: a record is damaged.
    """
    if spec.rivals:
        best = choose(cells, spec.rivals, spec.edition)
        if spec.setting != best:
            return "no setting of the sweep was measured" if best is None else f"{LEFT_OUT}{best}"
    if spec.attack is None:
        return ""
    status = read_status(cells / spec.plain)
    if status is None or status.status != CellStatus.DONE:
        return f"the cell without the attack ended as {status.status if status else CellStatus.PENDING}"
    return ""


def _value(record: Record, record_of: Callable[[str], Record]) -> float:
    """What the sweep's rule says of a cell."""
    # Planning and scheduling need no numpy where nothing is attacked.
    from .balance import selection_value

    references = {role: record_of(key) for role, key in record.samples.references.items()}
    return selection_value(record, references.get("original"), references.get("retained"))
