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


def chosen_place(values: Sequence[Sequence[float]]) -> int:
    """Where among its settings a sweep's choice stands: of those measured in most runs, the first of the highest mean.

    Args:
        values: of each setting what the rule says of its runs, more being better; NaN where that is not known. With
            none known the first is chosen.
    """
    known = [[value for value in runs if not math.isnan(value)] for runs in values]
    most = max(map(len, known))
    return max(range(len(known)), key=lambda place: fmean(known[place]) if len(known[place]) == most > 0 else -math.inf)


class Choices:
    """What the sweeps of a run folder choose, each asked once those that it comes after have ended, and remembered.

    Args:
        cells: the folder of the cells' folders.
    """

    def __init__(self, cells: Path) -> None:
        self._cells = cells
        self._chosen: dict[tuple[tuple[str, ...], str], str | None] = {}

    def left_out(self, spec: CellSpec) -> str:
        """Why a planned cell is not run; empty where it is.

        An attack needs the cell that it attacks; where a sweep chooses, other settings are not attacked or run again.

        Raises:
            RecordError: a record is damaged.
        """
        if spec.rivals:
            best = self._setting(spec.rivals, spec.edition)
            if spec.setting != best:
                return "no setting of the sweep was measured" if best is None else f"{LEFT_OUT}{best}"
        if spec.attack is None:
            return ""
        status = read_status(self._cells / spec.plain)
        if status is None or status.status != CellStatus.DONE:
            return f"the cell without the attack ended as {status.status if status else CellStatus.PENDING}"
        return ""

    def _setting(self, keys: tuple[str, ...], edition: str) -> str | None:
        """The setting that the rule chooses among cells by an edition's scores; None where none is measured."""
        if (keys, edition) not in self._chosen:
            record_of = cache(lambda key: read_record(self._cells / key / RECORD).in_edition(edition))
            by_setting: dict[str, list[float]] = {}
            for key in keys:
                status = read_status(self._cells / key)
                if status and status.status == CellStatus.DONE:
                    record = record_of(key)
                    by_setting.setdefault(record.identity.setting, []).append(_value(record, record_of))
            place = chosen_place(list(by_setting.values())) if by_setting else None
            self._chosen[keys, edition] = None if place is None else list(by_setting)[place]
        return self._chosen[keys, edition]


def _value(record: Record, record_of: Callable[[str], Record]) -> float:
    """What the sweep's rule says of a cell."""
    # Planning and scheduling need no numpy where nothing is attacked.
    from .balance import selection_value

    references = {role: record_of(key) for role, key in record.samples.references.items()}
    return selection_value(record, references.get("original"), references.get("retained"))
