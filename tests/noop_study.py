"""A study whose nodes do nothing, run by an executor that is tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from noop_worker import content_of
from slurm_cluster import wait_for

from unlearnbench.records.run_folder import read_plan, read_status

TESTS = Path(__file__).parent


def write_study(folder: Path, cells: int) -> Path:
    """The study's file: so many cells of one method, with two reference models and their own two cells."""
    seeds = f"{{ reference = [0], unlearning = {cells} }}" if cells > 1 else "[0]"
    path = folder / "s.toml"
    path.write_text(
        f'[study]\nname = "s"\nmethods = ["ga"]\nbenchmarks = ["tofu-forget05"]\nmodels = ["tiny"]\n'
        f'seeds = {seeds}\n[data]\nsource = "generated"\nscale = "quick"\n'
    )
    return path


def behave(runs: Path, **behaviour: object) -> None:
    """Tell the nodes of run folders in ``runs`` how to behave."""
    runs.mkdir(parents=True, exist_ok=True)
    (runs / "behaviour.json").write_text(json.dumps(behaviour))


def begun(runs: Path) -> Counter[str]:
    """How often each node of the runs was begun."""
    path = runs / "executions.txt"
    return Counter(path.read_text().split()) if path.exists() else Counter()


def variables(cache: Path) -> dict[str, str]:
    """What the environment of a run needs besides."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "UNLEARNBENCH_CACHE": str(cache)}


class NoopStudy:
    """Runs the study by the command line; it has as many cells of one method as asked for, and four nodes besides.

    Args:
        command: the command line of a folder.
        executor: the executor's name.
        environment: what the executor needs to find its cluster.
    """

    def __init__(self, command, executor, environment=None):
        self._command, self._executor = command, executor
        self.run = command.folder / "runs" / "s"
        self.environment = {**(environment or {}), **variables(command.folder / "cache")}

    def words(self, cells, *more):
        """Arguments of the run."""
        write_study(self._command.folder, cells)
        return ("run", "s.toml", "--plugin", str(TESTS / "noop_plugin.py"), "--executor", self._executor, *more)

    def __call__(self, cells, *more, **behaviour):
        """Run it to its end; nodes behave as told."""
        self.behave(**behaviour)
        return self._command(*self.words(cells, *more), **self.environment)

    def start(self, cells, *more, python=sys.executable, **behaviour):
        """The process of a run."""
        self.behave(**behaviour)
        return subprocess.Popen(
            [str(python), "-m", "unlearnbench", *self.words(cells, *more)],
            cwd=self._command.folder,
            env={**self._command.environment, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def behave(self, **behaviour):
        behave(self.run.parent, **behaviour)

    @property
    def begun(self):
        """How often each node was begun."""
        return begun(self.run.parent)

    @property
    def statuses(self):
        """How each node ended, by its title."""
        found = {}
        for node in read_plan(self.run).nodes:
            status = read_status(self.run / ("cells" if node.kind == "cell" else "models") / node.key)
            found[node.title] = str(status.status) if status else "pending"
        return found

    def whole(self):
        """Whether every cell has the record that belongs to it, and nothing is left behind."""
        for node in read_plan(self.run).nodes:
            if node.kind == "cell":
                folder = self.run / "cells" / node.key
                record, samples = content_of(node.key)
                assert (folder / "record.json").read_bytes() == record
                assert (folder / "samples.jsonl.gz").read_bytes() == samples
        assert not list(self.run.glob("*/*~*"))
        return True


def check_followed_and_kept(study):
    """A study runs to its end, every node once, and is kept when it is run again."""
    done = study(6, "--json")
    # What renders pages finds records that are none.
    assert done.code in (0, 4), done.err
    assert study.whole()
    assert set(study.statuses.values()) == {"done"}
    assert set(study.begun.values()) == {1}
    kept = study(6, "--json")
    assert kept.err.count("(kept)") == len(study.begun)
    assert set(study.begun.values()) == {1}


def check_goes_on_when_who_follows_dies(study, seconds):
    """Nodes go on by themselves, and the same command follows them without submitting any a second time."""
    process = study.start(8, "--set", "run.pack=1", seconds=0.5)
    wait_for(lambda: len(study.begun) > 5, seconds)
    process.kill()
    process.communicate()
    study(8, "--set", "run.pack=1", seconds=0.5)
    assert study.whole()
    assert set(study.begun.values()) == {1}
