"""Each attempt at a node has a folder of its own, and becomes the node's result in one step: the first one wins."""

from __future__ import annotations

import json
import os
import threading
import time

import psutil
import pytest
from noop_worker import WORKER

from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.run_folder import read_status
from unlearnbench.running.attempts import Attempts, conclude, orphans, remove_orphans
from unlearnbench.running.node_pool import NodePool, Slot
from unlearnbench.running.node_processes import GRACE
from unlearnbench.running.run_store import folder_of
from unlearnbench.storage import write_sealed


@pytest.fixture(scope="module")
def plan():
    study = {"methods": ["ga"], "benchmarks": ["tofu-forget05"], "models": ["tiny"], "seeds": [0]}
    return make_plan(check_study({"study": {"name": "s", **study}, "data": {"source": "generated"}}), load_plugins())


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def pooled(plan, run, **behaviour):
    """A pool of the plan's nodes in a run folder, with nodes that behave as told."""
    (run.parent / "behaviour.json").write_text(json.dumps(behaviour))
    pool = NodePool(run, run.parent / "cache", plan.study.run, [Slot("cpu", 1)], WORKER)
    pool.add(plan.nodes)
    return pool


def statuses(plan, run, meanwhile=lambda pool: None, **behaviour):
    """How the nodes of a plan ended in a run folder; ``meanwhile`` is called again and again."""
    with pooled(plan, run, **behaviour) as pool:
        while pool.busy:
            pool.step()
            meanwhile(pool)
    return [read_status(folder_of(run, node)) for node in plan.nodes]


def test_a_result_stands_where_it_belongs_only_once_it_is_whole(plan, tmp_path):
    seen = set()

    def meanwhile(pool):
        for key in pool.running:
            node = next(node for node in plan.nodes if node.key == key)
            assert not folder_of(tmp_path / "run", node).exists()
            assert list(folder_of(tmp_path / "run", node).parent.glob(f"{key}~*"))
            seen.add(key)

    found = statuses(plan, tmp_path / "run", meanwhile, seconds=0.1)
    assert {status.status for status in found} == {"done"}
    assert seen == {node.key for node in plan.nodes}
    for node in plan.cells:
        result = folder_of(tmp_path / "run", node)
        assert files(result) == ["log.txt", "record.json", "samples.jsonl.gz", "spec.json", "status.json"]
    assert not list(tmp_path.glob("run/*/*~*"))
    assert not list(tmp_path.glob("run/workers")), "no heartbeat is left"


def test_of_two_attempts_that_live_at_once_the_first_to_end_is_the_result_and_whole(plan, tmp_path):
    run = tmp_path / "run"
    with Attempts(run) as others:

        def meanwhile(pool):
            for node in plan.nodes:
                if node.key in pool.running and not folder_of(run, node).exists():
                    other = others.new(node)
                    write_sealed(other / "status.json", {"status": "done", "reason": "theirs", "content": node.content})
                    assert conclude(other, folder_of(run, node))

        found = statuses(plan, run, meanwhile, seconds=0.3)
    assert [(status.status, status.reason) for status in found] == [("done", "theirs")] * len(plan.nodes)
    for node in plan.nodes:
        assert files(folder_of(run, node)) == ["status.json"], "nothing of the later attempt"
    assert not list(run.glob("*/*~*"))


def test_a_node_that_has_ended_is_not_run_again_whoever_ran_it(plan, tmp_path):
    """As when a cluster runs a job a second time."""
    run = tmp_path / "run"
    first = statuses(plan, run, ends={"ga": "failed"})
    assert [status.status for status in first].count("failed") == 1
    begun = (tmp_path / "executions.txt").read_text()
    assert [status.started for status in statuses(plan, run)] == [status.started for status in first]
    assert (tmp_path / "executions.txt").read_text() == begun


def test_a_dead_process_leaves_a_status_that_names_the_log_where_it_then_lies(plan, tmp_path):
    run = tmp_path / "run"
    found = statuses(plan, run, ends={"original model": "dies"})
    died = next(node for node in plan.nodes if "original model" in node.title)
    result = folder_of(run, died)
    assert read_status(result).reason == f"its process was killed by signal 9; see {result / 'log.txt'}"
    assert "began on" in (result / "log.txt").read_text()
    blocked = [status.reason for node, status in zip(plan.nodes, found, strict=True) if died.key in node.needs]
    assert blocked
    assert all(reason.startswith(f"needs {died.title}, which ended as failed: its process") for reason in blocked)


def test_a_process_whose_end_nobody_tells_is_missed(plan, tmp_path):
    """As when the server that forks processes cannot write that one ended."""
    run = tmp_path / "run"
    found = []
    with pooled(plan, run, ends={"original model": "hangs"}) as pool:
        while not list(run.glob("models/original*~*/log.txt")):
            found += pool.step()
        (log,) = run.glob("models/original*~*/log.txt")
        (cell,) = [one for one in psutil.Process().children(recursive=True) if _writes(one, log)]
        server = cell.parent()
        # It does not look at its children while it stands still.
        server.suspend()
        cell.kill()
        ended = len(found)
        end = time.monotonic() + 3 * GRACE
        while len(found) == ended and time.monotonic() < end:
            found += pool.step()
        server.resume()
        while pool.busy:
            found += pool.step()
    (lost,) = [node for node in found if "original model" in node.title]
    assert read_status(folder_of(run, lost)).reason.startswith("its process is gone; see ")


def _writes(process, log):
    try:
        return any(file.path == str(log) for file in process.open_files())
    except psutil.Error:
        return False


def test_what_dead_processes_left_goes_and_what_is_under_way_stays(plan, tmp_path):
    run = tmp_path / "run"
    node = plan.cells[0]
    with Attempts(run) as mine:
        under_way = mine.new(node)
        child = os.fork()
        if not child:
            # A process that is killed with an attempt on its hands.
            with Attempts(run) as theirs:
                (theirs.new(node) / "samples.jsonl.gz").write_text("half")
                os._exit(0)
        os.waitpid(child, 0)
        (left,) = orphans(run, [node])
        assert files(left) == ["samples.jsonl.gz"]
        remove_orphans(run, [node])
        assert not left.exists()
        assert under_way.exists()


def test_an_attempt_never_replaces_a_result(plan, tmp_path):
    node = plan.cells[0]
    result = folder_of(tmp_path, node)
    with Attempts(tmp_path) as attempts:
        attempts.retire(node)
        for number, first in enumerate((True, False, False)):
            attempt = attempts.new(node)
            (attempt / "status.json").write_text(str(number))
            assert conclude(attempt, result) is first
            assert not attempt.exists()
        assert (result / "status.json").read_text() == "0"
        attempts.retire(node, lambda folder: (folder / "status.json").read_text() == "0")
        assert (result / "status.json").read_text() == "0", "one that came since is put back"
        attempts.retire(node)
        assert files(tmp_path / "cells") == []


def test_of_many_that_conclude_at_once_one_wins(plan, tmp_path):
    node = plan.cells[0]
    with Attempts(tmp_path) as attempts:
        folders = [attempts.new(node) for _ in range(40)]
        for number, folder in enumerate(folders):
            (folder / "status.json").write_text(str(number))
        won = []
        threads = [
            threading.Thread(target=lambda folder=folder: won.append(conclude(folder, folder_of(tmp_path, node))))
            for folder in folders
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert won.count(True) == 1
    assert files(tmp_path / "cells") == [node.key]
