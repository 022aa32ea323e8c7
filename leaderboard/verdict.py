"""What a row comes to in words: whether it forgot, whether it kept its utility, and at what cost on which hardware."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from unlearnbench.records.record import Record

from .numbers import COLLAPSED, Number
from .rows import TableRow

WHOLE = 0.995
"""A share that three decimals and a bar of text do not tell from 1."""
DEARER = 1.5
"""The ratio from which answering is said to cost more than the original model's: load on a machine moves it less."""


def verdict(row: TableRow) -> str:
    """What a row comes to; empty for a reference and for a row without numbers.

    Words follow the 95 % intervals: a row forgot as the retained model where its interval reaches 1, and did not forget
    where it reaches 0.
    """
    if row.reference or not row.numbers:
        return ""
    words = [_forgot(row.numbers["forgetting"]), _kept(row.numbers["utility"])]
    name, under = row.robust or ("", None)
    if name and under and under.value < row.numbers["score"].value / 2:
        words.append(f"{name} brings it back")
    return "; ".join(words)


def fails(row: TableRow) -> bool:
    """Whether a row did not forget, or lost its utility."""
    if row.reference or not row.numbers:
        return False
    return _is_nothing(row.numbers["forgetting"]) or row.numbers["utility"].value < COLLAPSED


def _is_nothing(forgetting: Number) -> bool:
    return forgetting.interval is not None and forgetting.interval[0] <= 0


def _forgot(forgetting: Number) -> str:
    if math.isnan(forgetting.value):
        return "forgetting not measured"
    if _is_nothing(forgetting):
        return "did not forget"
    if forgetting.interval and forgetting.interval[1] >= WHOLE:
        return "forgot"
    return f"forgot {100 * forgetting.value:.0f} %"


def _kept(utility: Number) -> str:
    if math.isnan(utility.value):
        return "utility not measured"
    if utility.value < COLLAPSED:
        return "utility lost"
    if utility.interval and utility.interval[1] >= WHOLE:
        return "utility kept"
    return f"utility {100 * utility.value:.0f} %"


def hardware(record: Record) -> str:
    """The device that the cell ran on: a GPU by its name, or the processor."""
    device = str(record.provenance["device"])
    if device != "cpu":
        return device
    return str(record.provenance["machine"].get("processor") or "CPU")


def answering(row: TableRow, references: Sequence[TableRow]) -> float | None:
    """How much longer the row's models took to answer than the original models of the same runs and seeds.

    Time of scoring the same answers on a device; on a CPU, which other work may share, processor time of the whole
    measurement. None where a time is missing.
    """
    originals = {
        (cell.folder.parent, cell.identity.seed): _measuring(cell.record)
        for reference in references
        for cell in reference.scored
        if reference.method == "original" and cell.record
    }
    ratios = [
        _measuring(cell.record) / originals.get((cell.folder.parent, cell.identity.seed), math.nan)
        for cell in row.scored
        if cell.record
    ]
    ratio = fmean(ratios) if ratios else math.nan
    return None if math.isnan(ratio) else ratio


def _measuring(record: Record) -> float:
    """Seconds of work behind the measurement, as far as other work does not lengthen them; NaN where it took none."""
    on_cpu = record.provenance["device"] == "cpu"
    seconds = record.cost.cpu_seconds.get("measure") if on_cpu else record.cost.seconds.get("scoring")
    return seconds or math.nan
