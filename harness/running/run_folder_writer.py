"""Writes a run folder: one process at a time, the plan, the study; and says which nodes are finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from ..data.model_folder import prepared_folder, reference_facts
from ..errors import RecordError, StorageError, UsageError
from ..planning.nodes import Node, Plan
from ..records.record import SAMPLES
from ..records.run_folder import PLAN_SCHEMA, STUDY, read_plan, read_status
from ..storage import (
    alone,
    as_storage_error,
    digest,
    file_digest,
    write_bytes,
    write_sealed,
)

OK = ("done", "not-applicable")


@dataclass(frozen=True)
class Outcome:
    """How a node ended."""

    node: Node
    status: str
    reason: str = ""
    seconds: float = 0.0
    cached: bool = False
    exit_code: int = 1


def folder_of(run: Path, node: Node) -> Path:
    """Where a node lives in the run."""
    return run / ("cells" if node.kind == "cell" else "models") / node.key


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """One writer at a time, where the file system has locks. Raises UsageError while another process runs in it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / ".lock").open("a")
    except OSError as error:
        translated = as_storage_error(error, run)
        if not isinstance(translated, StorageError):
            raise UsageError(f"cannot use {run} as a run folder: {error.strerror}; choose another --out") from error
        raise translated from error
    with file:
        try:
            alone(file, wait=False)
        except BlockingIOError:
            raise UsageError(f"another process is running the study in {run}; wait for it or choose --out") from None
        yield


def write_plan(run: Path, plan: Plan) -> None:
    """Store the plan and the study.

    Raises:
        UsageError: the folder holds another study.
        RecordError: its plan is broken or of a newer schema.
    """
    path = run / "plan.json"
    if path.exists():
        stored = read_plan(run)
        if stored["study"] != plan.study.name:
            raise UsageError(
                f"{run} holds the study {stored['study']!r}, not {plan.study.name!r}; choose another --out"
            )
    write_sealed(
        path,
        {
            "schema_version": PLAN_SCHEMA,
            "study": plan.study.name,
            "edition": plan.study.edition,
            "raw": plan.study.raw,
            "plugins": plan.study.plugins,
            "study_sha256": digest(plan.study.raw),
            "nodes": [
                {"key": node.key, "kind": node.kind, "title": node.title, "needs": list(node.needs),
                 "content": node.content, "identity": _identity(node)}
                for node in plan.nodes
            ],
        },
    )  # fmt: skip


def _identity(node: Node) -> dict[str, Any]:
    spec = node.spec
    return {
        "method": spec["method"]["name"] if node.kind == "cell" else spec["role"],
        "benchmark": spec["benchmark"]["name"],
        "model": spec["model"]["name"],
        "seed": spec["seed"],
    }


def finished(run: Path, node: Node, cache: Path) -> Outcome | None:
    """The stored outcome of a node, if it is done with the same content and what it left is still there."""
    folder = folder_of(run, node)
    if node.kind == "model":
        try:
            reference_facts(prepared_folder(cache, node.key))
        except RecordError:
            return None
        return Outcome(node, "done", cached=True)
    try:
        status = read_status(folder)
        if status.get("status") not in OK or status.get("content") != node.content:
            return None
        if status["status"] == "done" and (status.get("incomplete") or not _whole(folder, status)):
            return None
        if status["status"] == "done" and status.get("scoring") != node.spec["benchmark"]["scoring"]:
            # Its scores are of other code; ``rescore`` would make them anew from its samples.
            return None
    except RecordError:
        # A damaged status is measured again; nothing else is lost.
        return None
    return Outcome(node, status["status"], status["reason"], status["seconds"], cached=True)


def _whole(folder: Path, status: Mapping[str, Any]) -> bool:
    """Whether the files of a finished cell are as they were left."""
    files = {"record.json": "record_sha256", SAMPLES: "samples_sha256", "spec.json": "spec_sha256"}
    try:
        return all(file_digest(folder / name) == status.get(fact) for name, fact in files.items())
    except OSError:
        return False


def write_study(run: Path, plan: Plan) -> None:
    """Keep the study, with all options applied, beside its results."""
    write_bytes(run / STUDY, tomli_w.dumps(plan.study.raw).encode())
