"""Studies on a Slurm cluster of two machines: each node once, whatever dies."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from noop_study import NoopStudy, check_followed_and_kept, check_goes_on_when_who_follows_dies
from slurm_cluster import SlurmCluster, missing, wait_for

from unlearnbench.records.run_folder import read_status

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.xdist_group("slurm"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with SlurmCluster(tmp_path_factory.mktemp("slurm"), array=21) as cluster:
        yield cluster


@pytest.fixture
def study(slurm, command):
    yield NoopStudy(command, "noop-slurm", slurm.environment)
    slurm.ask("scancel", "-u", "root")
    wait_for(lambda: not slurm.ask("squeue", "-h").strip(), 30)


def test_a_study_is_submitted_followed_and_kept(study):
    check_followed_and_kept(study)


def test_detached_a_study_goes_on_by_itself_and_the_same_command_follows_it(study, slurm):
    done = study(6, "--detach", "--set", "run.pack=1", seconds=1.0)
    assert done.code == 0, done.err
    assert "nodes are with noop-slurm; the same command without --detach follows them" in done.err
    assert len(slurm.ask("squeue", "-h", "-r").splitlines()) == 10, "four nodes besides, each a job"
    study(6, "--set", "run.pack=1", seconds=1.0)
    assert study.whole()
    assert set(study.begun.values()) == {1}, "nothing was submitted a second time"


def test_who_follows_may_die_at_any_time(study):
    check_goes_on_when_who_follows_dies(study, 60)


def test_ctrl_c_leaves_jobs_alone_and_says_so(study, slurm):
    process = study.start(4, seconds=2.0)
    wait_for(lambda: bool(study.begun), 60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "what is submitted goes on; the same command follows it again" in said
    assert slurm.ask("squeue", "-h").strip()


@pytest.mark.slow
def test_a_machine_that_dies_costs_what_ran_there_and_nothing_is_lost(study, slurm):
    process = study.start(8, "--set", "run.pack=2", seconds=1.0)
    wait_for(lambda: len(study.begun) > 5, 60)
    slurm.kill_node("n1")
    time.sleep(1)
    slurm.start_node("n1")
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        slurm.requeued_start_now()
        time.sleep(1)
    process.communicate(timeout=10)
    assert study.whole()
    assert set(study.statuses.values()) == {"done"}
    assert max(study.begun.values()) <= 2
    assert list(study.begun.values()).count(2) <= 2, "one on each machine's way at most"


@pytest.mark.slow
def test_a_controller_that_dies_costs_nothing(study, slurm):
    process = study.start(8, "--set", "run.pack=1", seconds=0.5)
    wait_for(lambda: len(study.begun) > 5, 60)
    # What it was told within its last seconds it may not have written down.
    time.sleep(3)
    slurm.kill_controller()
    time.sleep(2)
    slurm.start_controller()
    process.communicate(timeout=120)
    assert study.whole()
    assert set(study.begun.values()) == {1}


def test_a_job_that_is_cancelled_costs_its_cells_alone(study, slurm):
    process = study.start(4, "--set", "run.pack=1", ends={"repeat 2": "hangs"}, seconds=0.2)
    hanging = []

    def hangs():
        rows = slurm.ask("squeue", "-h", "-r", "-t", "R", "-o", "%i %M").splitlines()
        hanging[:] = [row.split()[0] for row in rows if int(row.split()[1].split(":")[1]) >= 5]
        return bool(hanging)

    wait_for(hangs, 90)
    slurm.ask("scancel", *hanging)
    process.communicate(timeout=90)
    found = Counter(study.statuses.values())
    assert found["failed"] == len(hanging) == 1
    assert found["done"] == sum(found.values()) - 1
    (failed,) = (folder for folder in study.run.glob("cells/*") if read_status(folder).status == "failed")
    assert "its job was cancelled; see " in read_status(failed).reason
    assert (failed / "log.txt").read_text().strip(), "its log lies where the cell lies"


def test_what_is_submitted_can_be_cancelled(study, slurm, command):
    assert study(4, "--detach", "--set", "run.pack=1", seconds=30.0).code == 0
    words = [word for word in study.words(4)[1:]]
    done = command("cancel", *words, **study.environment)
    assert (done.code, done.out) == (0, "8 jobs of noop-slurm cancelled\n"), done.err
    assert not slurm.ask("squeue", "-h").strip()


def test_a_failed_model_fails_the_cells_that_need_it_and_no_others(study):
    done = study(3, ends={"original model": "failed"})
    assert done.code in (1, 4)
    by_title = study.statuses
    assert by_title["original model tiny (full)"] == "failed"
    assert by_title["retained × tofu-forget05 × tiny seed 0"] == "done"
    assert list(by_title.values()).count("failed") == 1 + 1 + 3, "the model, its own cell, and every run of the method"


def test_a_job_that_is_killed_for_memory_says_what_to_ask_for(study):
    study(1, "--set", "run.pack=1", "--set", "resources.memory=1", ends={"retained model": "eats"})
    (model,) = study.run.glob("models/retained*")
    status = read_status(model)
    assert (str(status.status), status.exit_code) == ("out-of-memory", 1)
    assert "killed for memory; ask for more: --set resources.memory=" in status.reason


@pytest.mark.slow
def test_a_hung_cell_is_ended_in_time_however_long_it_queued(study):
    study(30, "--set", "run.pack=1", "--timeout", "3", ends={"original model": "hangs"}, seconds=0.0)
    (model,) = study.run.glob("models/original*")
    assert "took longer than --timeout 3 s" in read_status(model).reason
    assert study.statuses["retained × tofu-forget05 × tiny seed 0"] == "done"


def test_arrays_are_no_larger_than_the_cluster_allows(study, slurm):
    done = study(50, "--set", "run.pack=1", "--detach", seconds=5.0)
    assert done.code == 0, done.err
    sizes = Counter(row for row in slurm.ask("squeue", "-h", "-r", "-o", "%F").split())
    assert sum(sizes.values()) == 54
    assert max(sizes.values()) == 20, "MaxArraySize is 21, and counts the place after the last"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--set", "run.slurm.partition=gold"), "Slurm refuses a job with .*: .*invalid partition"),
        (("--set", "resources.gpus=2"), "Slurm refuses a job with .*2 GPUs.*"),
        (("--set", "resources.memory=9000"), "Slurm refuses a job with .*9000 GiB"),
        (("--set", "resources.processors=64"), "Slurm refuses a job with .*64 cores"),
        (("--set", "resources.methods.ga.memory=9000"), "Slurm refuses a job with .*9000 GiB"),
        (("--set", "resources.methods.gaa.memory=1"), "unknown method in .resources.methods. 'gaa'; did you mean 'ga'"),
        (("--set", "run.slurm.partitoin=x"), "unknown key of run.slurm 'partitoin'; did you mean 'partition'"),
    ],
)
def test_what_the_cluster_would_never_run_is_refused_before_anything_is_submitted(words, complaint, study, slurm):
    done = study(2, *words)
    assert done.code == 4
    assert re.search(complaint, done.err.splitlines()[-1], re.I), done.err
    assert not slurm.ask("squeue", "-h").strip()
    assert not study.begun


def test_where_there_is_no_slurm_that_is_said(study, command):
    away = os.pathsep.join([str(Path(sys.executable).parent), "/nowhere"])
    done = command(*study.words(2), **{**study.environment, "PATH": away})
    assert done.code == 4
    assert done.err.strip().endswith("no sbatch here; submit where Slurm's commands are, or use --executor local")


def test_a_run_folder_that_the_machines_do_not_see_is_named(study, slurm):
    done = study(1, "--out", str(slurm.home / "unseen" / "run"))
    assert done.code == 1, done.err
    assert re.search("does not see .*/unseen/run/works; choose a run folder that all machines see", done.err)


@pytest.mark.parametrize("there", ["nothing", "of another architecture"])
def test_a_machine_that_cannot_start_this_python_is_named(study, slurm, there, tmp_path):
    """Its place is empty there, or holds a program that the machine cannot run."""
    place = (slurm.home / "unseen" if there == "nothing" else tmp_path) / "env"
    (place / "bin").mkdir(parents=True)
    here = Path(sys.prefix)
    (place / "lib").symlink_to(here / "lib")
    (place / "pyvenv.cfg").write_text((here / "pyvenv.cfg").read_text())
    python = place / "bin" / "python"
    python.symlink_to(sys.executable)
    process = study.start(1, python=python)
    if there != "nothing":
        wait_for(lambda: study.run.is_dir(), 60)
        other = tmp_path / "other"
        # The first bytes of a program for 64-bit ARM.
        other.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(44))
        other.chmod(0o755)
        other.replace(python)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert re.search(rf"machine n\d cannot start {python} \(.+\); install", said), said
    assert not study.begun


def test_plan_shows_what_would_be_submitted(study, command):
    done = command("plan", *study.words(30, "--set", "run.pack=10")[1:], **study.environment)
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith("to submit: ")]
    assert [line.split(",")[0] for line in lines] == [
        "to submit: 1 job of 2 nodes",
        "to submit: 1 job of 1 node",
        "to submit: 1 job of 1 node",
        "to submit: 3 jobs of 10 nodes",
    ]
