"""A study goes on from results that lie elsewhere: its finished cells are taken from a bundle or another run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..domain import CellStatus
from ..errors import HarnessError, RecordError, UsageError
from ..planning.nodes import Node, Plan
from ..plugin.registry import Registry
from ..records.chosen import Choices
from ..records.node_spec import SPEC, CellSpec, write_spec
from ..records.recomputation import benchmark_of, differences, rescored
from ..records.record import SAMPLES
from ..records.results import Results
from ..records.run_folder import LEFT_OUT, RECORD, STATUS, FinishedCell, NodeStatus, cache_folder
from ..running.attempts import Attempts, conclude
from ..running.run_store import Outcome, finished, folder_of, has_ended, kept, locked, write_plan
from ..storage import file_digest, read_rows, write_bytes, write_sealed
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
    where its scores recompute from its samples, and its references are the folder's. What the folder has already stays.

    Args:
        source: a bundle, a folder of bundles, or another run folder.

    Raises:
        RecordError, BundleError, UsageError: the source cannot be read, or the folder holds another study.
        StorageError: the disk refused a write.
    """
    if source.exists() and source.resolve() == run.resolve():
        raise UsageError(f"{str(source)!r} is the folder that the study runs in, which goes on by itself: leave it out")
    cache = cache_folder()
    taken, count, others, refused = 0, 0, set(), {}
    planned = {node.id: node.key for node in plan.cells}
    with opened([source]) as sources, locked(run), Attempts(run) as attempts:
        write_plan(run, plan)
        there = {node.key: found.status for node in plan.cells if (found := finished(run, node, cache))}
        for results in sources:
            if results.folder is None:
                raise UsageError(f"{results.source} holds no samples; name a bundle or a run folder")
            stored = {cell.key: cell for cell in results.finished}
            count += len(stored)
            others |= {planned[cell.identity] for cell in results.finished if cell.identity in planned} - stored.keys()
            for node in plan.cells:
                cell = stored.get(node.key)
                if cell is None or cell.record.content != node.content or node.key in there:
                    continue
                reason = _fault(cell, results, registry) or _compares_otherwise(cell, results, run, there)
                if reason:
                    refused[node.key] = f"{node.title} is run again: {reason}"
                    continue
                _take(cell, node, attempts)
                there[node.key] = CellStatus.DONE
                taken += 1
        _leave_out(plan, attempts, run, cache)
    lines = [line for key, line in refused.items() if key not in there]
    other = len(others - there.keys() - refused.keys())
    if other:
        lines.append(
            f"{other} cells have other code, data, settings or packages than the study's here, and are run again"
        )
    return Resumption(taken, count, tuple(lines))


def _compares_otherwise(cell: FinishedCell, results: Results, run: Path, there: Mapping[str, CellStatus]) -> str:
    """Why a cell's scores would not be those of the run folder's samples; empty where they would.

    Args:
        there: how the cells ended that are finished there.
    """
    for role, key in cell.record.samples.references.items():
        if there.get(key) != CellStatus.DONE:
            return f"the {role} model that it compares with is run again"
        mine, theirs = run / CellSpec.folder / key / SAMPLES, cell.folder.with_name(key) / SAMPLES
        # Another zlib may have packed the same rows.
        if file_digest(mine) != file_digest(theirs) and read_rows(mine) != results.samples_of(key):
            return f"the {role} model that it compares with gave other answers in {run}"
    return ""


def _fault(cell: FinishedCell, results: Results, registry: Registry) -> str:
    """Why a cell is no whole result: questions were skipped, or its scores are not those of its samples."""
    if cell.reason:
        return cell.reason
    try:
        component, _ = benchmark_of(cell.record, registry)
        found = rescored(cell.record, results.samples_of, registry)
    except HarnessError as error:
        return str(error)
    if file_digest(cell.folder / SAMPLES) != cell.record.samples.sha256:
        return f"{cell.key}: its samples are not those of its record"
    return next(iter(differences(cell.record, found, component)), "")


def _leave_out(plan: Plan, attempts: Attempts, run: Path, cache: Path) -> None:
    """Note of cells that a sweep's choice leaves out that it does: no model need be made to find that."""
    found = kept(run, plan.nodes, cache)
    choices = Choices(run / CellSpec.folder)
    for node in plan.cells:
        spec = node.spec
        if node.key in found or not isinstance(spec, CellSpec):
            continue
        if not all(has_ended(run / spec.folder, key, found) for key in spec.rivals):
            continue
        try:
            reason = choices.left_out(spec)
        except RecordError:
            # What is damaged is measured again, and the choice made then.
            continue
        if reason.startswith(LEFT_OUT):
            attempts.retire(node)
            attempts.note(Outcome(node, CellStatus.NOT_APPLICABLE, reason))


def _take(cell: FinishedCell, node: Node, attempts: Attempts) -> None:
    """Make a cell's record and samples the node's result."""
    attempt = attempts.new(node)
    for name in (RECORD, SAMPLES):
        write_bytes(attempt / name, (cell.folder / name).read_bytes())
    write_spec(attempt, node.spec)
    status = NodeStatus(
        status=CellStatus.DONE,
        key=node.key,
        content=node.content,
        seconds=sum(cell.record.cost.seconds.values()),
        record_sha256=file_digest(attempt / RECORD),
        samples_sha256=file_digest(attempt / SAMPLES),
        spec_sha256=file_digest(attempt / SPEC),
        scoring=node.spec.benchmark.scoring,
    )
    write_sealed(attempt / STATUS, status.model_dump(mode="json"))
    attempts.retire(node)
    conclude(attempt, folder_of(attempts.run, node))
