"""Reads a run folder: its plan and study, and the status and record of every cell."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from ..domain import CellId, CellStatus
from ..errors import RecordError
from ..storage import digest, file_digest, read_sealed, read_toml
from .record import Record, read_record
from .schema import Strict, first_fault

PLAN_SCHEMA = 1
PLAN = "plan.json"
STUDY = "study.toml"
STATUS = "status.json"
RECORD = "record.json"
LEFT = "left"
"""The folder of the weights that a cell leaves for those that attack it, and that these have not yet used."""
LEFT_OUT = "the sweep chooses "
"""How the reason begins for which a cell with another setting is not run."""


class StoredNode(BaseModel):
    """A node of a stored plan."""

    key: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+=-]*$")
    kind: Literal["model", "cell"]
    title: str
    needs: list[str]
    content: str
    identity: CellId


class StoredPlan(BaseModel):
    """The content of ``plan.json``."""

    schema_version: int = PLAN_SCHEMA
    study: str
    edition: Literal["paper", "as-released"] = "paper"
    raw: dict[str, Any] = {}
    """The study's tables."""
    plugins: list[str] = []
    """Plugin files with which the study was run."""
    study_sha256: str = ""
    nodes: list[StoredNode]


class NodeStatus(Strict):
    """How a node ended: the content of ``status.json``.

    Args:
        content: the content key of the spec that ran.
        record_sha256, samples_sha256, spec_sha256: hashes of a finished cell's files.
        scoring: hash of the code that scored.
        incomplete: why the next run of the study repeats the cell.
        exit_code: exit code that this node gives the command that runs the study.
        facts: facts about a prepared model.
    """

    status: CellStatus
    reason: str = ""
    error: str = ""
    exit_code: int = 1
    key: str = ""
    content: str = ""
    started: float = 0.0
    seconds: float = 0.0
    record_sha256: str = ""
    samples_sha256: str = ""
    spec_sha256: str = ""
    scoring: str = ""
    incomplete: str = ""
    facts: dict[str, Any] = {}

    @property
    def is_note(self) -> bool:
        """Whether a node was not run for what had come of others, which may come to something else."""
        return self.status == CellStatus.NOT_APPLICABLE and not self.spec_sha256


@dataclass(frozen=True)
class StoredCell:
    """A planned cell and the content of its folder."""

    key: str
    identity: CellId
    status: CellStatus
    reason: str
    folder: Path
    record: Record | None = None

    @property
    def left_out(self) -> bool:
        """Whether the cell was not run because a sweep chose another setting."""
        return self.status == CellStatus.NOT_APPLICABLE and self.reason.startswith(LEFT_OUT)

    @property
    def ending(self) -> str:
        """How the cell ended, and why where there is a reason."""
        return f"{self.status}: {self.reason}" if self.reason else str(self.status)


@dataclass(frozen=True)
class FinishedCell(StoredCell):
    """A cell whose status is done; it has a record."""

    record: Record


def cache_folder() -> Path:
    """The folder of prepared reference models: ``$UNLEARNBENCH_CACHE``, or one in the user's cache."""
    named = os.environ.get("UNLEARNBENCH_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "unlearnbench"


def place_of_run(name: str, out: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a run: ``out``, or one of the study's name in ``runs``."""
    return Path(out) if out else Path("runs") / name


def read_plan(run: Path) -> StoredPlan:
    """The stored plan. Raises RecordError where it is absent, broken or of a newer schema."""
    path = run / PLAN
    remedy = "is this a run folder? if its plan was damaged, delete plan.json and run the study again"
    # The seal first: a flipped bit in the version's digit is damage, and no newer version.
    plan = read_sealed(path, remedy)
    version = plan.get("schema_version")
    if isinstance(version, int) and version > PLAN_SCHEMA:
        raise RecordError(f"{path} has plan schema {version}; this unlearnbench reads up to {PLAN_SCHEMA}: upgrade it")
    try:
        return StoredPlan.model_validate(plan)
    except ValidationError as error:
        raise RecordError(f"{path} is not a plan ({first_fault(error)}); {remedy}") from error


def read_own_study(run: Path) -> dict[str, Any]:
    """The study stored in a run folder; empty where it holds none.

    Raises:
        RecordError: the stored study is not the one that was run.
    """
    path = run / STUDY
    if not path.is_file():
        return {}
    remedy = "run the study again, which writes it anew"
    try:
        raw = read_toml(path)
    except (ValueError, OSError) as error:
        raise RecordError(f"{path} is not TOML ({error}); {remedy}") from error
    if digest(raw) != read_plan(run).study_sha256:
        raise RecordError(f"{path} is not the study that was run; {remedy}")
    return raw


def stored_cells(run: Path, edition: str = "") -> list[StoredCell]:
    """Every cell of the run's plan; finished ones with their records in ``edition`` (the plan's own by default)."""
    plan = read_plan(run)
    return [_stored(run, node, edition or plan.edition) for node in plan.nodes if node.kind == "cell"]


def _stored(run: Path, node: StoredNode, edition: str) -> StoredCell:
    folder = run / "cells" / node.key
    status = read_status(folder)
    if status is None:
        return StoredCell(node.key, node.identity, CellStatus.PENDING, "", folder)
    if status.status != CellStatus.DONE:
        return StoredCell(node.key, node.identity, status.status, status.reason, folder)
    record = _whole_record(folder, status).in_edition(edition)
    return FinishedCell(node.key, node.identity, status.status, status.reason or status.incomplete, folder, record)


def _whole_record(folder: Path, status: NodeStatus) -> Record:
    """The record of a finished cell, checked against the hash in its status."""
    path = folder / RECORD
    record = read_record(path)
    if file_digest(path) != status.record_sha256:
        raise RecordError(f"{path} is damaged; run the study again, which measures this cell again")
    return record


def read_status(folder: Path) -> NodeStatus | None:
    """How the node in a folder ended; None where it has not.

    Raises:
        RecordError: the status is damaged.
    """
    path = folder / STATUS
    if not path.exists():
        return None
    try:
        return NodeStatus.model_validate(read_sealed(path, "run the study again"))
    except ValidationError as error:
        raise RecordError(f"{path} is not a status ({first_fault(error)}); run the study again") from error
