"""Chooses, of the settings that a sweep tried, the one that stands for its method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from unlearnbench.metrics.balance import hypervolume
from unlearnbench.records.balance import References
from unlearnbench.records.chosen import chosen_place

from .numbers import Number, with_interval
from .rows import Sweep, TableRow


def chosen(rows: Iterable[TableRow], references: References) -> list[TableRow]:
    """One row for each sweep of a method, and every row outside a sweep as it is.

    The chosen setting has the best mean over runs of its rule's metric on validation rows (on the reported rows where
    these are not divided). A setting with a failed run is not chosen beside one without: while a study runs, the best
    so far of those measured in most runs stands for its method.
    """
    sweeps: dict[tuple[object, ...], list[TableRow]] = {}
    for number, row in enumerate(rows):
        source = row.cells[0].folder.parent
        # What is not part of a sweep stands for itself.
        sweeps.setdefault((row.method, source) if row.setting else (number,), []).append(row)
    return [_best(settings, references) if settings[0].setting else settings[0] for settings in sweeps.values()]


def _best(settings: Sequence[TableRow], references: References) -> TableRow:
    scored = [row for row in settings if row.record] or settings
    best = scored[chosen_place([_values(row, references) for row in scored])]
    records = [cell.record for row in settings for cell in row.cells if cell.record]
    sweep = Sweep(
        tuple(settings),
        records[0].selection if records else "",
        bool(records) and bool(records[0].validation),
        any(len(row.cells) < len(best.cells) for row in settings),
        sum(record.cost.seconds.get("unlearn", 0.0) for record in records),
        _area(settings),
    )
    return replace(best, sweep=sweep)


def _values(row: TableRow, references: References) -> list[float]:
    """What the rule says of a setting in the runs in which it was measured, more being better."""
    return [references.selection_value(cell) for cell in row.cells if cell.record]


def _area(settings: Sequence[TableRow]) -> Number:
    """The area under the trade-off curve of the settings that have a score."""
    scored = [row.numbers for row in settings if row.numbers and not math.isnan(row.numbers["score"].value)]
    if not scored:
        return Number(math.nan, "no setting has a score")
    value = hypervolume(
        [numbers["utility"].value for numbers in scored], [numbers["forgetting"].value for numbers in scored]
    )
    resamples = hypervolume(
        np.asarray([numbers["utility"].resamples for numbers in scored]),
        np.asarray([numbers["forgetting"].resamples for numbers in scored]),
    )
    n = min(numbers["score"].n for numbers in scored)
    return with_interval(Number(float(value), resamples=resamples, n=n))
