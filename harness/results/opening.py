"""Opens results alike: run folders, bundles, and records that ``results --json`` printed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..domain import CellStatus
from ..errors import HarnessError, RecordError, UsageError
from ..records.meta_evaluation import META, read_meta_evaluation
from ..records.record import Record
from ..records.results import Results
from ..records.run_folder import PLAN, FinishedCell, StoredCell, read_own_study, stored_cells
from .bundle_reader import bundled_rows, unpacked


@contextmanager
def opened(paths: Sequence[str | Path], edition: str = "", lenient: bool = False) -> Iterator[list[Results]]:
    """The results at each path: a run folder, a bundle, a folder of bundles, or a JSON file of records.

    Bundles stay unpacked while the context lasts.

    Args:
        lenient: an unreadable bundle in a folder of bundles gives a ``fault`` and no cells instead of an error.

    Raises:
        RecordError, BundleError: a source is broken, or holds no results.
    """
    with ExitStack() as stack:
        results = []
        for path, of_folder in _each(paths):
            try:
                results.append(stack.enter_context(_opened(path, edition)))
            except HarnessError as error:
                if not (lenient and of_folder):
                    raise
                results.append(Results(str(path), (), fault=str(error).replace(str(path), path.name)))
        yield results


def is_empty(path: Path) -> bool:
    """Whether a path is a folder in which nothing of ours lies: no run, no bundle, no meta-evaluation."""
    return path.is_dir() and not any((path / name).exists() for name in (PLAN, META)) and not any(path.glob("*.zip"))


def _each(paths: Sequence[str | Path]) -> Iterator[tuple[Path, bool]]:
    """Yield every source, and whether it lies in a folder of bundles."""
    for path in map(Path, paths):
        bundles = sorted(path.glob("*.zip")) if path.is_dir() and not (path / PLAN).exists() else []
        yield from ((bundle, True) for bundle in bundles)
        if not bundles:
            yield path, False


@contextmanager
def _opened(path: Path, edition: str) -> Iterator[Results]:
    if (path / META).is_file() and not (path / PLAN).exists():
        yield Results(str(path), (), meta=read_meta_evaluation(path))
    elif path.is_dir():
        yield Results(str(path), tuple(stored_cells(path, edition)), read_own_study(path), folder=path)
    elif path.suffix == ".json":
        printed, gates = _printed(path, edition)
        yield Results(str(path), tuple(printed), {"gates": gates})
    elif path.is_file():
        with tempfile.TemporaryDirectory(prefix="unlearnbench-") as folder:
            bundle = unpacked(path, Path(folder))
            cells = tuple(bundle.cells(edition))
            yield Results(str(path), cells, bundle.study(), bundle.manifest, Path(folder), read_rows=bundled_rows)
    else:
        raise UsageError(f"{str(path)!r} does not exist; name a run folder, a bundle, or records in JSON")


def _printed(path: Path, edition: str) -> tuple[list[StoredCell], list[Any]]:
    """Cells of the records that ``results --json`` or ``run --json`` printed, and the gates of their study."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        records = [Record.model_validate(entry) for entry in content["records"]]
        gates = list(content.get("gates", []))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        text = " ".join(str(error).split())[:200]
        raise RecordError(f"{path} holds no records ({text}); make it with: unlearnbench results RUN --json") from error
    shown = [record.in_edition(edition or record.edition) for record in records]
    cells: list[StoredCell] = [
        FinishedCell(record.cell, record.identity.cell, CellStatus.DONE, "", path.parent / record.cell, record)
        for record in shown
    ]
    return cells, gates
