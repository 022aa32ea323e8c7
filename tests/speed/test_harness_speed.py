"""What the harness itself costs: starting, planning, resuming, and a cell that does nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from workload import ROUNDS

from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.record import SAMPLES
from unlearnbench.running.run_store import finished, folder_of, write_plan
from unlearnbench.storage import read_sealed, write_sealed

CELLS = 10_000
NOTHING = '''
from dataclasses import dataclass, field
from typing import ClassVar
from unlearnbench import DataSpec, BenchmarkSpec, Measurement, MethodSpec, Metric, Score, Task, Example
from unlearnbench.domain import Requires

@dataclass(frozen=True)
class Idle:
    """Changes nothing."""
    name: ClassVar[str] = "idle"
    requires: ClassVar[Requires] = Requires()
    number: int = 0

    def unlearn(self, model, tokenizer, data, ctx):
        return model

def unlearnbench_methods():
    return [MethodSpec(f"idle-{n}", f"{__name__}:Idle", "nothing", fixed={"number": n}) for n in range(40)]
'''


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def process(*words):
    return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)


@pytest.mark.parametrize(
    "words", [("--help",), ("list", "methods"), ("show", "npo"), ("plan", "pre-merge")], ids=lambda words: words[0]
)
def test_a_cold_start_is_far_from_importing_torch(benchmark, gate, words):
    """A command that looks against the imports that it must not make."""
    ours, plain = [], []
    benchmark.pedantic(lambda: ours.append(timed(process("-m", "unlearnbench", *words))),
                       setup=lambda: plain.append(timed(process("-c", "import torch, transformers, datasets"))),
                       rounds=ROUNDS)  # fmt: skip
    gate(f"cold start of {words[0]}", statistics.median(p / o for p, o in zip(plain, ours, strict=True)),
         f"`unlearnbench {' '.join(words)}`: {statistics.median(ours):.2f} s", benchmark)  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    study = check_study({
        "study": {"name": "many", "methods": ["all"], "benchmarks": ["tofu-forget05"], "models": ["tiny"],
                  "seeds": list(range(CELLS // 17 + 1))},
        "data": {"source": "generated", "scale": "quick"},
        "run": {"device": "cpu"},
    }, ())  # fmt: skip
    registry = load_plugins()
    make_plan(check_study({**study.raw, "study": {**study.raw["study"], "seeds": [0]}}, ()), registry)
    return study, registry


def test_a_plan_of_ten_thousand_cells(benchmark, gate, plan, tmp_path):
    """Planning and storing it, against writing and hashing as much JSON plainly."""
    study, registry = plan
    made = []

    def ours():
        made[:] = [make_plan(study, registry)]
        write_plan(tmp_path / "run", made[0])

    seconds = []
    benchmark.pedantic(lambda: seconds.append(timed(ours)), rounds=2)
    specs = [node.spec.model_dump(mode="json") for node in made[0].nodes]
    plain = timed(lambda: [json.dumps(spec, sort_keys=True) for spec in specs])
    assert len(made[0].cells) >= CELLS
    gate("plan of 10,000 cells", plain / min(seconds), f"plan of 10,000 cells: {min(seconds):.2f} s", benchmark)


def test_a_resume_of_ten_thousand_cells(benchmark, gate, plan, tmp_path, small_run):
    """Finding that all are finished and whole, against reading plainly what that takes."""
    study, registry = plan
    nodes = make_plan(study, registry).cells
    cell = next((small_run[0] / "cells").glob("npo--*"))
    left = read_sealed(cell / "status.json", "")
    for node in nodes:
        folder = folder_of(tmp_path, node)
        folder.mkdir(parents=True)
        for name in ("record.json", "spec.json", SAMPLES):
            shutil.copyfile(cell / name, folder / name)
        write_sealed(folder / "status.json", {**left, "content": node.content})
    kept, seconds = [], []
    benchmark.pedantic(
        lambda: seconds.append(timed(lambda: kept.append([finished(tmp_path, node, tmp_path) for node in nodes]))),
        rounds=2,
    )
    assert all(outcome.cached for outcome in kept[-1])
    folders = [folder_of(tmp_path, node) for node in nodes]

    def read():
        for folder in folders:
            hashlib.sha256((folder / SAMPLES).read_bytes()).hexdigest()
            for name in ("record.json", "spec.json", "status.json"):
                json.loads((folder / name).read_bytes())

    plain = timed(read)
    gate("resume of 10,000 cells", plain / min(seconds), f"resume of 10,000 cells: {min(seconds):.2f} s", benchmark)


def test_a_cell_that_does_nothing(benchmark, gate, command_in, tmp_path):
    """Forty methods that change nothing, one after another, against starting a process that imports what they need."""
    command = command_in(tmp_path)
    (tmp_path / "idle.py").write_text(NOTHING)
    idle = [word for n in range(40) for word in ("-m", f"idle-{n}")]
    small = ("--plugin", "idle.py", "--limit", "1", "--set", "benchmarks.*.max_new_tokens=1", "--set", "run.threads=1")
    found = {}

    def ours():
        done = command(*command.study(*idle, "-b", "tofu-forget05", "--name", "idle", *small, "--json"))
        assert done.code == 0, done.err
        found["records"] = done.json["records"]

    benchmark.pedantic(ours, rounds=1)
    cells = tmp_path / "runs" / "idle" / "cells"
    ended = sorted((folder / "status.json").stat().st_mtime_ns for folder in cells.glob("idle-*"))
    gaps = [(later - earlier) / 1e6 for earlier, later in pairwise(ended)]
    middle = statistics.median(gaps)
    costs = [r["cost"]["seconds"] for r in found["records"] if r["identity"]["method"].startswith("idle")]
    stages = ("load", "unlearn", "measure", "score")
    work = 1000 * statistics.median(sum(seconds[stage] for stage in stages) for seconds in costs)
    plain = 1000 * timed(process("-c", "import torch, transformers, datasets"))
    benchmark.extra_info |= {"milliseconds a cell": middle, "of them in its stages": work}
    line = f"a cell that does nothing: {middle:.0f} ms, of which its stages take {work:.0f} and the harness the rest"
    gate("cell that does nothing", plain / (middle - work), line, benchmark)


INTERVALS = """
[study]
name = "intervals"
methods = ["ga"]
benchmarks = ["tofu-forget05", "muse-news", "hp"]
models = ["tiny"]
seeds = [0]
[data]
source = "generated"
scale = "quick"
[benchmarks.muse-news]
chunk_tokens = 128
[benchmarks.hp]
chunk_tokens = 128
prefix_words = 24
response_words = 24
[run]
device = "cpu"
threads = 1
"""


def test_intervals_are_a_small_part_of_a_cell(benchmark, gate, command_in, tmp_path, monkeypatch):
    """A cell's time against what a thousand resamples add to its scoring, beside two; the worst of three benchmarks."""
    from unlearnbench.benchmarks.hp import metrics as of_hp
    from unlearnbench.benchmarks.tofu import metrics as of_tofu
    from unlearnbench.metrics import statistics as of_all
    from unlearnbench.records.recomputation import rescored
    from unlearnbench.results.opening import opened

    (tmp_path / "intervals.toml").write_text(INTERVALS)
    assert command_in(tmp_path)("run", "intervals.toml").code == 0
    registry, ratios, lines = load_plugins(), [], []

    def scoring(cell, results):
        return min(timed(lambda: rescored(cell.record, results.samples_of, registry)) for _ in range(5))

    def measured():
        with opened([tmp_path / "runs" / "intervals"]) as (results,):
            for cell in results.finished:
                if cell.record.identity.reference:
                    continue
                whole = scoring(cell, results)
                with monkeypatch.context() as patched:
                    for module in (of_all, of_tofu, of_hp):
                        patched.setattr(module, "RESAMPLES", 2)
                    bare = scoring(cell, results)
                seconds = sum(cell.record.cost.seconds[stage] for stage in ("load", "unlearn", "measure", "score"))
                ratios.append(seconds / max(whole - bare, 1e-6))
                lines.append(f"{cell.identity.benchmark} {1 / ratios[-1]:.1%}")

    benchmark.pedantic(measured, rounds=1)
    gate("cell beside its intervals", min(ratios), f"intervals' part of a cell: {', '.join(lines)}", benchmark)


def test_ten_thousand_rows_are_placed(benchmark, gate):
    """Ten seconds against what placing 10,000 rows by 1,000 resamples takes."""
    import numpy as np

    from unlearnbench.metrics.places import places

    rng = np.random.default_rng(0)
    true = rng.random(10_000)
    resamples = (true[:, None] + 0.05 * rng.standard_normal((10_000, 1_000), dtype=np.float32)).astype(np.float32)
    seconds = []
    benchmark.pedantic(lambda: seconds.append(timed(lambda: places(true, resamples))), rounds=3)
    gate("places of 10,000 rows", 10 / statistics.median(seconds),
         f"places of 10,000 rows: {statistics.median(seconds):.2f} s", benchmark)  # fmt: skip
