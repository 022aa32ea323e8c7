"""Runs nodes on this machine: a process each, forked from a server that has torch imported, killed when it must be."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from ..errors import DISK_REFUSED
from ..planning.provenance import device_kind, devices, usable_cores
from ..records.node_spec import RunSettings
from .executor import Job, JobState, Slot

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
LOG = "log.txt"


@dataclass(eq=False)
class LocalJob:
    """A node that runs in a process of its own."""

    folder: Path
    process: BaseProcess
    began: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def memory(self) -> int:
        """Resident bytes of the process and its children."""
        try:
            top = psutil.Process(self.process.pid)
            return sum(int(process.memory_info().rss) for process in (top, *top.children(recursive=True)))
        except psutil.Error:
            return 0


class LocalExecutor:
    """A forkserver: importing torch and transformers costs seconds once, a process some thirty milliseconds."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([f"{__package__.partition('.')[0]}.worker.forkserver"])
        self._jobs: dict[Job, LocalJob] = {}
        self._measures_memory = False

    def slots(self, settings: RunSettings) -> list[Slot]:
        """``run.jobs`` on every device that the study allows; a node that takes several devices has them all."""
        self._measures_memory = settings.memory_limit > 0
        one = settings.processes == 1
        places = devices(settings.device) if one else [device_kind(settings.device)]
        count = settings.jobs * len(places)
        threads = settings.threads or max(1, usable_cores() // (count * settings.processes))
        return [Slot(place, threads) for _ in range(settings.jobs) for place in places]

    def submit(self, folder: Path, slot: Slot) -> Job:
        """Run the node in a process group of its own; its output goes to ``log.txt`` in its folder."""
        process = self._context.Process(target=_child, args=(str(folder),), name=folder.name, daemon=False)
        with _no_main_module(), _short_temporary_folder():
            process.start()
        self._jobs[folder] = LocalJob(folder, process, time.monotonic())
        return folder

    def poll(self, jobs: Sequence[Job], seconds: float) -> Mapping[Job, JobState]:
        """The state of every job; returns as soon as one has ended."""
        wait([self._jobs[job].process.sentinel for job in jobs], timeout=seconds)
        return {job: self._state(self._jobs[job]) for job in jobs}

    def _state(self, job: LocalJob) -> JobState:
        code = job.process.exitcode
        if code is None:
            return JobState(True, seconds=job.seconds, memory=job.memory if self._measures_memory else 0)
        job.process.join()
        cause = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        refused = _last_line(job.folder / LOG) if code == DISK_REFUSED else ""
        return JobState(False, f"{cause}; see {job.folder / LOG}", job.seconds, refused=refused)

    def cancel(self, job: Job) -> None:
        """Stop a job and all it started: SIGTERM to its group, then SIGKILL to the group and what has left it."""
        running = self._jobs[job]
        started = _descendants(running.process.pid)
        _signal_group(running, signal.SIGTERM)
        running.process.join(GRACE)
        _signal_group(running, signal.SIGKILL)
        _kill(started)
        running.process.join()


def _last_line(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Keep processes that start within this context from running the caller's script again.

    A cell needs nothing of it, and a script without a guard, standard input or a notebook cannot be run again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# A socket's path may have 108 bytes, of which multiprocessing adds some thirty to the temporary folder's.
SOCKET_FOLDER = 70


@contextmanager
def _short_temporary_folder() -> Iterator[None]:
    """Within this multiprocessing's sockets lie where their paths fit; it asks once and remembers."""
    if len(os.fsencode(tempfile.gettempdir())) <= SOCKET_FOLDER:
        yield
        return
    before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = before


def _signal_group(job: LocalJob, number: signal.Signals) -> None:
    pid = job.process.pid
    if pid is None:
        return
    try:
        # Before setsid has run the child shares the server's group, which must live.
        group = os.getpgid(pid)
        if group == pid:
            os.killpg(group, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        return


def _descendants(pid: int | None) -> list[psutil.Process]:
    """All processes that this one started and theirs; the launcher of several gives each a group of its own."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return found
    except psutil.Error:
        return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def _child(folder: str) -> None:
    """Entry of the forked process."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    log = os.open(os.path.join(folder, LOG), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from ..worker.worker import start_node

    # What the server imported is never garbage; without this a collection walks through all of it (0.25 s).
    gc.freeze()
    sys.exit(start_node(folder))


def _die_with_parent() -> None:
    """A run that is killed must not leave cells behind that still write into its folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _kill(_descendants(os.getpid()))
        os.killpg(os.getpid(), signal.SIGKILL)
