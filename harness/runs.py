"""A run is a folder, and the folder is the truth: what is planned, what is done, what is stale.

runs/<name>/study.toml  plan.json  models/<key>/  cells/<key>/{spec,status,record}.json samples.jsonl.gz log.txt
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import RecordError, StorageError, UsageError
from .execution import DISK_REFUSED, Job, LocalExecutor
from .planning import PLAN_SCHEMA, Node, Plan
from .prepared import prepared_folder, reference_facts
from .provenance import device_kind, devices, usable_cores
from .records import SAMPLES, Record, read_record
from .storage import (
    alone,
    as_storage_error,
    digest,
    file_digest,
    read_json,
    read_sealed,
    read_toml,
    unsealed,
    write_bytes,
    write_json,
    write_sealed,
)

POLL = 0.02
STUDY = "study.toml"
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


def cache_folder() -> Path:
    """Prepared reference models: ``$UNLEARNBENCH_CACHE``, or a folder in the user's cache."""
    named = os.environ.get("UNLEARNBENCH_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "unlearnbench"


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
        status = _status(folder)
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


def _status(folder: Path) -> dict[str, Any]:
    path = folder / "status.json"
    if not path.exists():
        return {}
    try:
        return _Status.model_validate(read_sealed(path, "run the study again")).model_dump()
    except ValidationError as error:
        raise RecordError(f"{path} is not a status ({_first(error)}); run the study again") from error


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
        status = _status(folder)
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


Observer = Callable[[Outcome, int, int], None]


def execute(
    run: Path, plan: Plan, cache: Path, observe: Observer, executor: LocalExecutor | None = None
) -> list[Outcome]:
    """Run every node that is not finished, each after those it needs; one failure never stops another.

    Nodes are spread over the devices that the study allows, ``run.jobs`` of them on each at a time.

    Raises:
        KeyboardInterrupt: after every running node was killed; what is finished stays finished.
        StorageError: the disk refused a write.
    """
    executor = executor or LocalExecutor()
    outcomes: dict[str, Outcome] = {}
    waiting = {node.key: node for node in plan.nodes}
    running: list[tuple[Node, Job, str]] = []
    settings = plan.study.run
    # A cell that takes several devices has them all.
    places = devices(settings["device"]) if settings["processes"] == 1 else [device_kind(settings["device"])]
    jobs = settings["jobs"] * len(places)
    threads = settings["threads"] or max(1, usable_cores() // (jobs * settings["processes"]))

    def conclude(outcome: Outcome) -> None:
        outcomes[outcome.node.key] = outcome
        observe(outcome, len(outcomes), len(plan.nodes))

    for node in plan.nodes:
        stored = finished(run, node, cache)
        if stored:
            del waiting[node.key]
            conclude(stored)
    try:
        while waiting or running:
            for node in list(waiting.values()):
                blocked = [outcomes[key] for key in node.needs if key in outcomes and outcomes[key].status != "done"]
                if blocked:
                    del waiting[node.key]
                    conclude(_blocked(run, node, blocked[0]))
                elif len(running) < jobs and all(key in outcomes for key in node.needs):
                    del waiting[node.key]
                    taken = [device for _, _, device in running]
                    device = min(places, key=taken.count)
                    running.append((node, _start(executor, run, node, cache, threads, device), device))
            wait([job.process.sentinel for _, job, _ in running], timeout=POLL)
            for entry in list(running):
                node, job, _ = entry
                ended = _ended(executor, job, node, settings)
                if ended:
                    running.remove(entry)
                    conclude(ended)
    finally:
        for _, job, _ in running:
            executor.kill(job)
    return [outcomes[node.key] for node in plan.nodes]


def _start(executor: LocalExecutor, run: Path, node: Node, cache: Path, threads: int, device: str) -> Job:
    folder = folder_of(run, node)
    for stale in ("status.json", "record.json"):
        (folder / stale).unlink(missing_ok=True)
    spec = {**node.spec, "kind": node.kind, "cache": str(cache.resolve())}
    spec["run"] = {**node.spec["run"], "threads": threads, "device": device}
    write_json(folder / "spec.json", spec)
    return executor.start(node.key, folder)


def _blocked(run: Path, node: Node, cause: Outcome) -> Outcome:
    reason = f"needs {cause.node.title}, which ended as {cause.status}: {cause.reason}"
    return _conclude(run, node, "failed", reason, 0.0, cause.exit_code)


def _conclude(run: Path, node: Node, status: str, reason: str, seconds: float, exit_code: int = 1) -> Outcome:
    """Write a status for a node that could not write its own."""
    facts = {"status": status, "reason": reason, "key": node.key, "content": node.content, "seconds": round(seconds, 3)}
    write_sealed(folder_of(run, node) / "status.json", facts)
    return Outcome(node, status, reason, seconds, exit_code=exit_code)


def _ended(executor: LocalExecutor, job: Job, node: Node, settings: Mapping[str, Any]) -> Outcome | None:
    """The outcome of a job that ended or overstepped a limit; None while it runs."""
    code = job.process.exitcode
    run = job.folder.parent.parent
    if code is None:
        timeout, limit = settings["timeout"], settings["memory_limit"]
        if timeout and job.seconds > timeout:
            executor.kill(job)
            return _conclude(run, node, "timed-out", f"took longer than --timeout {timeout:g} s", job.seconds)
        if limit and job.memory > limit * 2**30:
            executor.kill(job)
            return _conclude(run, node, "out-of-memory", f"used more than --memory-limit {limit:g} GiB", job.seconds)
        return None
    job.process.join()
    # Where the disk could not even take the log line, writing the status below fails and says so.
    if code == DISK_REFUSED:
        words = (job.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        if words.startswith("cannot write"):
            raise StorageError(words)
    try:
        status = _status(job.folder)
    except RecordError as error:
        return _conclude(run, node, "failed", str(error), job.seconds)
    if not status:
        cause = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        return _conclude(run, node, "failed", f"{cause}; see {job.folder / 'log.txt'}", job.seconds)
    return Outcome(node, status["status"], status["reason"], status["seconds"], exit_code=status.get("exit_code", 1))


def write_study(run: Path, plan: Plan) -> None:
    """Keep the study, with all options applied, beside its results."""
    write_bytes(run / STUDY, tomli_w.dumps(plan.study.raw).encode())
