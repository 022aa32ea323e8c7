"""Attempts at nodes: each writes into a folder of its own and becomes the node's result in one step; the first wins.

An attempt lies at ``cells/KEY~TOKEN.N`` beside its result ``cells/KEY``; ``workers/TOKEN`` is the heartbeat of the
process that started it, by which others tell an attempt that is under way from one that a dead process left.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ..planning.nodes import Node
from ..records.claim import Heartbeat, living
from ..records.node_spec import CellSpec, ReferenceSpec, write_spec
from ..storage import as_storage_error
from .run_store import Outcome, folder_of, write_status

WORKERS = "workers"


class Attempts:
    """The attempts that this process makes in a run folder; use as a context manager."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._token = secrets.token_hex(4)
        self._made = 0
        self._heartbeat = Heartbeat(run / WORKERS / self._token)

    def __enter__(self) -> Attempts:
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeat.__exit__()
        with suppress(OSError):
            self._heartbeat.path.parent.rmdir()

    def new(self, node: Node) -> Path:
        """A folder for one attempt at a node. Raises StorageError where it cannot be."""
        folder = self._beside(folder_of(self.run, node))
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise as_storage_error(error, folder) from error
        return folder

    def retire(self, node: Node, is_wanted: Callable[[Path], bool] = lambda folder: False) -> None:
        """Remove a node's earlier result, in one step for whoever looks.

        Args:
            is_wanted: whether what was found there is a result to be kept after all: another process may have put it
                there since the caller looked.
        """
        result = folder_of(self.run, node)
        gone = self._beside(result)
        try:
            os.rename(result, gone)
        except FileNotFoundError:
            return
        except OSError as error:
            raise as_storage_error(error, result) from error
        if not is_wanted(gone) or not conclude(gone, result):
            shutil.rmtree(gone, ignore_errors=True)

    def note(self, outcome: Outcome) -> None:
        """Make an outcome the result of a node that is not run."""
        node = outcome.node
        attempt = self.new(node)
        write_spec(attempt, node.spec)
        write_status(attempt, outcome)
        conclude(attempt, folder_of(self.run, node))

    def _beside(self, result: Path) -> Path:
        self._made += 1
        # No key has a tilde.
        return result.parent / f"{result.name}~{self._token}.{self._made}"


def conclude(attempt: Path, result: Path) -> bool:
    """Make an attempt's folder the node's result; False where another attempt was first, whose result stays.

    A folder is renamed in one step, on network file systems too, and never onto one that holds something.
    """
    try:
        os.rename(attempt, result)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise as_storage_error(error, result) from error
        shutil.rmtree(attempt, ignore_errors=True)
        return False
    return True


def orphans(run: Path, nodes: Iterable[Node]) -> list[Path]:
    """The attempts at nodes whose process is dead; living ones are left out."""
    keys = {folder_of(run, node) for node in nodes}
    found: dict[Path, list[Path]] = {}
    for kind in (CellSpec.folder, ReferenceSpec.folder):
        for folder in (run / kind).glob("*~*"):
            name, _, rest = folder.name.rpartition("~")
            if folder.with_name(name) in keys:
                found.setdefault(run / WORKERS / rest.partition(".")[0], []).append(folder)
    alive = living(found)
    return [folder for heartbeat, folders in found.items() if heartbeat not in alive for folder in folders]


def attempts_at(run: Path, node: Node) -> list[Path]:
    """The folders of all attempts at a node that have not become its result, the oldest first."""
    found = folder_of(run, node).parent.glob(f"{node.key}~*")
    return sorted(found, key=lambda folder: folder.stat().st_mtime)


def remove_orphans(run: Path, nodes: Iterable[Node]) -> None:
    """Remove what dead processes left of attempts at nodes that never ended."""
    for folder in orphans(run, nodes):
        shutil.rmtree(folder, ignore_errors=True)
