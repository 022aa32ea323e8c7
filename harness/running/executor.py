"""Runs nodes on this machine: a process each, forked from a server that has torch imported, killed when it must be."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from ..storage import read_json

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass
class Job:
    """A node that is running."""

    key: str
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
        self._context.set_forkserver_preload(["unlearnbench.worker.worker"])

    def start(self, key: str, folder: Path) -> Job:
        """Run the node in ``folder`` in a process group of its own; its output goes to ``log.txt`` there."""
        process = self._context.Process(target=_child, args=(str(folder),), name=key, daemon=False)
        with _no_main_module(), _short_temporary_folder():
            process.start()
        return Job(key, folder, process, time.monotonic())

    def kill(self, job: Job) -> None:
        """Stop a job and all it started: SIGTERM to its group, then SIGKILL to the group and what has left it."""
        started = _descendants(job.process.pid)
        _signal_group(job, signal.SIGTERM)
        job.process.join(GRACE)
        _signal_group(job, signal.SIGKILL)
        _kill(started)
        job.process.join()


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Within this a process that starts does not run the caller's script again: a cell needs nothing of it, and a
    script without a guard, standard input or a notebook could not be run anyway."""
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


def _signal_group(job: Job, number: signal.Signals) -> None:
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
    log = os.open(os.path.join(folder, "log.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    count = processes_of(folder)
    if count > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        sys.exit(subprocess.call([*command, "-m", "unlearnbench", "run-cell", folder]))
    from ..worker.worker import run_node

    # What the server imported is never garbage; without this a collection walks through all of it (0.25 s).
    gc.freeze()
    sys.exit(run_node(folder))


def processes_of(folder: str) -> int:
    """How many processes the node in ``folder`` is to run in."""
    spec = read_json(Path(folder) / "spec.json", "run the study again")
    return int(spec["run"].get("processes", 1))


def _die_with_parent() -> None:
    """A run that is killed must not leave cells behind that still write into its folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _kill(_descendants(os.getpid()))
        os.killpg(os.getpid(), signal.SIGKILL)
