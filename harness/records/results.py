"""Results of one source as values: what was read of a run folder, a bundle or printed records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..storage import file_digest, read_rows
from .badge import Badge
from .manifest import Manifest
from .record import SAMPLES
from .run_folder import StoredCell


@dataclass(frozen=True)
class Results:
    """Cells of one source.

    Args:
        study: the study that made them, as tables; empty where it is not known.
        manifest: what a bundle says of itself; None where the source is no bundle.
        folder: where cells have their folders; None where there are no samples.
        badge: what recomputing a bundle's scores gave, where that was asked for.
        fault: why nothing could be read of it.
        read_rows: how a sample file of this source is read.
    """

    source: str
    cells: tuple[StoredCell, ...]
    study: Mapping[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    folder: Path | None = None
    badge: Badge | None = None
    fault: str = ""
    read_rows: Callable[[Path], list[dict[str, Any]]] = read_rows

    def samples_of(self, key: str) -> list[dict[str, Any]]:
        """The rows of a cell's sample file. Raises RecordError where there is none, or it is damaged."""
        if self.folder is None:
            raise RecordError(f"{self.source} holds records without samples")
        path = self.folder / "cells" / key / SAMPLES
        rows = self.read_rows(path)
        known = {cell.record.samples.sha256 for cell in self.cells if cell.key == key and cell.record}
        # What a bundle's samples are worth is for ``verify`` to say.
        if self.manifest is None and known and file_digest(path) not in known:
            raise RecordError(f"{path} is damaged; run the study again, which measures this cell again")
        return rows
