"""What faults are tried on: a study of nodes that do nothing, its runner, and what must hold however it was hit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from noop_study import begun, behave, variables, write_study
from noop_worker import content_of

from unlearnbench.records.run_folder import read_plan, read_status

TESTS = Path(__file__).parent.parent
NODES_BESIDES = 4
"""Two reference models, and their own cells."""


@dataclass
class Tally:
    """What came of the faults of one kind."""

    faults: int = 0
    wrong: int = 0
    lost: int = 0
    doubled: int = 0
    cells_lost: int = 0
    """Runs of a node beyond its first."""


@dataclass
class Bench:
    """A study in a folder of its own, run by a process that faults hit.

    Args:
        cells: of one method, beside four other nodes.
        jobs: nodes at a time.
        seconds: that a node takes.
    """

    home: Path
    rng: random.Random
    executor: str = "noop-local"
    cells: int = 20
    jobs: int = 1
    seconds: float = 0.02
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        behave(self.home / "runs", seconds=self.seconds)
        write_study(self.home, self.cells)
        self.run = self.home / "runs" / "s"
        self.cache = self.home / "cache"

    @property
    def variables(self) -> dict[str, str]:
        return {**os.environ, **self.environment, **variables(self.cache), "OMP_WAIT_POLICY": "PASSIVE"}

    def start(self, *before: str) -> subprocess.Popen[str]:
        """The runner's process; ``before`` are words of a command that runs it."""
        words = [sys.executable, str(TESTS / "faults" / "runner.py"), "s.toml", str(self.run), self.executor]
        return subprocess.Popen(
            [*before, *words, str(self.jobs), "5"],
            cwd=self.home,
            env=self.variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, tries: int = 3) -> str:
        """Run it to its end, as somebody would who runs it again; what the last one said."""
        for _ in range(tries):
            process = self.start()
            try:
                _, said = process.communicate(timeout=240)
            except subprocess.TimeoutExpired:
                stop(process)
                return "the runner hangs"
            if process.returncode == 0:
                return ""
            if "plan.json" in said:
                (self.run / "plan.json").unlink()
        reasons = {
            status.reason for folder in self.run.glob("*/*") if (status := read_status(folder)) and status.reason
        }
        return f"exit code {process.returncode}: {said} {sorted(reasons)[:5]}"

    @property
    def begun(self) -> Counter[str]:
        """How often each node was begun."""
        return begun(self.home / "runs")

    def judge(self, tally: Tally, faults: int) -> None:
        """Count what is wrong after the study was hit so often, and run to its end."""
        tally.faults += faults
        said = self.finish()
        if said:
            tally.lost += 1
            print("does not end:", said)
            return
        plan = read_plan(self.run)
        for node in plan.nodes:
            if node.kind != "cell":
                continue
            folder = self.run / "cells" / node.key
            status = read_status(folder)
            if status is None or status.status != "done":
                tally.lost += 1
                print("lost:", node.title, status)
                continue
            record, samples = content_of(node.key)
            if (folder / "record.json").read_bytes() != record or (folder / "samples.jsonl.gz").read_bytes() != samples:
                tally.wrong += 1
                print("wrong:", node.title)
        known = {node.key for node in plan.nodes if node.kind == "cell"}
        more = [path.name for path in (self.run / "cells").iterdir() if path.name not in known]
        tally.doubled += len(more)
        if more:
            print("left:", more)
        tally.cells_lost += sum(self.begun.values()) - len(plan.nodes)


def stop(process: subprocess.Popen[str]) -> None:
    """Kill a process and wait until what it had started is gone too; what is not by itself is killed."""
    started = descendants(process.pid)
    send(process.pid, signal.SIGKILL)
    _, left = psutil.wait_procs(started, timeout=5)
    for one in left:
        send(one.pid, signal.SIGKILL)
    process.communicate()


def send(pid: int, number: signal.Signals) -> bool:
    """Whether a process was there to be sent a signal."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def servers(pid: int) -> list[psutil.Process]:
    """The fork servers of a process."""
    return [process for process in descendants(pid) if _is_server(process) and not _is_server(_parent(process))]


def cells(pid: int) -> list[psutil.Process]:
    """The processes of nodes that a process runs."""
    found = []
    for server in servers(pid):
        # It may have ended meanwhile.
        with suppress(psutil.Error):
            found += server.children()
    return found


def _parent(process: psutil.Process) -> psutil.Process | None:
    with suppress(psutil.Error):
        return process.parent()
    return None


def is_cell(process: psutil.Process) -> bool:
    """Whether a process is one that a fork server started."""
    return _is_server(process) and _is_server(_parent(process))


def _is_server(process: psutil.Process | None) -> bool:
    try:
        return process is not None and "multiprocessing.forkserver" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def files(*folders: Path) -> list[Path]:
    """All files of a run and its cache, in a stable order; folders may vanish meanwhile."""
    return sorted(Path(place) / name for folder in folders for place, _, names in os.walk(folder) for name in names)


def wait_until(ready, seconds: float) -> bool:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready():
            return True
        time.sleep(0.005)
    return False
