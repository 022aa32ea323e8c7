"""An executor and a reporter of a stranger's distribution, used by their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Runs each node as a cluster would: a command of its own, known by a number, with nothing of it in the harness.
STRANGER = """
import os, subprocess, sys, time
from unlearnbench import ExecutorSpec, Parameter, ReporterSpec, TicketState


class Cluster:
    detached = False

    def __init__(self, settings):
        self.settings = settings
        self.jobs, self.queue = {}, []

    def device(self):
        return "cpu"

    def check(self, run, works):
        if self.settings.jobs > 8:
            raise SystemExit("never more than 8")

    def submit(self, works, run):
        tickets = {work.id: f"job-{len(self.queue) + number}" for number, work in enumerate(works)}
        for work in works:
            self.queue.append((tickets[work.id], [tickets.get(need) for need in work.needs], work.write(run)))
        return tickets

    def find(self, run):
        return {}

    def poll(self, tickets, seconds):
        time.sleep(0.05)
        over = {job for job, process in self.jobs.items() if process.poll() is not None}
        for job, needs, file in self.queue:
            if job not in self.jobs and over.issuperset(needs):
                log = open(f"{job}.txt", "w")
                command = [sys.executable, "-m", "unlearnbench", "run-nodes", str(file)]
                self.jobs[job] = subprocess.Popen(command, stdout=log, stderr=log)
                with open("submitted.txt", "a") as lines:
                    lines.write(f"{job}\\n")
        return {job: TicketState("ended" if job in over else "running", "the cluster lost it")
                for job in tickets if job in self.jobs}

    def cancel(self, tickets):
        for job in tickets:
            if job in self.jobs:
                self.jobs[job].kill()
                self.jobs[job].wait()


def digest(results, out, registry, end):
    out.mkdir(parents=True, exist_ok=True)
    page = out / "digest.txt"
    lines = [f"{cell.identity}: {len(cell.record.scores)} scores" for some in results for cell in some.finished]
    page.write_text("\\n".join([*lines, registry.find("method", "ga").spec.summary + end]))
    return page


def unlearnbench_executors():
    return [ExecutorSpec("cluster", "cluster_plugin:Cluster", "runs cells on a cluster of one")]


def unlearnbench_reporters():
    return [ReporterSpec("digest", "cluster_plugin:digest", "a line for each cell", (Parameter("end", str, "."),))]
"""


@pytest.fixture
def stranger(tmp_path, command):
    """The distribution, installed where the commands find it."""
    site = tmp_path / "site"
    info = site / "cluster_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cluster-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[unlearnbench]\ncluster = cluster_plugin\n")
    (site / "cluster_plugin.py").write_text(STRANGER)
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def test_a_stranger_s_executor_runs_the_cells_and_its_reporter_shows_them(stranger, command):
    for kind, name in (("executors", "cluster"), ("reporters", "digest")):
        assert name in [entry["name"] for entry in command("list", kind, "--json", **stranger).json[kind]]
    words = command.study("-m", "original", "-b", "tofu-forget05", "--name", "far", "--executor", "cluster", "--json")
    done = command(*words, **stranger)
    assert done.code == 0, done.err
    assert {cell["status"] for cell in done.json["cells"]} == {"done"}
    submitted = (command.folder / "submitted.txt").read_text().splitlines()
    assert 2 <= len(submitted) <= 4, "the cells of the two reference models, and these where no other test made them"
    again = command(*words, **stranger)
    assert again.code == 0
    assert (command.folder / "submitted.txt").read_text().splitlines() == submitted, "what is done stays done"
    for given, end in (((), "."), (("--set", "end=!"), "!")):
        page = command("render", "runs/far", "-o", "out", "--reporter", "digest", *given, **stranger).out.strip()
        lines = Path(command.folder / page).read_text().splitlines()
        assert len(lines) == 3
        assert lines[-1].startswith("Raises the loss on the forget answers")
        assert lines[-1].endswith(end)


def test_limits_hold_within_a_stranger_s_jobs(stranger, command):
    words = command.study("-m", "original", "-b", "tofu-forget05", "--name", "late", "--executor", "cluster", "--json")
    done = command(*words, "--timeout", "0.02", **stranger)
    assert done.code == 1
    # Where other tests have prepared the models, the cells themselves are late.
    assert {cell["status"] for cell in done.json["cells"]} <= {"failed", "timed-out"}
    assert all("took longer than --timeout 0.02 s" in cell["reason"] for cell in done.json["cells"])


def test_an_executor_that_ends_with_its_command_is_not_left_alone(stranger, command):
    words = command.study("-m", "original", "-b", "tofu-forget05", "--name", "left", "--executor", "cluster")
    done = command(*words, "--detach", **stranger)
    assert done.code == 4
    assert "what runs on the executor 'cluster' ends with this command" in done.err


def test_an_unknown_executor_or_reporter_is_named_with_the_nearest(stranger, command):
    done = command(*command.study("-m", "ga", "-b", "tofu-forget05", "--executor", "clutser"), **stranger)
    assert (done.code, "unknown executor 'clutser'; did you mean 'cluster'?" in done.err) == (4, True)
    done = command("render", "runs/none", "--reporter", "htlm", **stranger)
    assert (done.code, "unknown reporter 'htlm'; did you mean 'html'?" in done.err) == (4, True)
    done = command("render", "runs/none", "--reporter", "digest", "--set", "ent=!", **stranger)
    assert (done.code, "unknown key of reporter digest 'ent'; did you mean 'end'?" in done.err) == (4, True)
