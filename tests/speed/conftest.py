"""Races of the engine against the same work done plainly, in one process, in alternating order, with equal results.

What is gated is the median of the ratios of neighbouring measurements: other work on the machine slows both. The
model has 4 layers of 256 units and a vocabulary of 49,152; data are generated. ``UNLEARNBENCH_SPEED_MODEL`` and
``UNLEARNBENCH_SPEED_TOFU`` name a model's folder and a folder of TOFU's tables to race on instead, and
``UNLEARNBENCH_SPEED_LIMIT`` the rows of each part; ``UNLEARNBENCH_SPEED_ROUNDS`` is the number of measurements.
"""

from __future__ import annotations

import gc
import statistics
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import psutil
import pytest

HERE = Path(__file__).parent
# The suite's own modules, plain.py and workload.py.
sys.path.insert(0, str(HERE))
from workload import LIMIT, REAL_MODEL, ROUNDS, Work, prepared, untrained  # noqa: E402

GATES = tomllib.loads((HERE / "gates.toml").read_text())


class Peak:
    """The most resident memory of this process while a block runs, in bytes."""

    def __enter__(self) -> Peak:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, me.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.fixture
def race(benchmark, gate):
    """``race(stage, ours, plain, equal)``: both give equal results, and ours is as much faster as its gate says."""

    def run(stage, ours, plain, equal, rounds=ROUNDS):
        ours()  # what is measured once for a model class or a process is no part of a stage
        seconds = {"ours": [], "plain": []}
        peaks = {"ours": [], "plain": []}
        results = {}

        def timed(which, work):
            gc.collect()
            with Peak() as peak:
                start = time.perf_counter()
                results[which] = work()
                seconds[which].append(time.perf_counter() - start)
            peaks[which].append(peak.bytes)

        def first():
            if len(seconds["ours"]) % 2 == 0:
                timed("plain", plain)

        def last():
            if len(seconds["plain"]) < len(seconds["ours"]):
                timed("plain", plain)

        benchmark.group = stage
        benchmark.pedantic(lambda: timed("ours", ours), setup=first, teardown=last, rounds=rounds)
        equal(results["ours"], results["plain"])
        ratios = sorted(p / o for p, o in zip(seconds["plain"], seconds["ours"], strict=True))
        found = statistics.median(ratios)
        benchmark.extra_info |= {
            "ratios": ratios,
            "plain_seconds": statistics.median(seconds["plain"]),
            "ours_seconds": statistics.median(seconds["ours"]),
            "plain_peak_bytes": max(peaks["plain"]),
            "ours_peak_bytes": max(peaks["ours"]),
        }
        memory = f"{max(peaks['ours']) / 2**20:.0f} MiB against {max(peaks['plain']) / 2**20:.0f}"
        gate(stage, found, f"{stage}, from {ratios[0]:.2f} to {ratios[-1]:.2f}; {memory}", benchmark)

    return run


@pytest.fixture
def gate(request):
    """``gate(stage, ratio, line, benchmark)``: prints what was found past pytest's capture, and holds the ratio."""

    def judge(stage: str, ratio: float, line: str, benchmark: Any) -> None:
        benchmark.extra_info |= {"stage": stage, "ratio": ratio, "gate": GATES[stage]}
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{ratio:6.2f} ×  {line} (gate {GATES[stage]:g})", flush=True)
        assert ratio >= GATES[stage], f"{stage}: {ratio:.2f}, its gate is {GATES[stage]}"

    return judge


@pytest.fixture(scope="session")
def tofu_work() -> Work:
    """TOFU forget01 whole, or its first rows where a limit is set."""
    benchmark, task = prepared("tofu-forget01", max_new_tokens=200 if REAL_MODEL else 32, limit=LIMIT)
    return Work(untrained(), benchmark, task)
