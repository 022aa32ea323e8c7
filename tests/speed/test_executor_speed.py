"""What executors themselves cost for a study of 10,000 cells that do nothing, against what they may.

``UNLEARNBENCH_SPEED_CELLS`` is another number of cells. The cost of a cell is processor time of whoever follows, of
what runs nodes within allocations, and of the servers that nodes are forked from; nodes themselves and the daemons of
Slurm and Ray are not counted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
import pytest
from faults.bench import NODES_BESIDES, TESTS, is_cell
from noop_study import begun, behave, variables, write_study
from ray_cluster import RayCluster
from ray_cluster import missing as ray_missing
from slurm_cluster import SlurmCluster
from slurm_cluster import missing as slurm_missing

CELLS = int(os.environ.get("UNLEARNBENCH_SPEED_CELLS", "10000"))
MISSING = {"local": lambda: "", "slurm": slurm_missing, "ray": ray_missing}
# Words in the command of what is counted.
OURS = ("faults/runner.py", "unlearnbench run", "ray::", "multiprocessing.forkserver")


class Watch:
    """Processor seconds of the executor's own processes while a block runs: those of a cache, and Ray's workers."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._cache = environment["UNLEARNBENCH_CACHE"]

    def __enter__(self) -> Watch:
        self._seconds: dict[tuple[int, float], float] = {}
        self._kinds: dict[tuple[int, float], bool] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.seconds = sum(self._seconds.values())

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    known = process.pid, process.create_time()
                    # A process becomes another program after it was started.
                    if not self._kinds.get(known):
                        self._kinds[known] = self._counts(process)
                    if self._kinds[known]:
                        times = process.cpu_times()
                        self._seconds[known] = times.user + times.system

    def _counts(self, process: psutil.Process) -> bool:
        command = " ".join(process.cmdline())
        if not any(word in command for word in OURS) or is_cell(process):
            return False
        return process.environ().get("UNLEARNBENCH_CACHE") == self._cache or any(
            "ray::" in " ".join(one.cmdline()) for one in (process, *process.parents())
        )


@pytest.fixture(scope="module", params=sorted(MISSING))
def executor(request, tmp_path_factory):
    """An executor's name and the environment in which it finds its cluster."""
    why = MISSING[request.param]()
    if why:
        pytest.skip(why)
    home = tmp_path_factory.mktemp(request.param)
    clusters = {"local": nullcontext, "slurm": lambda: SlurmCluster(home), "ray": lambda: RayCluster(str(TESTS))}
    with clusters[request.param]() as cluster:
        yield request.param, getattr(cluster, "environment", {})


def test_ten_thousand_cells_that_do_nothing(executor, benchmark, gate, tmp_path):
    """Fifty milliseconds a cell; half a minute to submit all; three seconds to find what is submitted or done."""
    name, environment = executor
    write_study(tmp_path, CELLS)
    behave(tmp_path / "runs")
    environment = {**os.environ, **environment, **variables(tmp_path / "cache")}
    cell = f"cell of many, {name}"

    def run() -> float:
        """Processor seconds of whoever follows: what is found done is a matter of reading."""
        words = [str(TESTS / "faults" / "runner.py"), "s.toml", "runs/s", f"noop-{name}", "2", "0"]
        before = psutil.Process().cpu_times()
        _call(words, tmp_path, environment)
        after = psutil.Process().cpu_times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    def detach() -> float:
        """Seconds of the command, which waits for Slurm."""
        words = ["-m", "unlearnbench", "run", "s.toml", "--plugin", str(TESTS / "noop_plugin.py"), "--detach"]
        began = time.perf_counter()
        _call([*words, "--executor", f"noop-{name}"], tmp_path, environment)
        return time.perf_counter() - began

    with Watch(environment) as watch:
        if name == "slurm":
            submitted, attached = detach(), detach()
        benchmark.pedantic(run, rounds=1)
    assert set(begun(tmp_path / "runs").values()) == {1}
    assert len(begun(tmp_path / "runs")) == CELLS + NODES_BESIDES
    resumed = run()
    benchmark.extra_info |= {"cells": CELLS, "milliseconds": 1e3 * watch.seconds / CELLS, "resumed": resumed}
    gate(cell, 50e-3 * CELLS / watch.seconds, f"{1e3 * watch.seconds / CELLS:.1f} ms a {cell}", benchmark)
    gate("resume of many cells", 3 / resumed, f"resume of {CELLS} cells, {name}: {resumed:.1f} s", benchmark)
    if name == "slurm":
        gate("submission of many cells", 30 / submitted, f"submission of {CELLS} cells: {submitted:.1f} s", benchmark)
        gate("attachment to many cells", 3 / attached, f"attachment to {CELLS} cells: {attached:.1f} s", benchmark)


def _call(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
