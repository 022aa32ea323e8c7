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
DEARER = 1.75
"""The ratio from which answering is said to cost more than the original model's: load on a machine moved it by 1.6."""


def verdict(row: TableRow) -> str:
    """What a row comes to; empty for a reference and for a row without numbers.

    Words follow the 95 % intervals: a row forgot as the retained model where its interval reaches 1 and lies above a
    half, and did not forget where it reaches 0.
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


def _is_whole(share: Number) -> bool:
    """Whether a share is not told from 1, by an interval that is not so wide that it says nothing."""
    return share.interval is not None and share.interval[0] >= COLLAPSED and share.interval[1] >= WHOLE


def _forgot(forgetting: Number) -> str:
    if math.isnan(forgetting.value):
        return "forgetting not measured"
    if _is_nothing(forgetting):
        return "did not forget"
    if _is_whole(forgetting):
        return "forgot"
    return f"forgot {100 * forgetting.value:.0f} %"


def _kept(utility: Number) -> str:
    if math.isnan(utility.value):
        return "utility not measured"
    if utility.value < COLLAPSED:
        return "utility lost"
    if _is_whole(utility):
        return "utility kept"
    return f"utility {100 * utility.value:.0f} %"


def _hardware(record: Record) -> str:
    """The device that the cell ran on: a GPU by its name, or the processor."""
    device = str(record.provenance["device"])
    if device != "cpu":
        return device
    return str(record.provenance["machine"].get("processor") or "CPU")


def unlearning_time(record: Record) -> str:
    """How long unlearning took: ``12.3 s``, ``23 min``; on a CPU in processor time."""
    spent = _spent(record, "unlearn", "unlearn")
    seconds = 0.0 if math.isnan(spent) else spent
    if seconds < 600:
        return f"{seconds:.{0 if seconds >= 100 else 1}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def unlearning_cost(record: Record) -> str:
    """How long unlearning took, of what and on what."""
    of_what = " of processor time" if _on_cpu(record) else ""
    return f"{unlearning_time(record)}{of_what} on {_hardware(record)[:40]}"


def answering(row: TableRow, references: Sequence[TableRow]) -> float | None:
    """How much longer the row's models took to answer than the original models of the same runs and seeds.

    Time of scoring the same answers; on a CPU processor time of the whole measurement. None where a time is missing.
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
    """Seconds of answering: of scoring the same answers, on a CPU of the whole measurement; NaN where it took none."""
    return _spent(record, "scoring", "measure")


def _on_cpu(record: Record) -> bool:
    return record.provenance["device"] == "cpu" and bool(record.cost.cpu_seconds)


def _spent(record: Record, on_device: str, on_cpu: str) -> float:
    """Seconds of a stage, as far as other work does not lengthen them; NaN where it took none.

    On a device of its own they are the stage's; on a CPU, which other work may share, the processor's.
    """
    cost = record.cost
    seconds = cost.cpu_seconds.get(on_cpu) if _on_cpu(record) else cost.seconds.get(on_device)
    return seconds or math.nan
