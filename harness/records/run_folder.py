"""A run folder as its files tell it: plan, study, status and record of every cell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import (
    RecordError,
)
from ..storage import (
    digest,
    file_digest,
    read_json,
    read_sealed,
    read_toml,
    unsealed,
)
from .record import Record, read_record

PLAN_SCHEMA = 1
STUDY = "study.toml"


def cache_folder() -> Path:
    """Prepared reference models: ``$UNLEARNBENCH_CACHE``, or a folder in the user's cache."""
    named = os.environ.get("UNLEARNBENCH_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "unlearnbench"


def read_plan(run: Path) -> dict[str, Any]:
    """The stored plan. Raises RecordError where it is absent, broken or of a newer schema."""
    path = run / "plan.json"
    plan = read_json(path, "is this a run folder? if its plan was damaged, delete plan.json and run the study again")
    if not isinstance(plan, dict) or not isinstance(plan.get("schema_version"), int):
        raise RecordError(f"{path} is not a plan; delete it and run the study again")
    if plan["schema_version"] > PLAN_SCHEMA:
        raise RecordError(
            f"{path} has plan schema {plan['schema_version']}; this unlearnbench reads up to {PLAN_SCHEMA}: upgrade it"
        )
    try:
        return _Plan.model_validate(unsealed(plan, path, "delete it and run the study again")).model_dump()
    except ValidationError as error:
        raise RecordError(f"{path} is not a plan ({_first(error)}); delete it and run the study again") from error


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"


class _PlannedIdentity(BaseModel):
    method: str
    benchmark: str
    model: str
    seed: int


class _PlannedNode(BaseModel):
    key: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+=-]*$")
    kind: Literal["model", "cell"]
    title: str
    needs: list[str]
    content: str
    identity: _PlannedIdentity


class _Plan(BaseModel):
    """What ``plan.json`` holds."""

    schema_version: int
    study: str
    edition: Literal["paper", "as-released"] = "paper"
    raw: dict[str, Any] = {}
    plugins: list[str] = []
    study_sha256: str = ""
    nodes: list[_PlannedNode]


class _Status(BaseModel):
    """What ``status.json`` holds, of a node that ended."""

    model_config = ConfigDict(extra="allow")

    status: str
    reason: str = ""
    seconds: float = 0.0
    content: str = ""


def read_own_study(run: Path) -> dict[str, Any]:
    """The study that a run folder keeps; empty where it keeps none.

    Raises:
        RecordError: it is not the one that was run.
    """
    path = run / STUDY
    if not path.is_file():
        return {}
    remedy = "run the study again, which writes it anew"
    try:
        raw = read_toml(path)
    except (ValueError, OSError) as error:
        raise RecordError(f"{path} is not TOML ({error}); {remedy}") from error
    if digest(raw) != read_plan(run)["study_sha256"]:
        raise RecordError(f"{path} is not the study that was run; {remedy}")
    return raw


@dataclass(frozen=True)
class StoredCell:
    """A planned cell as its folder tells it; ``record`` is present where the status is done."""

    key: str
    identity: Mapping[str, Any]
    status: str
    reason: str
    folder: Path
    record: Record | None


def stored_cells(run: Path, edition: str = "") -> list[StoredCell]:
    """Every cell of the run's plan, with its record in the edition asked for (the plan's own by default)."""
    plan = read_plan(run)
    cells = []
    for node in plan["nodes"]:
        if node["kind"] != "cell":
            continue
        folder = run / "cells" / node["key"]
        status = read_status(folder)
        record = None
        if status.get("status") == "done":
            record = _held(folder, status).in_edition(edition or plan["edition"])
        cells.append(
            StoredCell(
                node["key"], node["identity"], status.get("status", "pending"), status.get("reason", ""), folder, record
            )
        )
    return cells


def _held(folder: Path, status: Mapping[str, Any]) -> Record:
    """The record of a finished cell, held to the hash in its status."""
    path = folder / "record.json"
    record = read_record(path)
    if file_digest(path) != status.get("record_sha256"):
        raise RecordError(f"{path} is damaged; run the study again, which measures this cell again")
    return record


def read_status(folder: Path) -> dict[str, Any]:
    path = folder / "status.json"
    if not path.exists():
        return {}
    try:
        return _Status.model_validate(read_sealed(path, "run the study again")).model_dump()
    except ValidationError as error:
        raise RecordError(f"{path} is not a status ({_first(error)}); run the study again") from error
