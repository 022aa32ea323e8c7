"""Each attempt at a node has a folder of its own, and becomes the node's result in one step: the first one wins."""

from __future__ import annotations

import pytest

from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.node_spec import read_spec
from unlearnbench.records.run_folder import read_status
from unlearnbench.running.executor import JobState, Slot
from unlearnbench.running.run_store import conclude_attempt, folder_of, new_attempt, remove_attempts, retire
from unlearnbench.running.scheduler import execute
from unlearnbench.storage import write_sealed


@pytest.fixture(scope="module")
def plan():
    study = {"methods": ["ga"], "benchmarks": ["tofu-forget05"], "models": ["tiny"], "seeds": [0]}
    return make_plan(check_study({"study": {"name": "s", **study}, "data": {"source": "generated"}}), load_plugins())


class Instant:
    """Every node ends at once, as ``status`` says; ``meanwhile`` is called with its folder while it runs."""

    def __init__(self, meanwhile=lambda folder: None, status="done"):
        self.meanwhile, self.status, self.folders = meanwhile, status, []

    def slots(self, settings):
        return [Slot("cpu", 1)]

    def submit(self, folder, slot):
        spec = read_spec(folder)
        self.folders.append(folder)
        (folder / "log.txt").write_text("mine")
        self.meanwhile(folder)
        if self.status:
            write_sealed(folder / "status.json", {"status": self.status, "content": spec.content, "reason": "mine"})
        return folder

    def poll(self, jobs, seconds):
        return {job: JobState(False, f"it was lost; see {job / 'log.txt'}") for job in jobs}

    def cancel(self, job):
        raise AssertionError("nothing oversteps a limit")


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def run_with(executor, plan, tmp_path):
    said = []
    outcomes = execute(tmp_path, plan, tmp_path / "cache", lambda outcome, *_: said.append(outcome), executor)
    assert sorted(outcome.node.key for outcome in said) == sorted(node.key for node in plan.nodes)
    return outcomes


def test_a_result_stands_where_it_belongs_only_once_it_is_whole(plan, tmp_path):
    seen = []

    def meanwhile(folder):
        key = read_spec(folder).key
        seen.append(key)
        assert folder.name.startswith(f"{key}~")
        assert not (folder.parent / key).exists()

    run_with(Instant(meanwhile), plan, tmp_path)
    assert sorted(seen) == sorted(node.key for node in plan.nodes)
    for node in plan.nodes:
        assert files(folder_of(tmp_path, node)) == ["log.txt", "spec.json", "status.json"]
    assert not list(tmp_path.glob("*/*~*"))


def test_of_two_attempts_that_live_at_once_the_first_to_end_is_the_result_and_whole(plan, tmp_path):
    def another(folder):
        other = folder.parent / f"{folder.name}0"
        other.mkdir()
        write_sealed(other / "status.json", {"status": "done", "reason": "theirs"})
        assert conclude_attempt(other, folder.parent / folder.name.partition("~")[0])

    outcomes = run_with(Instant(another, status="failed"), plan, tmp_path)
    for outcome in outcomes:
        result = folder_of(tmp_path, outcome.node)
        assert (outcome.status, outcome.reason) == ("done", "theirs")
        assert files(result) == ["status.json"], "nothing of the later attempt"
        assert read_status(result).reason == "theirs"
    assert not list(tmp_path.glob("*/*~*"))


def test_a_lost_attempt_leaves_a_status_that_names_the_log_where_it_then_lies(plan, tmp_path):
    first, *blocked = run_with(Instant(status=""), plan, tmp_path)
    result = folder_of(tmp_path, first.node)
    assert read_status(result).reason == f"it was lost; see {result / 'log.txt'}"
    assert (result / "log.txt").read_text() == "mine"
    cells = [outcome for outcome in blocked if outcome.node in plan.cells]
    assert cells
    for outcome in cells:
        assert read_status(folder_of(tmp_path, outcome.node)).reason.startswith("needs ")


def test_what_an_ended_run_left_unfinished_goes_and_an_earlier_result_is_replaced_whole(plan, tmp_path):
    node = plan.cells[0]
    left, result = new_attempt(tmp_path, node), folder_of(tmp_path, node)
    (left / "samples.jsonl.gz").write_text("half")
    old = new_attempt(tmp_path, node)
    (old / "record.json").write_text("of another attempt")
    write_sealed(old / "status.json", {"status": "failed"})
    assert conclude_attempt(old, result)
    run_with(Instant(), plan, tmp_path)
    assert not left.exists()
    assert files(result) == ["log.txt", "spec.json", "status.json"]


def test_an_attempt_never_replaces_a_result(plan, tmp_path):
    node = plan.cells[0]
    result = folder_of(tmp_path, node)
    retire(result)
    for number, first in enumerate((True, False, False)):
        attempt = new_attempt(tmp_path, node)
        (attempt / "status.json").write_text(str(number))
        assert conclude_attempt(attempt, result) is first
        assert not attempt.exists()
    assert (result / "status.json").read_text() == "0"
    retire(result)
    assert not result.exists()
    remove_attempts(tmp_path)
    assert files(tmp_path / "cells") == []
