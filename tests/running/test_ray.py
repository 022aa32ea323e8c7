"""Studies on a Ray cluster of two machines: each node once, whatever dies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from noop_study import NoopStudy, check_followed_and_kept, check_goes_on_when_who_follows_dies
from ray_cluster import RayCluster, missing
from slurm_cluster import wait_for

from unlearnbench.records.run_folder import read_status

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.xdist_group("ray")]
TESTS = str(Path(__file__).parent.parent)


@pytest.fixture(scope="module")
def cluster():
    with RayCluster(TESTS) as found:
        yield found


@pytest.fixture
def study(cluster, command):
    return NoopStudy(command, "noop-ray", cluster.environment)


def test_a_study_is_submitted_followed_and_kept(study):
    check_followed_and_kept(study)


def test_who_submitted_may_die_and_the_same_command_follows_again(study):
    check_goes_on_when_who_follows_dies(study, 90)


@pytest.mark.slow
def test_a_machine_that_dies_costs_what_ran_there_and_nothing_is_lost(study, cluster):
    process = study.start(8, "--set", "run.pack=2", seconds=1.0)
    wait_for(lambda: len(study.begun) > 5, 90)
    cluster.kill_node()
    cluster.add_node()
    process.communicate(timeout=180)
    assert study.whole()
    assert set(study.statuses.values()) == {"done"}
    assert max(study.begun.values()) <= 2
    assert list(study.begun.values()).count(2) <= 2, "what ran on that machine at most"


def test_a_failed_model_fails_the_cells_that_need_it_and_a_hung_cell_is_ended_in_time(study):
    done = study(3, "--set", "run.pack=1", "--timeout", "2",
                 ends={"original model": "failed", "retained × ": "hangs"})  # fmt: skip
    assert done.code in (1, 4)
    found = Counter(study.statuses.values())
    assert found["timed-out"] == 1
    (late,) = study.run.glob("cells/retained*")
    assert read_status(late).reason == "took longer than --timeout 2 s"
    assert found["failed"] >= 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--set", "resources.gpus=2"), "asks for 2 GPUs, and no machine of the cluster has more than 0"),
        (("--set", "resources.processors=64"), "asks for 64 cores, and no machine of the cluster has more than 2"),
        (("--set", "run.ray.address=127.0.0.1:1"), "no Ray cluster answers at 127.0.0.1:1: "),
    ],
)
def test_what_the_cluster_would_never_run_is_refused_before_anything_is_submitted(words, complaint, study):
    done = study(2, *words)
    assert done.code == 4
    assert complaint in done.err.splitlines()[-1]
    assert not study.begun
