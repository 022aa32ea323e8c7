"""A run is a folder, and the folder is the truth: what is planned, what is done, what is stale.

runs/<name>/study.toml  plan.json  models/<key>/  cells/<key>/{spec,status,record}.json samples.jsonl.gz log.txt
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from ..errors import DISK_REFUSED, RecordError, StorageError
from ..planning.nodes import Node, Plan
from ..planning.provenance import device_kind, devices, usable_cores
from ..records.run_folder import read_status
from ..storage import (
    write_json,
    write_sealed,
)
from .executor import Job, LocalExecutor
from .run_folder_writer import Outcome, finished, folder_of

POLL = 0.02
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
        status = read_status(job.folder)
    except RecordError as error:
        return _conclude(run, node, "failed", str(error), job.seconds)
    if not status:
        cause = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        return _conclude(run, node, "failed", f"{cause}; see {job.folder / 'log.txt'}", job.seconds)
    return Outcome(node, status["status"], status["reason"], status["seconds"], exit_code=status.get("exit_code", 1))
