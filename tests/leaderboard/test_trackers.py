"""Trackers: what of a run they are told, by each of them offline where it is installed."""

from __future__ import annotations

import json
import math
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest

from unlearnbench.errors import UsageError
from unlearnbench.leaderboard.trackers import TRACKERS, TrackerObserver, tell
from unlearnbench.records.run_folder import stored_cells


class Recorder:
    """A module of wandb's shape that keeps what it is told."""

    def __init__(self):
        self.module = ModuleType("trackio")
        self.runs = []
        self.module.init = lambda **facts: self.runs.append(SimpleNamespace(facts=facts, logged=[], over=False))
        self.module.log = lambda values, step: self.runs[-1].logged.append((step, values))
        self.module.Table = lambda columns, data: SimpleNamespace(columns=columns, data=data)
        self.module.finish = lambda: setattr(self.runs[-1], "over", True)


@pytest.fixture
def recorder(monkeypatch):
    found = Recorder()
    monkeypatch.setitem(sys.modules, "trackio", found.module)
    monkeypatch.setenv("TRACKIO_DIR", "anywhere")
    return found


def test_a_tracker_has_every_loss_score_cost_and_public_sample_of_a_cell(recorder, small_run):
    run, _ = small_run
    observer = TrackerObserver("trackio", run)
    cell = next(cell for cell in stored_cells(run) if cell.identity.method == "npo")
    observer.unlearnbench_cell_finished(cell.key, {"status": "done", "kept": False})
    (told,) = recorder.runs
    record = cell.record
    assert (told.facts["project"], told.facts["name"], told.facts["group"]) == ("small", record.cell, "tofu-forget10")
    assert told.facts["config"]["beta"] == 0.1
    assert told.over
    losses = [(step, values["loss"]) for step, values in told.logged if "loss" in values]
    assert losses == list(enumerate(record.losses, 1))
    values = {name: value for _, logged in told.logged for name, value in logged.items()}
    finite = {name for name, entry in record.scores.items() if math.isfinite(entry.value)}
    assert {name.removeprefix("scores/") for name in values if name.startswith("scores/")} == finite
    assert values["cost/optimiser steps"] == record.cost.optimiser_steps
    assert values["samples"].columns == ["part", "prompt", "truth", "generation"]
    assert len(values["samples"].data) == 100


def test_cells_that_were_kept_failed_or_are_gone_are_not_told_twice(recorder, small_run):
    observer = TrackerObserver("trackio", small_run[0])
    observer.unlearnbench_cell_finished("any", {"status": "done", "kept": True})
    observer.unlearnbench_cell_finished("any", {"status": "failed", "kept": False})
    assert not recorder.runs


def test_a_run_ends_for_the_tracker_where_telling_it_fails(recorder, small_run):
    cell = stored_cells(small_run[0])[0]
    recorder.module.log = lambda values, step: 1 / 0
    observer = TrackerObserver("trackio", small_run[0])
    with pytest.raises(ZeroDivisionError):
        tell(observer._tracker, "p", cell.record, cell.folder)
    assert recorder.runs[0].over


def test_an_unknown_tracker_and_one_that_is_not_installed_are_named_with_the_remedy(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match=r"no tracker 'comet'; there are trackio, wandb, mlflow"):
        TrackerObserver("comet", tmp_path)
    for name in TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UsageError, match=rf"pip install 'unlearnbench\[{name}\]'"):
            TrackerObserver(name, tmp_path)


def test_the_command_line_tells_a_tracker_of_what_it_runs_and_not_of_what_it_kept(command):
    (command.folder / "trackio.py").write_text(
        "import json\nruns = []\n"
        "def init(**facts): runs.append(facts['name'])\n"
        "def log(values, step): pass\n"
        "def Table(columns, data): return None\n"
        "def finish(): open('told.txt', 'a').write(runs[-1] + '\\n')\n"
    )
    words = command.study("-m", "ga", "-b", "tofu-forget01", "--tracker", "trackio")
    done = command(*words, PYTHONPATH=str(command.folder))
    assert done.code == 0, done.err
    told = (command.folder / "told.txt").read_text().split()
    assert sorted(name.partition("--")[0] for name in told) == ["ga", "original", "retained"]
    assert command(*words, PYTHONPATH=str(command.folder)).code == 0
    assert (command.folder / "told.txt").read_text().split() == told
    missing = command(*words[:-1], "mlflow", PYTHONPATH="")
    assert missing.code == 4 or "mlflow" in sys.modules


@pytest.mark.parametrize("name", list(TRACKERS))
def test_each_tracker_takes_a_cell_offline(name, small_run, tmp_path, monkeypatch):
    # Looked for, not imported: trackio reads its folder from the environment when it is imported.
    if not find_spec(name):
        pytest.skip(f"{name} is not installed")
    for variable in ("TRACKIO_DIR", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    observer = TrackerObserver(name, tmp_path)
    cell = next(cell for cell in stored_cells(small_run[0]) if cell.identity.method == "npo")
    tell(observer._tracker, "project", cell.record, cell.folder)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    text = b"".join(path.read_bytes() for path in kept)
    assert b"model_utility" in text or any("model_utility" in str(path) for path in kept)
    assert json.dumps(cell.record.cell).encode() in text or cell.record.cell.encode() in text
