"""The setting that a sweep chooses, and which cells an attack is run on: of a sweep those of that setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ..domain import CellStatus
from .node_spec import CellSpec
from .record import Record, read_record
from .run_folder import RECORD, read_status


def chosen_place(values: Sequence[Sequence[float]]) -> int:
    """Where among its settings a sweep's choice stands: of those measured in most runs, the first of the highest mean.

    Args:
        values: of each setting what the rule says of its runs, more being better; NaN where that is not known. With
            none known the first is chosen.
    """
    known = [[value for value in runs if not math.isnan(value)] for runs in values]
    most = max(map(len, known))
    return max(range(len(known)), key=lambda place: fmean(known[place]) if len(known[place]) == most > 0 else -math.inf)


def unattackable(cells: Path, spec: CellSpec) -> str:
    """Why a planned attack is not run, once the cells without it have ended; empty where it is.

    Args:
        cells: the folder of the cells' folders.

    Raises:
        RecordError: a record is damaged.
    """
    status = read_status(cells / spec.plain)
    if status is None or status.status != CellStatus.DONE:
        return f"the cell without the attack ended as {status.status if status else CellStatus.PENDING}"
    if not spec.rivals:
        return ""
    by_setting: dict[str, list[float]] = {}
    for key in spec.rivals:
        record = _record_of(cells / key)
        if record:
            by_setting.setdefault(record.identity.setting, []).append(_value(cells, record))
    best = list(by_setting)[chosen_place(list(by_setting.values()))]
    return "" if spec.setting == best else f"the sweep chooses {best}"


def _record_of(folder: Path) -> Record | None:
    status = read_status(folder)
    return read_record(folder / RECORD) if status and status.status == CellStatus.DONE else None


def _value(cells: Path, record: Record) -> float:
    """What the sweep's rule says of a cell."""
    # Planning and scheduling need no numpy where nothing is attacked.
    from .balance import selection_value

    references = {role: read_record(cells / key / RECORD) for role, key in record.samples.references.items()}
    return selection_value(record, references.get("original"), references.get("retained"))
