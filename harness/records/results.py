"""Results as values: the cells of a run folder, a bundle or printed records."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

from ..domain import NUMBERS
from ..errors import RecordError
from ..plugin.registry import Registry
from ..storage import file_digest, read_rows
from .badge import Badge
from .manifest import Manifest
from .meta_evaluation import MetaEvaluation
from .record import SAMPLES
from .run_folder import FinishedCell, StoredCell

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Results:
    """Cells of one source.

    Args:
        study: tables of the study that made them; empty where it is unknown.
        manifest: the manifest of a bundle; None for another source.
        folder: the folder of the cells' folders; None where there are no samples.
        badge: the result of recomputing a bundle's scores, where requested.
        fault: why the source could not be read.
        read_rows: reads a sample file of this source.
        meta: a meta-evaluation, which has no cells; None for any other source.
    """

    source: str
    cells: tuple[StoredCell, ...]
    study: Mapping[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    folder: Path | None = None
    badge: Badge | None = None
    fault: str = ""
    read_rows: Callable[[Path], list[dict[str, Any]]] = read_rows
    meta: MetaEvaluation | None = None

    @property
    def finished(self) -> tuple[FinishedCell, ...]:
        """The cells that have a record."""
        return tuple(cell for cell in self.cells if isinstance(cell, FinishedCell))

    def samples_of(self, key: str) -> list[dict[str, Any]]:
        """The rows of a cell's sample file. Raises RecordError where there is none, or it is damaged."""
        if self.folder is None:
            raise RecordError(f"{self.source} holds records without samples")
        path = self.folder / "cells" / key / SAMPLES
        rows = self.read_rows(path)
        known = {cell.record.samples.sha256 for cell in self.finished if cell.key == key}
        # ``verify`` checks the samples of bundles.
        if self.manifest is None and known and file_digest(path) not in known:
            raise RecordError(f"{path} is damaged; run the study again, which measures this cell again")
        return rows


class Reporter(Protocol):
    """Shows results: as pages, a table or a message. A plugin offers one with ``ReporterSpec``."""

    def __call__(self, results: Sequence[Results], out: Path, registry: Registry, **parameters: Any) -> Path:
        """Write into the folder ``out`` and return the file to open first.

        ``registry`` holds the specs of installed methods and benchmarks; ``parameters`` has a value for each of the
        spec's parameters.
        """
        ...


class ResultSet(Sequence[Results]):
    """Open results: a sequence with one ``Results`` for each source.

    Bundles stay unpacked until the set is closed, by a context manager or by garbage collection.
    """

    def __init__(self, results: tuple[Results, ...], unpacked: ExitStack) -> None:
        self._results = results
        self._close = weakref.finalize(self, unpacked.close)

    @overload
    def __getitem__(self, place: int) -> Results: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Results, ...]: ...
    def __getitem__(self, place: int | slice) -> Results | tuple[Results, ...]:
        return self._results[place]

    def __len__(self) -> int:
        return len(self._results)

    def __enter__(self) -> ResultSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove unpacked bundles; records that were read stay valid."""
        self._close()

    @property
    def cells(self) -> list[StoredCell]:
        """The cells of all sources."""
        return [cell for results in self for cell in results.cells]

    @property
    def finished(self) -> list[FinishedCell]:
        """The cells that have a record."""
        return [cell for results in self for cell in results.finished]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A flat row for every cell: its pairing, its status, its score, and the value of every metric."""
        # Planning reads results too, and need not wait for numpy and scipy.
        from .balance import References

        for results in self:
            references = References(results.cells)
            for cell in results.cells:
                row = {"source": results.source, **asdict(cell.identity), "status": str(cell.status)}
                if isinstance(cell, FinishedCell):
                    found = references.balance(cell)
                    row |= {"edition": cell.record.edition}
                    row |= {name: getattr(found, name).value for name in NUMBERS}
                    row |= {name: entry.value for name, entry in cell.record.scores.items()}
                yield row

    def scores(self) -> Iterator[dict[str, Any]]:
        """A flat row for every score of every edition, with its interval and the reason where it is missing."""
        for cell in self.finished:
            for metric, entry in cell.record.scores.items():
                for edition, score in entry.editions.items():
                    low, high = score.interval or (None, None)
                    yield {
                        **asdict(cell.identity),
                        "metric": metric,
                        "edition": edition,
                        "value": score.value,
                        "low": low,
                        "high": high,
                        "n": score.n,
                        "passes": score.passes,
                        "reason": score.reason,
                    }

    def to_frame(self, long: bool = False) -> pandas.DataFrame:
        """The results as a pandas frame.

        Args:
            long: a row for every score (``scores``) in place of a row for every cell (``rows``).
        """
        import pandas

        return pandas.DataFrame(list(self.scores() if long else self.rows()))

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, na_rep="–", float_format="{:.4g}".format))
