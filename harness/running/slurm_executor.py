"""Runs works as job arrays of Slurm, which queues them, holds them until what they need has ended, and runs them again
when a machine dies or a job is preempted.

Plain ``sbatch`` and ``squeue``: submitit starts a process for each function that it pickles, knows no dependencies
between arrays, and without an accounting database does not notice for minutes that a job was cancelled.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..domain import CellStatus
from ..errors import AGAIN, UsageError
from ..records.node_spec import Resources, RunSettings
from ..storage import write_bytes
from .executor import Ticket, TicketState
from .works import WORKER, WORKS, Work, file_of, run_name

ARRAYS = 100
"""Arrays at most that one submission makes; beyond, those of one level of the graph share theirs."""
LOOK = (1.0, 15.0)
"""Seconds between two questions to Slurm: at first, and once nothing has changed for a while."""
PATIENCE = 60.0
"""Seconds for which a question to Slurm is repeated that it does not answer."""
COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo")
RUNNER = 1.0
"""GiB of memory of what starts nodes in an allocation, beside the nodes' own."""
LOST = {"NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "REVOKED", "LAUNCH_FAILED"}
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY"}
CANNOT_START = (126, 127)
"""Exit codes by which a shell says that there is no such program, or none for this machine."""
OTHER_MACHINES = (
    "install the same environment there, or leave such machines out: run.slurm.lines = ['#SBATCH --constraint=…']"
)
FAULTS = {
    "OUT_OF_MEMORY": (CellStatus.OUT_OF_MEMORY, "its job was killed for memory; ask for more: --set resources.memory="),
    "TIMEOUT": (CellStatus.TIMED_OUT, "its job took longer than it may; ask for more: --set resources.hours="),
    "DEADLINE": (CellStatus.TIMED_OUT, "its job took longer than its deadline"),
}

SCRIPT = """#!/bin/sh
{directives}
{lines}
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
file=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {list})
exec {python} -m unlearnbench run-nodes "$file"
"""


class SlurmExecutor:
    """Job arrays of the cluster whose commands are on the path."""

    detached = True
    worker = WORKER

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._jobs: dict[str, str] = {}
        self._logs = Path()
        self._known: dict[Ticket, TicketState] = {}
        self._asked = 0.0
        self._pause = LOOK[0]

    def device(self) -> str:
        """``cuda`` where the partition has GPUs."""
        self._see_commands()
        words = ["sinfo", "-h", "-o", "%G", *_option("-p", self._settings.slurm.partition)]
        return "cuda" if "gpu" in _ask(*words) else "cpu"

    def check(self, run: Path, works: Sequence[Work]) -> None:
        """Refuse where Slurm is not here, or would never run what the works need."""
        self._see_commands()
        most = _configured("MaxJobCount", 10_000)
        if len(works) > most:
            nodes = sum(len(work.nodes) for work in works)
            raise UsageError(
                f"{len(works)} jobs, and this cluster holds {most} (MaxJobCount); --set run.pack={-(-nodes // most)}"
            )
        for resources in dict.fromkeys(work.resources for work in works):
            script = "#!/bin/sh\n" + "\n".join(self._directives(resources)) + "\ntrue\n"
            done = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=120)
            if done.returncode:
                raise UsageError(f"Slurm refuses a job with {resources}: {_last_line(done.stderr)}")

    def submit(self, works: Sequence[Work], run: Path) -> Mapping[str, Ticket]:
        """Arrays for works of one level, benchmark, model and seed, each after those that it needs."""
        folder = run.resolve() / WORKS
        for work in works:
            work.write(run, self.worker)
        tickets: dict[str, Ticket] = {}
        for array in self._arrays(works):
            name = f"ub-{run_name(run)}-{secrets.token_hex(6)}"
            files = [str(file_of(run.resolve(), work.id)) for work in array]
            write_bytes(folder / f"{name}.list", "".join(f"{file}\n" for file in files).encode())
            needed = sorted({self._jobs[need] for work in array for need in work.needs if need in self._jobs})
            job = self._submit_array(folder, name, array, needed)
            for place, work in enumerate(array):
                self._jobs[work.id] = job
                tickets[work.id] = f"{job}_{place}"
        self._logs = folder
        return tickets

    def find(self, run: Path) -> Mapping[str, Ticket]:
        """The works whose tasks are in the queue."""
        self._see_commands()
        folder = run.resolve() / WORKS
        self._logs = folder
        found: dict[str, Ticket] = {}
        if not folder.is_dir():
            return found
        lists: dict[str, list[str]] = {}
        for job, place, name, state, _, _ in _queue("--me"):
            if not name.startswith(f"ub-{run_name(run)}-") or state in ENDED | LOST:
                continue
            if name not in lists:
                path = folder / f"{name}.list"
                lists[name] = [Path(line).stem for line in path.read_text().splitlines()] if path.exists() else []
            if place.isdigit() and int(place) < len(lists[name]):
                work = lists[name][int(place)]
                found[work] = f"{job}_{place}"
                self._jobs[work] = job
        return found

    def poll(self, tickets: Sequence[Ticket], seconds: float) -> Mapping[Ticket, TicketState]:
        """How tasks stand. Between two questions to Slurm the tasks that run count as running."""
        time.sleep(seconds)
        if time.monotonic() - self._asked >= self._pause:
            before = dict(self._known)
            self._look(tickets)
            unchanged = before == self._known
            self._pause = min(LOOK[1], self._pause * 1.5) if unchanged else LOOK[0]
            self._asked = time.monotonic()
        return {ticket: self._known[ticket] for ticket in tickets if ticket in self._known}

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """``scancel``, and wait until the tasks are gone."""
        names = [str(ticket) for ticket in tickets]
        for begin in range(0, len(names), 500):
            _ask("scancel", *names[begin : begin + 500])
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self._look(tickets)
            # Those that Slurm has not answered for yet are unknown.
            if all(ticket in self._known and self._known[ticket].over for ticket in tickets):
                return
            time.sleep(LOOK[0])

    def _look(self, tickets: Sequence[Ticket]) -> None:
        jobs = sorted({str(ticket).partition("_")[0] for ticket in tickets})
        try:
            rows = [
                row for begin in range(0, len(jobs), 200) for row in _queue("-j", ",".join(jobs[begin : begin + 200]))
            ]
        except UsageError:
            # Slurm does not answer; what runs goes on, and its results show in the run folder.
            return
        states = {f"{job}_{place}": (state, node, reason) for job, place, _, state, node, reason in rows}
        for ticket in tickets:
            self._known[ticket] = self._state(str(ticket), *states.get(str(ticket), ("", "", "")))

    def _state(self, ticket: str, state: str, node: str, reason: str) -> TicketState:
        log = self._logs / f"{ticket}.log"
        shown = str(log) if log.exists() else ""
        if state in WAITING:
            return TicketState("waiting", reason)
        if state in LOST:
            return TicketState("lost", f"Slurm: {state}", node, shown)
        if state and state not in ENDED:
            return TicketState("running", "", node, shown)
        if state == "CANCELLED":
            return TicketState("cancelled", "its job was cancelled", node, shown)
        if state in FAULTS:
            status, words = FAULTS[state]
            return TicketState("ended", words, node, shown, status)
        if state == "FAILED":
            return self._failed(ticket, node, reason, shown)
        # Done, or so long ago that Slurm has forgotten.
        return TicketState("ended", "" if state else "Slurm no longer knows its job", node, shown)

    def _failed(self, ticket: str, node: str, reason: str, log: str) -> TicketState:
        code = re.search(r"ExitCode=(\d+):(\d+)", _ask("scontrol", "show", "job", ticket, "-o", check=False))
        exit_code, killed_by = (int(code[1]), int(code[2])) if code else (0, 0)
        if exit_code == AGAIN:
            return TicketState("lost", "it was stopped, or what it needs has not ended", node, log)
        if exit_code in CANNOT_START and log:
            why = _last_line(Path(log).read_text(errors="replace"))
            return TicketState(
                "cancelled", f"machine {node} cannot start {sys.executable} ({why}); {OTHER_MACHINES}", node
            )
        if not log:
            seen = f"machine {node} does not see {self._logs}" if node else "its log could not be written"
            return TicketState("cancelled", f"{seen}; choose a run folder that all machines see with --out", node)
        if re.search("exceeded memory limit|oom.kill", Path(log).read_text(errors="replace"), re.I):
            # Where memory is watched and not confined, Slurm has no state of its own for it.
            status, words = FAULTS["OUT_OF_MEMORY"]
            return TicketState("ended", words, node, log, status)
        cause = f"ended with exit code {exit_code}" if exit_code else f"was killed by signal {killed_by}"
        return TicketState("ended", f"its job {cause} ({reason})", node, log)

    def _arrays(self, works: Sequence[Work]) -> list[Sequence[Work]]:
        """Works in arrays, whose needs are in earlier ones, each as large as the cluster allows."""

        def grouped(fine: bool) -> list[list[Work]]:
            groups: dict[tuple[object, ...], list[Work]] = {}
            for work in works:
                spec = work.nodes[0].spec
                group = (spec.benchmark.name, spec.model.name, spec.seed) if fine else ()
                groups.setdefault((work.level, work.resources, group), []).append(work)
            return list(groups.values())

        groups = grouped(fine=True)
        if len(groups) > ARRAYS:
            groups = grouped(fine=False)
        size = _configured("MaxArraySize", 1001) - 1
        pieces = [group[begin : begin + size] for group in groups for begin in range(0, len(group), size)]
        return sorted(pieces, key=lambda piece: piece[0].level)

    def _submit_array(self, folder: Path, name: str, works: Sequence[Work], needed: Sequence[str]) -> str:
        at_once = min(self._settings.jobs, max(len(work.nodes) for work in works))
        directives = [
            *self._directives(works[0].resources, at_once),
            f"#SBATCH --job-name={name}",
            f"#SBATCH --array=0-{len(works) - 1}",
            f"#SBATCH --output={folder}/%A_%a.log",
            "#SBATCH --open-mode=append",
            "#SBATCH --requeue",
            *([f"#SBATCH --dependency=afterany:{':'.join(needed)}"] if needed else []),
        ]
        script = SCRIPT.format(
            directives="\n".join(directives),
            lines="\n".join(line for line in self._settings.slurm.lines if not line.startswith("#SBATCH")),
            list=shlex.quote(str(folder / f"{name}.list")),
            python=shlex.quote(sys.executable),
        )
        write_bytes(folder / f"{name}.sh", script.encode())
        return _submitted(folder / f"{name}.sh", name)

    def _directives(self, resources: Resources, at_once: int = 1) -> list[str]:
        settings = self._settings.slurm
        megabytes = round(1024 * (resources.memory * at_once + RUNNER)) if resources.memory else 0
        return [
            f"#SBATCH {option}"
            for option, given in {
                f"--partition={settings.partition}": settings.partition,
                f"--account={settings.account}": settings.account,
                "--ntasks=1": True,
                f"--cpus-per-task={resources.processors * at_once}": resources.processors,
                f"--gres=gpu:{resources.gpus}": resources.gpus,
                f"--mem={megabytes}": megabytes,
                f"--time={max(1, round(resources.hours * 60))}": resources.hours,
            }.items()
            if given
        ] + [line for line in settings.lines if line.startswith("#SBATCH")]

    def _see_commands(self) -> None:
        paths = os.environ.get("PATH", "").split(os.pathsep)
        for command in COMMANDS:
            if not any(os.access(Path(path) / command, os.X_OK) for path in paths):
                raise UsageError(
                    f"--executor slurm: no {command} here; submit where Slurm's commands are, or use --executor local"
                )


def _submitted(script: Path, name: str) -> str:
    """The id of the array that a script comes to, submitted once, however often Slurm must be asked."""
    end = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            return done.stdout.strip().partition(";")[0]
        if not _is_passing(done.stderr) or time.monotonic() > end:
            raise UsageError(f"sbatch refuses {script}: {_last_line(done.stderr)}")
        time.sleep(LOOK[0])
        # An answer that did not come in time says nothing of whether the job was taken.
        taken = next((job for job, _, known, *_ in _queue("--me") if known == name), "")
        if taken:
            return taken


def _queue(*words: str) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Tasks: job, place in the array, name, state, machine, reason. Raises UsageError where Slurm does not answer."""
    text = _ask("squeue", "-h", "-r", "--states=all", "-o", "%F|%K|%j|%T|%N|%r", *words)
    for line in text.splitlines():
        job, place, name, state, node, reason = line.split("|", 5)
        yield job, place, name, state, node, reason


def _ask(*words: str, check: bool = True) -> str:
    """What a command of Slurm prints; asks again while the controller is away.

    Raises:
        UsageError: it fails.
    """
    end = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        if done.returncode == 0 or not check or "Invalid job id" in done.stderr:
            return done.stdout
        if not _is_passing(done.stderr) or time.monotonic() > end:
            raise UsageError(f"{words[0]}: {_last_line(done.stderr)}")
        time.sleep(LOOK[0])


def _is_passing(said: str) -> bool:
    """Whether a complaint is of a controller that is away or too busy."""
    return bool(re.search(r"contact slurm controller|temporarily|timed out|Connection refused|try again", said, re.I))


def _configured(key: str, otherwise: int) -> int:
    found = re.search(rf"^{key}\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.M)
    return int(found[1]) if found else otherwise


def _option(name: str, value: str) -> Iterable[str]:
    return (name, value) if value else ()


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2].removeprefix("sbatch: ").removeprefix("error: ")
