"""The setting that a sweep chooses, and which planned cells are run for that setting alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ..domain import CellStatus
from .node_spec import CellSpec
from .record import Record, read_record
from .run_folder import LEFT_OUT, RECORD, read_status


def chosen_place(values: Sequence[Sequence[float]]) -> int:
    """Where among its settings a sweep's choice stands: of those measured in most runs, the first of the highest mean.

    Args:
        values: of each setting what the rule says of its runs, more being better; NaN where that is not known. With
            none known the first is chosen.
    """
    known = [[value for value in runs if not math.isnan(value)] for runs in values]
    most = max(map(len, known))
    return max(range(len(known)), key=lambda place: fmean(known[place]) if len(known[place]) == most > 0 else -math.inf)


def left_out(cells: Path, spec: CellSpec) -> str:
    """Why a planned cell is not run, once those that it comes after have ended; empty where it is.

    An attack needs the cell that it attacks; where a sweep chooses, other settings are not attacked or run again.

    Args:
        cells: the folder of the cells' folders.

    Raises:
        RecordError: a record is damaged.
    """
    by_setting: dict[str, list[float]] = {}
    for key in spec.rivals:
        record = _record_of(cells / key)
        if record:
            by_setting.setdefault(record.identity.setting, []).append(_value(cells, record))
    if by_setting:
        best = list(by_setting)[chosen_place(list(by_setting.values()))]
        if spec.setting != best:
            return f"{LEFT_OUT}{best}"
    elif spec.rivals:
        return "no setting of the sweep was measured"
    if spec.attack is None:
        return ""
    status = read_status(cells / spec.plain)
    if status is None or status.status != CellStatus.DONE:
        return f"the cell without the attack ended as {status.status if status else CellStatus.PENDING}"
    return ""


def _record_of(folder: Path) -> Record | None:
    status = read_status(folder)
    return read_record(folder / RECORD) if status and status.status == CellStatus.DONE else None


def _value(cells: Path, record: Record) -> float:
    """What the sweep's rule says of a cell."""
    # Planning and scheduling need no numpy where nothing is attacked.
    from .balance import selection_value

    references = {role: read_record(cells / key / RECORD) for role, key in record.samples.references.items()}
    return selection_value(record, references.get("original"), references.get("retained"))
