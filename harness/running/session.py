"""One run of a plan in its folder: the lock, signals, observers, and what the run comes to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import FAILED, USAGE, UsageError
from ..planning.nodes import Plan
from ..planning.study import Study
from ..plugin.registry import Registry
from ..plugin.specs import resolve
from ..records.claim import Held
from ..records.node_spec import CellSpec, ReferenceSpec
from .attempts import Attempts
from .executor import Executor
from .follower import Follower
from .progress import Progress
from .run_store import Outcome, locked, write_plan


@dataclass(frozen=True)
class RunOutcome:
    """What a run came to.

    Args:
        exit_code: 0 where every cell is done or not applicable; 1 where one failed; 4 where the user must mend
            something first, such as a model that does not load.
        to_mend: what that is, a line each.
        waiting: how many nodes have not ended, of a run that is not waited for.
    """

    folder: Path
    outcomes: tuple[Outcome, ...]
    exit_code: int
    to_mend: tuple[str, ...]
    waiting: int = 0


def run_plan(
    folder: Path, plan: Plan, registry: Registry, quiet: bool = False, detach: bool = False, follow: str = ""
) -> RunOutcome:
    """Run what of a plan is not finished in its folder, and tell the plugins that observe it.

    Args:
        detach: return once everything is submitted, with an executor whose works go on.
        follow: the beginning of a node's key, whose log is shown as it is written.

    Raises:
        UsageError: another process runs in the folder, it holds another study, or the executor refuses.
        KeyboardInterrupt: after every running node was stopped, where they do not go on by themselves.
        StorageError: the disk refused a write.
    """
    executor = executor_of(plan.study, registry)
    if detach and not executor.detached:
        raise UsageError(f"--detach: what runs on the executor {plan.study.run.executor!r} ends with this command")
    with locked(folder) as claim, Progress(plan, folder, quiet, follow) as progress, Attempts(folder) as attempts:
        write_plan(folder, plan)
        registry.notify("unlearnbench_run_started", progress.say, run=str(folder), cells=len(plan.cells))

        def observe(outcome: Outcome, done: int, total: int) -> None:
            progress(outcome, done, total)
            if isinstance(outcome.node.spec, CellSpec):
                status = {
                    "status": str(outcome.status),
                    "reason": outcome.reason,
                    "seconds": outcome.seconds,
                    "kept": outcome.cached,
                }
                registry.notify("unlearnbench_cell_finished", progress.say, cell=outcome.node.key, status=status)

        def keep_on() -> None:
            progress.look()
            if not claim.holds:
                raise Held(f"another process has taken over the study in {folder}, since this one stood still")

        follower = Follower(folder, plan, executor, observe, attempts, lambda line: progress.say(f"warning: {line}"))
        with sigterm_interrupts():
            try:
                follower.start()
                if detach:
                    return RunOutcome(folder, tuple(follower.outcomes.values()), 0, (), follower.waiting)
                outcomes = follower.follow(keep_on)
            except KeyboardInterrupt:
                if executor.detached:
                    progress.say("what is submitted goes on; the same command follows it again")
                raise
            finally:
                if not executor.detached:
                    executor.cancel(follower.tickets)
        found = _judged(folder, outcomes)
        registry.notify("unlearnbench_run_finished", progress.say, run=str(folder), exit_code=found.exit_code)
    return found


def placed(study: Study, registry: Registry) -> Study:
    """The study with the device that ``auto`` is where its nodes run, which need not be this machine.

    Raises:
        UsageError: the executor cannot be used here.
    """
    if study.run.device != "auto" or study.run.executor == "local":
        return study
    device = executor_of(study, registry).device()
    run = study.run.model_copy(update={"device": device})
    return replace(study, tables=study.tables.model_copy(update={"run": run}))


def executor_of(study: Study, registry: Registry) -> Executor:
    """The executor that a study names."""
    component = registry.find("executor", study.run.executor)
    executor: Executor = resolve(component.spec.target, component.qualified)(study.run)
    return executor


def _judged(folder: Path, outcomes: list[Outcome]) -> RunOutcome:
    failed = [outcome for outcome in outcomes if not outcome.status.settled]
    to_mend = [
        outcome for outcome in failed if isinstance(outcome.node.spec, ReferenceSpec) and outcome.exit_code == USAGE
    ]
    code = USAGE if to_mend else FAILED if failed else 0
    lines = tuple(f"{outcome.node.title}: {outcome.reason}" for outcome in to_mend)
    return RunOutcome(folder, tuple(outcomes), code, lines)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
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
