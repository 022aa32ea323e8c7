"""One run of a plan in its folder: the lock, signals, observers, and what the run comes to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import FAILED, USAGE
from ..planning.nodes import Plan
from ..plugin.registry import Registry
from ..plugin.specs import resolve
from ..records.node_spec import CellSpec, ReferenceSpec
from .executor import Executor
from .progress import Progress
from .run_store import Outcome, locked, write_plan
from .scheduler import execute


@dataclass(frozen=True)
class RunOutcome:
    """What a run came to.

    Args:
        exit_code: 0 where every cell is done or not applicable; 1 where one failed; 4 where the user must mend
            something first, such as a model that does not load.
        to_mend: what that is, a line each.
    """

    folder: Path
    outcomes: tuple[Outcome, ...]
    exit_code: int
    to_mend: tuple[str, ...]


def run_plan(folder: Path, plan: Plan, registry: Registry, cache: Path, quiet: bool = False) -> RunOutcome:
    """Run what of a plan is not finished in its folder, and tell the plugins that observe it.

    Raises:
        UsageError: another process runs in the folder, or it holds another study.
        KeyboardInterrupt: after every running node was stopped.
        StorageError: the disk refused a write.
    """
    component = registry.find("executor", plan.study.run.executor)
    executor: Executor = resolve(component.spec.target, component.qualified)()
    with locked(folder), Progress(len(plan.nodes), quiet) as progress:
        write_plan(folder, plan)
        registry.notify("unlearnbench_run_started", progress.say, run=str(folder), cells=len(plan.cells))

        def observe(outcome: Outcome, done: int, total: int) -> None:
            progress(outcome, done, total)
            if isinstance(outcome.node.spec, CellSpec):
                status = {"status": str(outcome.status), "reason": outcome.reason, "seconds": outcome.seconds}
                registry.notify("unlearnbench_cell_finished", progress.say, cell=outcome.node.key, status=status)

        with _sigterm_interrupts():
            outcomes = execute(folder, plan, cache, observe, executor)
        found = _judged(folder, outcomes)
        registry.notify("unlearnbench_run_finished", progress.say, run=str(folder), exit_code=found.exit_code)
    return found


def _judged(folder: Path, outcomes: list[Outcome]) -> RunOutcome:
    failed = [outcome for outcome in outcomes if not outcome.status.settled]
    to_mend = [
        outcome for outcome in failed if isinstance(outcome.node.spec, ReferenceSpec) and outcome.exit_code == USAGE
    ]
    code = USAGE if to_mend else FAILED if failed else 0
    lines = tuple(f"{outcome.node.title}: {outcome.reason}" for outcome in to_mend)
    return RunOutcome(folder, tuple(outcomes), code, lines)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Within this SIGTERM ends a run as Ctrl-C does. Signals are the main thread's: elsewhere nothing changes."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, interrupt) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, previous)
