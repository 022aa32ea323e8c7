"""Processes of nodes on this machine: forked from a server that has torch imported, killed when they must be."""

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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from ..errors import DISK_REFUSED
from ..plugin.specs import resolve
from ..records.claim import started

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
LOOK = 0.5
"""Seconds between two looks whether a process is still there."""
LOG = "log.txt"


@dataclass(frozen=True)
class ProcessState:
    """How a node's process stands.

    Args:
        running: False once it has ended, in whatever way.
        reason: why it ended, where it did not come to write a status.
        seconds: for how long it has run.
        memory: resident bytes, where they are measured.
        refused: what it said when the disk refused its status.
    """

    running: bool
    reason: str = ""
    seconds: float = 0.0
    memory: int = 0
    refused: str = ""


@dataclass(eq=False)
class NodeProcess:
    """A node that runs in a process of its own."""

    folder: Path
    process: BaseProcess
    began: float
    seen: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def has_vanished(self) -> bool:
        """Whether the process is gone without the server having told that it ended, as it does at once."""
        now = time.monotonic()
        if now - self.seen < LOOK:
            return False
        if started(self.process.pid) is not None:
            self.seen = now
        return now - self.seen > GRACE

    @property
    def memory(self) -> int:
        """Resident bytes of the process and its children."""
        try:
            top = psutil.Process(self.process.pid)
            return sum(int(process.memory_info().rss) for process in (top, *top.children(recursive=True)))
        except psutil.Error:
            return 0


class NodeProcesses:
    """A forkserver: importing torch and transformers costs seconds once, a process some thirty milliseconds.

    Args:
        worker: ``module:function`` that runs the node of a folder, given its path, and returns an exit status as
            ``worker.start_node``.
        measures_memory: whether states tell how much memory a process uses, which takes time to ask.
    """

    def __init__(self, worker: str, measures_memory: bool) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([worker.partition(":")[0]])
        self._worker, self._measures_memory = worker, measures_memory

    def start(self, folder: Path) -> NodeProcess:
        """Run the node in a process group of its own; its output goes to ``log.txt`` in its folder."""
        process = self._context.Process(target=_child, args=(str(folder), self._worker), name=folder.name, daemon=False)
        with _no_main_module(), _short_temporary_folder():
            process.start()
        now = time.monotonic()
        return NodeProcess(folder, process, now, now)

    def state(self, job: NodeProcess) -> ProcessState:
        """How a process stands."""
        code = job.process.exitcode
        if code is None and job.has_vanished:
            return ProcessState(False, f"its process is gone; see {job.folder / LOG}", job.seconds)
        if code is None:
            return ProcessState(True, seconds=job.seconds, memory=job.memory if self._measures_memory else 0)
        job.process.join()
        cause = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        refused = _last_line(job.folder / LOG) if code == DISK_REFUSED else ""
        return ProcessState(False, f"{cause}; see {job.folder / LOG}", job.seconds, refused=refused)


def wait_for_one(jobs: Iterable[NodeProcess], seconds: float) -> None:
    """Return once one of these has ended, or after so many seconds."""
    wait([job.process.sentinel for job in jobs], timeout=seconds)


def kill(job: NodeProcess) -> None:
    """Stop a node and all it started: SIGTERM to its group, then SIGKILL to the group and what has left it."""
    others = _descendants(job.process.pid)
    _signal_group(job, signal.SIGTERM)
    job.process.join(GRACE)
    _signal_group(job, signal.SIGKILL)
    _kill(others)
    # The server may have died before it could tell.
    job.process.join(GRACE)


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


def _signal_group(job: NodeProcess, number: signal.Signals) -> None:
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


def _child(folder: str, worker: str) -> None:
    """Entry of the forked process."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    log = os.open(os.path.join(folder, LOG), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    run = resolve(worker, worker)
    # What the server imported is never garbage; without this a collection walks through all of it (0.25 s).
    gc.freeze()
    sys.exit(run(folder))


def _die_with_parent() -> None:
    """A run that is killed must not leave cells behind that still write into its folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _kill(_descendants(os.getpid()))
        os.killpg(os.getpid(), signal.SIGKILL)
