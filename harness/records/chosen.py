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


def chosen_place(values: Sequence[float]) -> int:
    """Where among its settings a sweep's choice stands: of the highest value, the first of equal ones.

    Args:
        values: what the rule says of each, more being better; NaN where it is not known. With none known the first is
            chosen.
    """
    known = [place for place, value in enumerate(values) if not math.isnan(value)]
    return max(known, key=lambda place: values[place]) if known else 0


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
    runs = len(spec.rivals) // spec.settings_tried
    means = {
        setting: fmean(values) if len(values) == runs else math.nan for setting, values in by_setting.items() if setting
    }
    best = list(means)[chosen_place(list(means.values()))]
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
