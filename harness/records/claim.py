"""One process at a time, on any machine, where the file system may have no locks: claims and heartbeats.

A claim is a file that one process alone can create; whoever comes later makes the one with the next number, once the
holder has let go of it or has died. The highest number holds. Whether a holder lives is exact on its own machine, by
its process's number and start. From another machine it is told by whether the file's time of modification moves while
one watches, so that neither clocks that differ nor clocks that jump count; only the watcher's own passage of time.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..storage import as_storage_error

BEAT = 5.0
"""Seconds between two heartbeats."""
SILENCE = 30.0
"""Seconds without a heartbeat after which a holder on another machine counts as dead."""
POLL = 0.2


class Held(UsageError):
    """Another process holds it."""


class Heartbeat:
    """A file that says which process lives; use as a context manager.

    Args:
        path: the file, which must not exist.

    Raises:
        FileExistsError: it does.
        StorageError, UsageError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name=f"heartbeat {path.name}")

    def __enter__(self) -> Heartbeat:
        _create(self.path, json.dumps(_myself()).encode())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        with suppress(OSError):
            self.path.unlink()

    def stop(self) -> None:
        """Beat no more, and leave the file."""
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            # A file that is gone was taken for a dead process's; what follows from it is seen where it matters.
            with suppress(OSError):
                os.utime(self.path)


def living(paths: Iterable[Path], patience: float = SILENCE) -> set[Path]:
    """Those heartbeats whose process lives; looks for so many seconds where one is on another machine."""
    known = {path: _known(path) for path in paths}
    watched = {path: moved for path, alive in known.items() if alive is None and (moved := _moved(path)) is not None}
    found = {path for path, alive in known.items() if alive}
    end = time.monotonic() + patience
    while watched and time.monotonic() < end:
        time.sleep(POLL)
        now = {path: _moved(path) for path in watched}
        found |= {path for path, moved in now.items() if moved not in (None, watched[path])}
        watched = {path: moved for path, moved in watched.items() if now[path] == moved}
    return found


def _known(path: Path) -> bool | None:
    """Whether a heartbeat's process lives, where that can be told at once; None where it must be watched."""
    try:
        said = json.loads(path.read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict) or said.get("machine") != _machine():
        return None
    return said.get("started") is not None and started(said.get("pid")) == said["started"]


def _moved(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def holder(path: Path) -> str:
    """Which process keeps a heartbeat, in words."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(path.read_bytes())
        return f"process {said['pid']} on {said['host']}"
    return "another process"


@contextmanager
def claimed(path: Path, wait: bool, refusal: str = "{holder} holds {path}") -> Iterator[Claim]:
    """Within this no other process holds ``path``, which is a name and need not be a file.

    Args:
        wait: wait for the holder; otherwise refuse.
        refusal: what to say then, with the places ``holder`` and ``path``.

    Raises:
        Held: another process holds it, and ``wait`` is off.
        StorageError, UsageError: the claim cannot be written.
    """
    claim = _taken(path)
    while claim is None:
        if not wait:
            highest = max(_claims(path), default=None)
            who = holder(highest[1]) if highest else "another process"
            raise Held(refusal.format(holder=who, path=path))
        time.sleep(POLL)
        claim = _taken(path)
    try:
        yield claim
    finally:
        claim.release()


class Claim:
    """A claim that is held."""

    def __init__(self, path: Path, number: int) -> None:
        self._path, self._number = path, number
        self._heartbeat = Heartbeat(_file(path, number))
        self._heartbeat.__enter__()

    @property
    def holds(self) -> bool:
        """Whether nobody has taken over, as from a process that stood still for longer than ``SILENCE``."""
        return max((number for number, _ in _claims(self._path)), default=0) == self._number

    def remove_earlier(self) -> None:
        """Remove the claims that this one follows."""
        for number, file in _claims(self._path, released=True):
            if number < self._number:
                with suppress(OSError):
                    file.unlink()

    def release(self) -> None:
        """Let go of it."""
        self._heartbeat.stop()
        file = self._heartbeat.path
        with suppress(OSError):
            # Its number stays taken, so that numbers never begin anew beside a claim that is alive.
            os.replace(file, file.with_name(f"{file.name}{RELEASED}"))


RELEASED = ".released"


def _taken(path: Path) -> Claim | None:
    """A new claim; None while another process holds it."""
    claims = sorted(_claims(path, released=True))
    if claims:
        _, last = claims[-1]
        if not last.name.endswith(RELEASED) and living([last]):
            return None
    number = claims[-1][0] + 1 if claims else 1
    try:
        claim = Claim(path, number)
    except FileExistsError:
        return None
    # One that was seen long ago may have been followed by others since, and those removed.
    if max(found for found, _ in _claims(path, released=True)) != number:
        claim.release()
        return None
    claim.remove_earlier()
    return claim


def _file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number:08d}")


def _claims(path: Path, released: bool = False) -> list[tuple[int, Path]]:
    """The numbers of the claims on a name, with their files."""
    known = re.compile(re.escape(path.name) + r"\.(\d{8})(" + re.escape(RELEASED) + ")?")
    found = []
    with suppress(FileNotFoundError):
        for entry in os.scandir(path.parent):
            match = known.fullmatch(entry.name)
            if match and (released or not match[2]):
                found.append((int(match[1]), Path(entry.path)))
    return found


def _create(path: Path, content: bytes) -> None:
    """Create a file with its content, in one step. Raises FileExistsError where there is one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # A network file system may repeat a link that had succeeded.
            if os.stat(temporary).st_nlink != 2:
                raise
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            # No hard links here: whoever looks at once finds it empty, and watches whether it moves.
            with path.open("xb") as file:
                file.write(content)
    except FileExistsError:
        raise
    except OSError as error:
        raise as_storage_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@cache
def _machine() -> str:
    """This machine since it was started, and the name space in which its processes have their numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"machine": _machine(), "host": socket.gethostname(), "pid": pid, "started": started(pid)}


def started(pid: object) -> float | None:
    """When a process began, by a clock that nobody sets; None of one that is gone, or dead and not yet buried."""
    if not isinstance(pid, int):
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else float(fields[19])
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
    except (OSError, ValueError, IndexError):
        return None
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None
