"""What attacks bring back: forgetting and score of a row under each attack, and the worst of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.domain import CellId, CellStatus
from unlearnbench.records.balance import References
from unlearnbench.records.run_folder import StoredCell

from .numbers import Number, numbers_of


@dataclass(frozen=True)
class Attacked:
    """A row under one attack: the numbers, or why they are missing.

    Args:
        leaking: share of all answers that hold half of the truth at least; None without answers.
        cells: one for each run of the row.
    """

    attack: str
    forgetting: Number
    score: Number
    leaking: float | None
    cells: tuple[StoredCell, ...]


class Attacks:
    """The attacked cells of one table, by the cell that each attacks."""

    def __init__(self, cells: Iterable[StoredCell]) -> None:
        self._of: dict[tuple[Path, CellId], dict[str, StoredCell]] = {}
        for cell in cells:
            if cell.identity.attack:
                place = (cell.folder.parent, cell.identity.plain)
                self._of.setdefault(place, {})[cell.identity.attack] = cell

    def of(self, cells: Sequence[StoredCell], references: References) -> dict[str, Attacked]:
        """The attacks on a row, by name, from the cells behind its values."""
        mine = [self._of.get((cell.folder.parent, cell.identity), {}) for cell in cells]
        names = dict.fromkeys(name for found in mine for name in found)
        return {name: _attacked(name, [found[name] for found in mine if name in found], references) for name in names}


def _attacked(name: str, cells: Sequence[StoredCell], references: References) -> Attacked:
    unscored = next((cell for cell in cells if cell.record is None), None)
    if unscored:
        missing = Number(math.nan, unscored.ending)
        return Attacked(name, missing, missing, None, tuple(cells))
    found = numbers_of(cells, references)
    facts = [cell.record.attack for cell in cells if cell.record and cell.record.attack]
    shares = [fact.leaking for fact in facts if fact.leaking is not None]
    leaking = sum(shares) / len(shares) if shares else None
    return Attacked(name, found["forgetting"], found["score"], leaking, tuple(cells))


def worst_of(attacks: Mapping[str, Attacked], plain: Number) -> tuple[str, Number] | None:
    """The attack under which the score is least, and that score; the plain score where no attack lowers it.

    None without a measured attack. The name is empty where the plain score is least.
    """
    measured = {name: attacked.score for name, attacked in attacks.items() if not math.isnan(attacked.score.value)}
    if not measured or math.isnan(plain.value):
        return None
    name = min(measured, key=lambda attack: measured[attack].value)
    return (name, measured[name]) if measured[name].value < plain.value else ("", plain)


def unattacked(cells: Iterable[StoredCell]) -> list[StoredCell]:
    """The cells that are no attack on another."""
    return [cell for cell in cells if not cell.identity.attack]


def unexpected(cell: StoredCell) -> bool:
    """Whether a cell without a record is news: not yet to be run, nor an attack that a sweep left out."""
    not_attacked = cell.identity.attack and cell.status == CellStatus.NOT_APPLICABLE
    return not (not_attacked or cell.left_out or cell.status == CellStatus.PENDING)
