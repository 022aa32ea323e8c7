"""What a run says while it works: a bar with an estimate on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
from typing import Any

from .run_store import Outcome


class Progress:
    """Observes outcomes; use as a context manager."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self._total = total
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self._quiet:
            from rich import progress
            from rich.console import Console

            kinds = (progress.BarColumn, progress.MofNCompleteColumn, progress.TimeElapsedColumn)
            columns = [*(kind() for kind in kinds), progress.TextColumn("left"), progress.TimeRemainingColumn()]
            self._bar = progress.Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, outcome: Outcome, done: int, total: int) -> None:
        """One node ended."""
        if self._bar:
            self._bar.advance(self._task)
        if self._quiet or (outcome.cached and self._bar):
            return
        took = "kept" if outcome.cached else f"{outcome.seconds:.1f} s"
        why = f": {outcome.reason}" if outcome.reason else ""
        line = f"[{done}/{total}] {outcome.node.title}: {outcome.status} ({took}){why}"
        self.say(line)

    def say(self, line: str) -> None:
        """A line, as it is: reasons may hold what rich would take for markup."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)
