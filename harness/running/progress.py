"""What a run says while it works: which nodes run, at which step, and when it will be done; always on stderr.

On a terminal a bar with a line for each node that runs; elsewhere (a pipe, a notebook) plain lines, one for every node
that ends, and now and then one for each that takes long.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError, printable
from ..planning.nodes import Plan
from .node_processes import LOG
from .pace import Pace, in_words
from .run_store import Outcome, folder_of

LOOK_EVERY = 1.0
"""Seconds between two looks at what runs, where somebody watches; else a sixth of ``SAY_EVERY``."""
SAY_EVERY = 60.0
"""Seconds between two plain lines about a node that takes long."""
LEAST_TOLD = 30.0
"""Seconds that a run must still take for lines to say so."""
TAIL = 4096
"""Bytes at the end of a log that are looked at."""


@dataclass
class Running:
    """A node that runs: its title, its log, since when, and what it said last."""

    title: str
    log: Path
    began: float
    said: str = ""
    told: float = 0.0

    def look(self) -> None:
        """Read the log's last word on a step or a stage."""
        lines = _tail(self.log).splitlines()
        self.said = next((line for line in reversed(lines) if line.startswith(("step ", "stage: "))), self.said)

    @property
    def words(self) -> str:
        return f"{self.title}: {printable(self.said) or 'starting'}"


@dataclass
class Progress:
    """Observes outcomes; use as a context manager.

    Args:
        run: the run folder.
        follow: the beginning of a node's key, whose log is shown as it is written; empty for none.

    Raises:
        UsageError: ``follow`` is the beginning of no node's key.
    """

    plan: Plan
    run: Path
    quiet: bool = False
    follow: str = ""
    _running: dict[Path, Running] = field(default_factory=dict)
    _read: dict[str, int] = field(default_factory=dict)
    _looked: float = 0.0
    _live: Any = None
    _bar: Any = None

    def __post_init__(self) -> None:
        if self.follow and not any(node.key.startswith(self.follow) for node in self.plan.nodes):
            first = self.plan.nodes[0].key
            raise UsageError(f"--follow {self.follow!r} begins no cell of this run; its cells have names like {first}")
        self._titles = {node.key: node.title for node in self.plan.nodes}
        self._pace = Pace(self.plan, time.monotonic())

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self.quiet:
            from rich import progress
            from rich.console import Console
            from rich.live import Live

            self._bar = progress.Progress(
                progress.BarColumn(),
                progress.TextColumn("{task.fields[done]}/{task.fields[total_nodes]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("{task.fields[left]}"),
            )
            total = len(self.plan.nodes)
            self._bar.add_task("", total=total, done=0, total_nodes=total, left="")
            self._live = Live(self._bar, console=Console(stderr=True), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, outcome: Outcome, done: int, total: int) -> None:
        """One node ended."""
        self._pace.ended(outcome)
        if not outcome.cached:
            self._copy(folder_of(self.run, outcome.node) / LOG, outcome.node.key)
        if self._bar:
            self._bar.update(self._bar.tasks[0].id, completed=done, done=done, left=self._left())
        if self.quiet or (outcome.cached and self._bar):
            return
        took = "kept" if outcome.cached else f"{outcome.seconds:.1f} s"
        why = f": {outcome.reason}" if outcome.reason else ""
        left = "" if self._bar or done == total else self._left(LEAST_TOLD)
        self.say(f"[{done}/{total}] {outcome.node.title}: {outcome.status} ({took}){why}{left and f'; {left}'}")

    def _left(self, least: float = 0.0) -> str:
        """How long the run will take, in words; empty where that is not known, or less than ``least`` seconds."""
        now = time.monotonic()
        running = {_key_of(node.log): now - node.began for node in self._running.values()}
        seconds = self._pace.left(now, running)
        return f"{in_words(seconds)} left" if seconds is not None and seconds >= least else ""

    def look(self) -> None:
        """Look at what runs; cheap enough to be asked again and again."""
        now = time.monotonic()
        every = LOOK_EVERY if self._live or self.follow else SAY_EVERY / 6
        if self.quiet or now - self._looked < every:
            return
        self._looked = now
        found = running_nodes(self.run, self._titles)
        self._running = {path: self._running.get(path) or Running(title, path, now) for path, title in found.items()}
        for path in self._running:
            self._copy(path, _key_of(path))
        if self._live:
            self._show()
        else:
            self._say_what_takes_long(now)

    def _show(self) -> None:
        from rich.console import Group
        from rich.text import Text

        for node in self._running.values():
            node.look()
        lines = [Text(f"  {node.words}", no_wrap=True, overflow="ellipsis") for node in self._running.values()]
        self._bar.update(self._bar.tasks[0].id, left=self._left())
        self._live.update(Group(self._bar, *lines[:16]))

    def _say_what_takes_long(self, now: float) -> None:
        for node in self._running.values():
            if now - max(node.began, node.told) >= SAY_EVERY:
                node.look()
                where = "" if node.told else f"; log: {node.log}"
                node.told = now
                self.say(f"… {node.words} ({now - node.began:.0f} s{where})")

    def _copy(self, log: Path, key: str) -> None:
        """Write what is new in the log of a node that is followed."""
        if not self.follow or not key.startswith(self.follow):
            return
        try:
            with log.open("rb") as file:
                file.seek(self._read.get(key, 0))
                content = file.read()
        except OSError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._read[key] = self._read.get(key, 0) + len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            self.say(f"  {printable(line)}")

    def say(self, line: str) -> None:
        """A line, as it is: reasons may hold what rich would take for markup."""
        if self._live:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _key_of(log: Path) -> str:
    """The key of the node whose attempt writes this log."""
    return log.parent.name.partition("~")[0]


def running_nodes(run: Path, titles: Mapping[str, str]) -> dict[Path, str]:
    """The logs of the attempts that are under way in a run folder, with the titles of their nodes."""
    found = {}
    for kind in ("models", "cells"):
        folder = run / kind
        for path in sorted(folder.glob("*~*")) if folder.is_dir() else ():
            key = _key_of(path / LOG)
            if key in titles and (path / LOG).exists():
                found[path / LOG] = titles[key]
    return found


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
