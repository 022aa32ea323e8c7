"""Writes a run folder: one process at a time, the plan, the study; and says which nodes are finished.

runs/<name>/study.toml  plan.json  models/<key>/  cells/<key>/{spec,status,record}.json samples.jsonl.gz log.txt

While a node runs it writes into a folder of its own, which becomes ``cells/<key>`` in one step once it has ended
(``attempts``). So what stands there is of one attempt, and whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from ..data.model_folder import prepared_folder, reference_facts
from ..domain import CellStatus
from ..errors import RecordError, StorageError, UsageError
from ..planning.nodes import Node, Plan
from ..records.chosen import Choices
from ..records.claim import Claim, claimed
from ..records.node_spec import SPEC, CellSpec
from ..records.record import SAMPLES
from ..records.run_folder import (
    PLAN,
    RECORD,
    STATUS,
    STUDY,
    NodeStatus,
    StoredNode,
    StoredPlan,
    read_plan,
    read_status,
)
from ..storage import as_storage_error, digest, file_digest, write_bytes, write_sealed


@dataclass(frozen=True)
class Outcome:
    """How a node ended; ``cached`` where an earlier run had done it."""

    node: Node
    status: CellStatus
    reason: str = ""
    seconds: float = 0.0
    cached: bool = False
    exit_code: int = 1

    @classmethod
    def of(cls, node: Node, status: NodeStatus, cached: bool = False) -> Outcome:
        """The outcome that a stored status tells."""
        return cls(node, status.status, status.reason, status.seconds, cached, status.exit_code)


def folder_of(run: Path, node: Node) -> Path:
    """Where a node lives in the run."""
    return run.joinpath(node.spec.folder, node.key)


@contextmanager
def locked(run: Path) -> Iterator[Claim]:
    """One runner at a time. Raises Held while another process runs in the folder."""
    refusal = "{holder} is running the study in " + str(run) + "; wait for it or choose --out"
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        translated = as_storage_error(error, run)
        if not isinstance(translated, StorageError):
            raise UsageError(f"cannot use {run} as a run folder: {error.strerror}; choose another --out") from error
        raise translated from error
    with claimed(run / ".runner", wait=False, refusal=refusal) as claim:
        yield claim


def write_plan(run: Path, plan: Plan) -> None:
    """Store the plan, and the study with all options applied.

    Raises:
        UsageError: the folder holds another study.
        RecordError: its plan is broken or of a newer schema.
    """
    study = plan.study
    stored = read_plan(run) if (run / PLAN).exists() else None
    if stored and stored.study != study.name:
        raise UsageError(f"{run} holds the study {stored.study!r}, not {study.name!r}; choose another --out")
    written = StoredPlan(
        study=study.name,
        edition=study.edition,
        raw=dict(study.raw),
        plugins=list(study.plugins),
        study_sha256=digest(study.raw),
        nodes=[
            StoredNode(
                key=node.key,
                kind=node.spec.kind,
                title=node.title,
                needs=list(node.needs),
                content=node.content,
                identity=node.id,
            )
            for node in plan.nodes
        ],
    )
    if written != stored:
        write_sealed(run / PLAN, written.model_dump(mode="json"))
    write_bytes(run / STUDY, tomli_w.dumps(study.raw).encode())


def whole_status(folder: Path) -> NodeStatus | None:
    """How the node in a folder ended; None where it has not, or its status is damaged."""
    try:
        return read_status(folder)
    except RecordError:
        return None


def write_status(attempt: Path, outcome: Outcome) -> None:
    """Write a status for an attempt at a node that could not write its own."""
    status = NodeStatus(
        status=outcome.status,
        reason=outcome.reason,
        exit_code=outcome.exit_code,
        key=outcome.node.key,
        content=outcome.node.content,
        seconds=round(outcome.seconds, 3),
    )
    write_sealed(attempt / STATUS, status.model_dump(mode="json"))


def kept(run: Path, nodes: Sequence[Node], cache: Path) -> dict[str, Outcome]:
    """The stored outcomes of a plan's nodes, by key.

    A cell that was not run for what had come of others stays so while nothing else comes of them. A reference model
    that is gone is not made again for cells that have all been measured; a damaged one is.

    Args:
        nodes: those among them that others come after first, as in a plan.
    """
    found: dict[str, Outcome] = {}
    choices = Choices(run / CellSpec.folder)
    for node in nodes:
        outcome = finished(run, node, cache) or _still_not_run(run, node, found, choices)
        if outcome:
            found[node.key] = outcome
    cells = [node.spec for node in nodes if isinstance(node.spec, CellSpec) and node.key not in found]
    wanted = {key for cell in cells for key in cell.models.values()}
    unneeded = [
        node
        for node in nodes
        if not isinstance(node.spec, CellSpec)
        and node.key not in {*found, *wanted}
        and not prepared_folder(cache, node.key).exists()
    ]
    return {**found, **{node.key: Outcome(node, CellStatus.DONE, cached=True) for node in unneeded}}


def has_ended(cells: Path, key: str, found: Mapping[str, Outcome]) -> bool:
    """Whether a cell is kept, or diverged: it is tried again, but nothing waits for another end.

    Args:
        cells: the folder of the cells' folders.
        found: what is kept.
    """
    status = None if key in found else whole_status(cells / key)
    return key in found or (status is not None and status.status == CellStatus.DIVERGED)


def _still_not_run(run: Path, node: Node, found: Mapping[str, Outcome], choices: Choices) -> Outcome | None:
    """The stored outcome of a cell that was not run for what had come of others, if that holds."""
    spec = node.spec
    status = whole_status(folder_of(run, node))
    if not isinstance(spec, CellSpec) or status is None or not status.is_note or status.content != node.content:
        return None
    if not all(has_ended(run / spec.folder, key, found) for key in (*spec.references.values(), *node.after)):
        return None
    needed = [found[key].status for key in spec.references.values() if key in found]
    try:
        still = CellStatus.NOT_APPLICABLE in needed or choices.left_out(spec) == status.reason
    except RecordError:
        return None
    return Outcome.of(node, status, cached=True) if still else None


def finished(run: Path, node: Node, cache: Path, folder: Path | None = None) -> Outcome | None:
    """The stored outcome of a node, if it is done with the same content and what it left is still there.

    That a cell was not run for what had come of others is no such outcome (``kept``).

    Args:
        folder: where the result lies, when it is not in its place.
    """
    try:
        if not isinstance(node.spec, CellSpec):
            reference_facts(prepared_folder(cache, node.key))
            return Outcome(node, CellStatus.DONE, cached=True)
        folder = folder or folder_of(run, node)
        status = read_status(folder)
        stale = status is None or not status.status.settled or status.content != node.content or status.is_note
    except RecordError:
        # What is damaged is made again; nothing else is lost.
        return None
    if stale or status is None or (status.status == CellStatus.DONE and not _current(folder, status, node.spec)):
        return None
    return Outcome.of(node, status, cached=True)


def _current(folder: Path, status: NodeStatus, spec: CellSpec) -> bool:
    """Whether a finished cell is complete, whole, and scored by the code that is installed.

    Scores of other code are made anew by ``rescore``, from the same samples.
    """
    files = {RECORD: status.record_sha256, SAMPLES: status.samples_sha256, SPEC: status.spec_sha256}
    if status.incomplete or status.scoring != spec.benchmark.scoring:
        return False
    try:
        return all(file_digest(folder / name) == expected for name, expected in files.items())
    except OSError:
        return False
