"""Works: how a plan's nodes are packed, what they ask for, and that a file gives back what was written."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from noop_worker import WORKER

from unlearnbench.data.model_folder import REFERENCE, prepared_folder
from unlearnbench.errors import RecordError, UsageError
from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.code_digest import engine_digest
from unlearnbench.records.node_spec import CellSpec, Resources, read_spec, write_spec
from unlearnbench.records.record import read_record
from unlearnbench.running.local_executor import slots_here
from unlearnbench.running.node_pool import NodePool
from unlearnbench.running.run_nodes import run_nodes
from unlearnbench.running.works import as_works, described, file_of, keys_of, read_work
from unlearnbench.worker.setup import check_environment


def planned(**tables):
    head = {"methods": ["ga", "npo"], "benchmarks": ["tofu-forget01", "tofu-forget05"], "models": ["tiny"]}
    raw = {"study": {"name": "s", **head}, "data": {"source": "generated", "scale": "quick"}, **tables}
    return make_plan(check_study(raw), load_plugins())


def test_a_work_is_of_one_level_benchmark_and_needs_the_works_of_what_its_nodes_need():
    plan = planned()
    works = as_works(plan, plan.nodes, {})
    assert sorted(node.key for work in works for node in work.nodes) == sorted(node.key for node in plan.nodes)
    of_node = {node.key: work.id for work in works for node in work.nodes}
    place = {work.id: number for number, work in enumerate(works)}
    for work in works:
        assert len({(node.kind, node.spec.benchmark.name, node.spec.seed) for node in work.nodes}) == 1
        needed = {of_node[key] for node in work.nodes for key in (*node.needs, *node.after)}
        assert set(work.needs) == needed
        assert all(place[need] < place[work.id] for need in needed)
    assert described(works)[0].startswith("1 job of ")


@pytest.mark.parametrize("most", [1, 2])
def test_packs_are_as_large_as_the_study_says(most):
    plan = planned(run={"pack": most})
    assert max(len(work.nodes) for work in as_works(plan, plan.nodes, {})) == most


def test_what_is_submitted_already_is_needed_by_the_id_of_its_work():
    plan = planned()
    models = [node for node in plan.nodes if node.kind == "model"]
    works = as_works(plan, plan.cells, {node.key: "earlier" for node in models})
    assert "earlier" in works[0].needs


def test_the_study_says_what_nodes_need_over_their_estimates_for_all_a_benchmark_and_a_method():
    plan = planned(resources={
        "memory": 2.0, "hours": 1.0,
        "benchmarks": {"tofu-forget05": {"memory": 3.0}}, "methods": {"npo": {"memory": 4.0, "processors": 8}},
    })  # fmt: skip
    found = {
        (node.spec.method.name, node.spec.benchmark.name): work.resources
        for work in as_works(plan, plan.cells, {})
        for node in work.nodes
    }
    assert found["ga", "tofu-forget01"] == Resources(processors=1, gpus=0, memory=2.0, hours=1.0)
    assert found["ga", "tofu-forget05"].memory == 3.0
    assert found["npo", "tofu-forget05"] == Resources(processors=8, gpus=0, memory=4.0, hours=1.0)
    estimated = as_works(planned(), plan.cells[:1], {})[0].resources
    assert 0.5 < estimated.memory < 2, "half as much again as the libraries and a small model take"


def test_a_work_is_read_as_it_was_written_and_damage_is_named(tmp_path):
    plan = planned()
    work = as_works(plan, plan.nodes, {})[-1]
    path = work.write(tmp_path, WORKER)
    found = read_work(path)
    assert (found.nodes, found.references, found.worker) == (work.nodes, work.references, WORKER)
    assert path == file_of(tmp_path, work.id)
    assert keys_of(tmp_path, work.id) == [node.key for node in work.nodes]
    assert keys_of(tmp_path, "unknown") == []
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecordError, match="is not valid JSON"):
        read_work(path)
    with pytest.raises(RecordError, match="does not exist"):
        read_work(tmp_path / "none.json")


def test_exit_codes_say_whether_what_needs_a_work_may_start(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "cache"))
    plan, run = planned(), tmp_path / "run"
    works = as_works(plan, plan.nodes, {})
    last = works[-1].write(run, WORKER)
    assert run_nodes(last) == 75, "what it needs has not ended: to be run again"
    assert [run_nodes(work.write(run, WORKER)) for work in works] == [0] * len(works)
    (tmp_path / "behaviour.json").write_text('{"ends": {"npo": "failed"}}')
    other = tmp_path / "other"
    assert 1 in [run_nodes(work.write(other, WORKER)) for work in works]


def test_a_machine_with_a_cache_of_its_own_prepares_the_models_that_it_lacks(tmp_path):
    plan, run = planned(), tmp_path / "run"
    models = [node for node in plan.nodes if node.kind == "model"]
    slots = slots_here(plan.study.run)
    for cache, nodes, references in ((tmp_path / "a", models, ()), (tmp_path / "b", plan.cells, models)):
        with NodePool(run, cache, plan.study.run, slots, WORKER) as pool:
            pool.add(nodes, references)
            while pool.busy:
                pool.step()
        for node in models:
            assert (prepared_folder(cache, node.key) / REFERENCE).exists()
    statuses = [json.loads((run / "cells" / node.key / "status.json").read_text())["status"] for node in plan.cells]
    assert set(statuses) == {"done"}


def test_a_worker_of_another_environment_refuses_by_name_unless_the_study_allows_it():
    (spec, *_) = [node.spec for node in planned().cells]
    check_environment(spec)
    packages = {**spec.provenance["packages"], "torch": "1.0"}
    other = spec.model_copy(update={"engine": "other", "provenance": {**spec.provenance, "packages": packages}})
    with pytest.raises(UsageError, match=r"planned in: torch .* in place of 1\.0; install the same in both"):
        check_environment(other)
    with pytest.raises(UsageError, match="other source code of unlearnbench"):
        check_environment(spec.model_copy(update={"engine": "other"}))
    check_environment(other.model_copy(update={"run": other.run.model_copy(update={"other_environments": True})}))


def test_nodes_of_a_pack_are_values(tmp_path):
    """What a stranger's executor is given cannot be changed by it."""
    plan = planned()
    work = as_works(plan, plan.nodes, {})[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        work.id = "another"


def test_a_row_of_another_environment_is_not_compared_with_others(small_run, tmp_path):
    """Where the study lets such a worker run, its record says that it is one."""
    (left,) = (small_run[0] / "cells").glob("ga--*")
    run = tmp_path / "run"
    shutil.copytree(small_run[0] / "cells", run / "cells")
    facts = read_spec(left).model_dump()
    spec = CellSpec.model_validate(facts | {"engine": "other", "run": facts["run"] | {"other_environments": True}})
    folder = run / "cells" / spec.key
    write_spec(folder, spec)
    done = subprocess.run(
        [sys.executable, "-m", "unlearnbench", "run-cell", str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    one, other = (read_record(place / "record.json").comparability for place in (left, folder))
    assert other.key == one.key | {"environment": engine_digest()}
    assert other.sha256 != one.sha256
