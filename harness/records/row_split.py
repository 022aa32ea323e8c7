"""Divides what a model was measured on into validation rows and reported rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..domain import Measurement, Split


@dataclass(frozen=True)
class Divided:
    """The reported rows, and the validation rows; None, with a reason, where a benchmark is too small for both."""

    reported: Measurement
    validation: Measurement | None
    reason: str = ""


def divided(measured: Measurement, split: Split | None) -> Divided:
    """Divide every part of a measurement: its clusters go to either side in turn, the first to validation.

    The same rows divide in the same way for every model, since a cluster's side depends on its order alone.
    """
    if split is None:
        return Divided(measured, None)
    parts: dict[str, dict[str, list[int]]] = {}
    for place, row in enumerate(measured.rows):
        part = str(row.get("part", ""))
        cluster = str(row.get(split.by.get(part, ""), "") or f"row {place}")
        parts.setdefault(part, {}).setdefault(cluster, []).append(place)
    validation: set[int] = set()
    both: set[int] = set()
    for part, clusters in parts.items():
        size = sum(map(len, clusters.values()))
        if size == 1:
            # One row cannot be divided: it says, for example, why a task was not asked.
            both.update(*clusters.values())
            continue
        chosen = [place for places in list(clusters.values())[::2] for place in places]
        if len(clusters) < 4 or min(len(chosen), size - len(chosen)) < split.least:
            return Divided(measured, None, f"{part} has {size} rows in {len(clusters)} clusters, too few to divide")
        validation.update(chosen)
    rows = list(enumerate(measured.rows))
    reported = tuple(row for place, row in rows if place not in validation)
    held_back = tuple(row for place, row in rows if place in validation or place in both)
    return Divided(replace(measured, rows=reported), replace(measured, rows=held_back))
