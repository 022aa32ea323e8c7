"""Forgetting, utility and score of a record, from it and the records of its original and retained models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..domain import CellId
from ..metrics.balance import balanced, forgetting, kept_forgotten, told_apart, utility
from ..metrics.statistics import Floats
from .record import Record, ScoreEntry
from .run_folder import StoredCell

Part = Literal["forgetting", "utility"]
PARTS: tuple[Part, ...] = ("forgetting", "utility")


@dataclass(frozen=True)
class Estimate:
    """One of the three numbers: its value and its (R,) values over resampled rows, or NaN with a reason.

    ``n`` is the number of rows behind the part of it that has fewest.
    """

    value: float
    resamples: Floats | None = None
    reason: str = ""
    n: int = 0

    @classmethod
    def missing(cls, reason: str) -> Estimate:
        return cls(math.nan, None, reason)


@dataclass(frozen=True)
class Balance:
    """The three numbers of one cell, each between 0 and 1."""

    forgetting: Estimate
    utility: Estimate
    score: Estimate


class References:
    """The records of original and retained models, by the cells whose scores compare with them.

    Of an attack the cell without it counts too: an attacked model is measured on the scale of models as they are.
    """

    def __init__(self, cells: Iterable[StoredCell]) -> None:
        self._records: dict[tuple[Path, str], Record] = {}
        self._original_of: dict[tuple[Path, str], Record] = {}
        self._plain: dict[tuple[Path, CellId], StoredCell] = {}
        for cell in cells:
            if cell.record and not cell.identity.attack:
                self._plain[cell.folder.parent, cell.identity] = cell
            if cell.record and cell.record.identity.reference:
                self._records[cell.folder.parent, cell.record.cell] = cell.record
                retained = cell.record.samples.references.get("retained")
                if retained:
                    self._original_of[cell.folder.parent, retained] = cell.record

    def balance(self, cell: StoredCell) -> Balance:
        """The three numbers of a cell with a record."""
        if not cell.identity.attack:
            return balance(*self._three(cell))
        plain = self._plain.get((cell.folder.parent, cell.identity.plain))
        if plain is None:
            none = Estimate.missing("the record of the cell without the attack is not here")
            return Balance(none, none, none)
        record, _, retained = self._three(cell)
        return attacked_balance(record, retained, *self._three(plain))

    def selection_value(self, cell: StoredCell) -> float:
        """What the rule of a cell's sweep says of it, more being better; NaN where it is missing."""
        return selection_value(*self._three(cell))

    def _three(self, cell: StoredCell) -> tuple[Record, Record | None, Record | None]:
        """The record of a cell, and those of its original and retained model."""
        record, source = cell.record, cell.folder.parent
        assert record is not None
        own = record.samples.references
        original = self._records.get((source, own.get("original", "")))
        retained = self._records.get((source, own.get("retained", "")))
        if record.identity.reference:
            if record.identity.requires.start == "retained":
                original, retained = self._original_of.get((source, record.cell)), record
            else:
                original = record
        return record, original, retained


def balance(record: Record, original: Record | None, retained: Record | None) -> Balance:
    """The three numbers of a record.

    All three records hold scores of the same rows, and their resamples draw the same rows.
    """
    if original is None or retained is None:
        none = Estimate.missing(f"the {'original' if original is None else 'retained'} model's record is not here")
        return Balance(none, none, none)
    forgotten, useful = _forgetting(record, original, retained), _utility(record, original)
    reasons = dict.fromkeys(estimate.reason for estimate in (forgotten, useful) if estimate.reason)
    if reasons:
        return Balance(forgotten, useful, Estimate.missing("; ".join(reasons)))
    score = Estimate(
        float(balanced(forgotten.value, useful.value)),
        balanced(forgotten.resamples, useful.resamples),
        n=min(forgotten.n, useful.n),
    )
    return Balance(forgotten, useful, score)


def attacked_balance(
    record: Record, retained: Record | None, plain: Record, plain_original: Record | None, plain_retained: Record | None
) -> Balance:
    """The three numbers under an attack: what the attack brings back, and the utility of the model before it.

    Forgetting is 1 − distance / span, where the distance is from the retained model under the same attack, so that what
    the attack itself teaches or breaks does not count, and the span is the original's distance without an attack.

    Args:
        record, retained: of the model and of the retained model, both attacked.
        plain, plain_original, plain_retained: without the attack.
    """
    before = balance(plain, plain_original, plain_retained)
    if before.score.resamples is None or plain_original is None or plain_retained is None:
        return before
    parts = parts_of(record, "forgetting")
    reason = "the retained model's record under the attack is not here" if retained is None else ""
    attacked = {"": record, **({"retained": retained} if retained else {})}
    reason = reason or _unmeasured("forgetting", parts, attacked)
    if reason or retained is None:
        return Balance(Estimate.missing(reason), before.utility, Estimate.missing(reason))
    four = record, retained, plain_original, plain_retained
    mine, kept, first, last = (_values(some, parts) for some in four)
    value = kept_forgotten(mine, kept, first, last, parts)
    drawn_mine, drawn_kept, drawn_first, drawn_last = (_resampled(some, parts) for some in four)
    drawn = kept_forgotten(drawn_mine, drawn_kept, drawn_first, drawn_last, parts)
    forgotten = Estimate(float(value), drawn, n=_fewest(parts))
    score = Estimate(
        float(balanced(forgotten.value, before.utility.value)),
        balanced(forgotten.resamples, before.utility.resamples),
        n=min(forgotten.n, before.utility.n),
    )
    return Balance(forgotten, before.utility, score)


def selection_value(record: Record, original: Record | None, retained: Record | None) -> float:
    """What the rule of a record's sweep says of it, more being better; NaN where that is missing.

    Reads validation rows, or the reported rows where rows were not divided.
    """
    rule = record.selection or "score"
    if rule != "score":
        value = _held_back(record, rule)
        metric = record.scores[rule]
        if metric.better == "target":
            target = metric.target
            if target == "retained":
                target = _held_back(retained, rule) if retained else math.nan
            return -abs(value - float(target if target is not None else math.nan))
        return -value if metric.better == "lower" else value
    if original is None or retained is None:
        return math.nan
    forget, keep = parts_of(record, "forgetting"), parts_of(record, "utility")
    mine, first, last = (
        {name: _held_back(some, name) for name in (*forget, *keep)} for some in (record, original, retained)
    )
    return float(balanced(forgetting(mine, first, last, forget), utility(mine, first, keep)))


def _held_back(record: Record, name: str) -> float:
    """A metric's value on validation rows, in the record's edition; on all rows where they were not divided."""
    values = record.validation.get(name)
    if not values:
        return record.scores[name].value if name in record.scores and not record.validation else math.nan
    return values.get(record.edition, next(iter(values.values())))


def _forgetting(record: Record, original: Record, retained: Record) -> Estimate:
    parts = parts_of(record, "forgetting")
    reason = _unmeasured("forgetting", parts, {"": record, "original": original, "retained": retained})
    if reason:
        return Estimate.missing(reason)
    mine, first, last = (_resampled(some, parts) for some in (record, original, retained))
    if not told_apart(first, last, parts):
        return Estimate.missing(f"the original and the retained model cannot be told apart on {_fewest(parts)} rows")
    value = forgetting(_values(record, parts), _values(original, parts), _values(retained, parts), parts)
    return Estimate(float(value), forgetting(mine, first, last, parts), n=_fewest(parts))


def _utility(record: Record, original: Record) -> Estimate:
    parts = parts_of(record, "utility")
    reason = _unmeasured("utility", parts, {"": record, "original": original})
    if reason:
        return Estimate.missing(reason)
    value = float(utility(_values(record, parts), _values(original, parts), parts))
    if math.isnan(value):
        return Estimate.missing("the original model has no utility that could be kept")
    resampled = utility(_resampled(record, parts), _resampled(original, parts), parts)
    # A resample in which the original model has no utility either: nothing was kept.
    return Estimate(value, np.nan_to_num(resampled, nan=0.0), n=_fewest(parts))


def _fewest(parts: dict[str, ScoreEntry]) -> int:
    return min(entry.n for entry in parts.values())


def _values(record: Record, parts: Iterable[str]) -> dict[str, float]:
    return {name: record.scores[name].value for name in parts}


def _resampled(record: Record, parts: Iterable[str]) -> dict[str, Floats | None]:
    return {name: record.scores[name].resampled for name in parts}


def parts_of(record: Record, number: Part) -> dict[str, ScoreEntry]:
    """The metrics that are parts of forgetting or of utility, by name."""
    return {name: entry for name, entry in record.scores.items() if entry.part_of == number}


def _unmeasured(number: Part, parts: dict[str, ScoreEntry], records: dict[str, Record]) -> str:
    """Why a part has no value or no resamples in one of the records; empty where all have both."""
    if not parts:
        return f"the benchmark names no metric as part of {number}"
    for role, record in records.items():
        whose = f"the {role} model's " if role else ""
        for name in parts:
            entry = record.scores.get(name)
            if entry is None or math.isnan(entry.value):
                return f"{whose}{name} is missing" + (f": {entry.reason}" if entry and entry.reason else "")
            if entry.resampled is None or np.isnan(entry.resampled).any():
                return f"{whose}{name} has no resamples; {entry.n} rows"
    return ""
