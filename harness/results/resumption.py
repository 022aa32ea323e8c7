"""A study goes on from results that lie elsewhere: its finished cells are taken from a bundle or another run folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..domain import CellStatus
from ..errors import HarnessError
from ..planning.nodes import Node, Plan
from ..plugin.registry import Registry
from ..records.chosen import left_out
from ..records.node_spec import SPEC, CellSpec, write_spec
from ..records.recomputation import benchmark_of, differences, rescored
from ..records.record import SAMPLES
from ..records.results import Results
from ..records.run_folder import LEFT_OUT, RECORD, STATUS, FinishedCell, NodeStatus, cache_folder
from ..running.attempts import Attempts, conclude
from ..running.run_store import Outcome, finished, folder_of, locked, whole_status, write_plan
from ..storage import file_digest, write_sealed
from .opening import opened


@dataclass(frozen=True)
class Resumption:
    """What a study took from a source.

    Args:
        taken: cells that were taken.
        finished: finished cells of the source.
        refused: cells of the study that were not taken, a line each.
    """

    taken: int
    finished: int
    refused: tuple[str, ...]


def resume_from(source: Path, run: Path, plan: Plan, registry: Registry) -> Resumption:
    """Put into a run folder what a source has of a plan's cells and the folder lacks.

    A cell is the plan's where their content keys are one: the same code, data, settings, seed and packages. It is taken
    where its scores recompute from its samples. What the folder has already stays.

    Raises:
        RecordError, BundleError, UsageError: the source cannot be read, or the folder holds another study.
        StorageError: the disk refused a write.
    """
    cache = cache_folder()
    with opened([source]) as (results,), locked(run), Attempts(run) as attempts:
        write_plan(run, plan)
        stored = {cell.key: cell for cell in results.finished}
        taken, refused = 0, []
        for node in plan.cells:
            cell = stored.get(node.key)
            if cell is None or cell.record.content != node.content or finished(run, node, cache) is not None:
                continue
            reason = _fault(cell, results, registry)
            if reason:
                refused.append(f"{node.title} is run again: {reason}")
                continue
            attempts.retire(node)
            _copy(cell, node, attempts.new(node), run)
            taken += 1
        for node in plan.cells:
            if isinstance(node.spec, CellSpec) and finished(run, node, cache) is None:
                _leave_out(node, node.spec, attempts, run)
    return Resumption(taken, len(stored), tuple(refused))


def _fault(cell: FinishedCell, results: Results, registry: Registry) -> str:
    """Why a cell's scores are not those of its samples; empty where they are."""
    try:
        component, _ = benchmark_of(cell.record, registry)
        found = rescored(cell.record, results.samples_of, registry)
    except HarnessError as error:
        return str(error)
    return next(iter(differences(cell.record, found, component)), "")


def _leave_out(node: Node, spec: CellSpec, attempts: Attempts, run: Path) -> None:
    """Note of a cell that a sweep's choice leaves out that it does: no model need be made to find that."""
    folder = run / spec.folder
    if not spec.rivals or any(whole_status(folder / key) is None for key in spec.rivals):
        return
    reason = left_out(folder, spec)
    if reason.startswith(LEFT_OUT):
        attempts.retire(node)
        attempts.note(Outcome(node, CellStatus.NOT_APPLICABLE, reason))


def _copy(cell: FinishedCell, node: Node, attempt: Path, run: Path) -> None:
    """Make a cell's record and samples the node's result."""
    for name in (RECORD, SAMPLES):
        shutil.copyfile(cell.folder / name, attempt / name)
    write_spec(attempt, node.spec)
    status = NodeStatus(
        status=CellStatus.DONE,
        key=node.key,
        content=node.content,
        seconds=sum(cell.record.cost.seconds.get(stage, 0.0) for stage in ("load", "unlearn", "measure", "score")),
        record_sha256=file_digest(attempt / RECORD),
        samples_sha256=file_digest(attempt / SAMPLES),
        spec_sha256=file_digest(attempt / SPEC),
        scoring=node.spec.benchmark.scoring,
    )
    write_sealed(attempt / STATUS, status.model_dump(mode="json"))
    conclude(attempt, folder_of(run, node))
