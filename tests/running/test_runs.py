"""Runs as users have them: resumed, interrupted, killed, full disks, and methods that misbehave."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from noop_study import NoopStudy

from unlearnbench.domain import CellStatus
from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.node_spec import read_spec
from unlearnbench.records.record import read_record
from unlearnbench.records.run_folder import NodeStatus, read_status, stored_cells
from unlearnbench.running.local_executor import slots_here
from unlearnbench.running.node_pool import NodePool
from unlearnbench.running.run_store import folder_of
from unlearnbench.running.works import WORKER
from unlearnbench.storage import write_sealed
from unlearnbench.worker import worker

BAD_METHODS = '''
"""Methods that break their promises, one each."""
import os, signal, time
from unlearnbench import MethodSpec, Requires

def method(name, verb, requires=Requires()):
    return type(name.title(), (), {"name": name, "requires": requires, "unlearn": verb})

def raising(self, model, tokenizer, data, ctx):
    raise RuntimeError("I refuse\\n[/INST] twice")

def nothing(self, model, tokenizer, data, ctx):
    return None

def not_finite(self, model, tokenizer, data, ctx):
    next(model.parameters()).data[0] = float("nan")
    return model

def greedy_hands(self, model, tokenizer, data, ctx):
    return data.retain and model

def dying(self, model, tokenizer, data, ctx):
    os.kill(os.getpid(), signal.SIGKILL)

def exiting(self, model, tokenizer, data, ctx):
    os._exit(9)

def leaving(self, model, tokenizer, data, ctx):
    os._exit(74)

def hanging(self, model, tokenizer, data, ctx):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)

def hungry(self, model, tokenizer, data, ctx):
    kept = bytearray(os.urandom(2**20)) * 2048
    time.sleep(600)

def printing(self, model, tokenizer, data, ctx):
    print("a line on stdout")
    return model

VERBS = {"raising": raising, "nothing": nothing, "notfinite": not_finite, "greedyhands": greedy_hands, "dying": dying,
         "exiting": exiting, "leaving": leaving, "hanging": hanging, "hungry": hungry, "printing": printing}
for name, verb in VERBS.items():
    globals()[name.title()] = method(name, verb)

def unlearnbench_methods():
    return [MethodSpec(name, f"bad_methods:{name.title()}", name) for name in VERBS]
'''


@pytest.fixture
def bad_methods(tmp_path):
    path = tmp_path / "bad_methods.py"
    path.write_text(BAD_METHODS)
    return str(path)


def cells_of(done):
    return {cell["method"]: cell for cell in done.json["cells"]}


def test_a_method_that_breaks_its_promise_fails_alone(command, bad_methods):
    names = "raising nothing notfinite greedyhands dying exiting leaving hanging hungry printing".split()
    chosen = [word for name in names for word in ("-m", name)]
    done = command(
        *command.study(*chosen, "-m", "ga", "--plugin", bad_methods, "-b", "tofu-forget05", "--name", "bad", "-j", "2",
                       "--timeout", "12", "--memory-limit", "1.2", "--json")
    )  # fmt: skip
    assert done.code == 1, done.err
    cells = cells_of(done)
    expected = {
        "raising": ("failed", "RuntimeError: I refuse [/INST] twice"),
        "nothing": ("failed", "unlearn returned None"),
        "notfinite": ("diverged", "are not finite"),
        "greedyhands": ("failed", "touched data.retain; declare Requires(retain=True)"),
        "dying": ("failed", "killed by signal 9"),
        "exiting": ("failed", "exit code 9"),
        "leaving": ("failed", "exit code 74"),
        "hanging": ("timed-out", "longer than --timeout 12 s"),
        "hungry": ("out-of-memory", "more than --memory-limit 1.2 GiB"),
        "printing": ("done", ""),
        "ga": ("done", ""),
        "original": ("done", ""),
        "retained": ("done", ""),
    }
    assert {name: cell["status"] for name, cell in cells.items()} == {n: s for n, (s, _) in expected.items()}
    for name, (_, reason) in expected.items():
        assert reason in cells[name]["reason"]
    run = command.folder / "runs" / "bad"
    log = (run / "cells" / cells["printing"]["key"] / "log.txt").read_text()
    assert "a line on stdout" in log
    page = (run / "site" / "index.html").read_text()
    assert "I refuse" in page
    assert "longer than --timeout" in page


def start(command, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "unlearnbench", *words],
        cwd=command.folder,
        env=command.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A script's background job inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(what, seconds=90):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def running_cell(run, name):
    """Whether the cell of this method has begun and not ended."""
    folders = list(run.glob(f"cells/{name}--*/log.txt"))
    return bool(folders) and not (folders[0].parent / "status.json").exists()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 2),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_resumes(command, bad_methods, number, code):
    words = command.study("-m", "ga", "-m", "hanging", "--plugin", bad_methods, "-b", "tofu-forget05", "--name", "cut")
    run = command.folder / "runs" / "cut"
    process = start(command, *words)
    wait_for(lambda: running_cell(run, "hanging"))
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    if code == 2:
        assert err.strip().splitlines()[-1] == (
            "unlearnbench: interrupted; what is finished is kept, and the same command resumes"
        )
    # Nothing of the run is left that could still write into its folder.
    wait_for(lambda: not processes_in(str(run)))
    record = next(run.glob("cells/ga--*/record.json"))
    before = record.stat().st_mtime_ns
    done = command(*words, "--timeout", "1", "--json")
    assert done.code == 1
    assert {name: cell["status"] for name, cell in cells_of(done).items()} == {
        "original": "done", "retained": "done", "ga": "done", "hanging": "timed-out",
    }  # fmt: skip
    assert record.stat().st_mtime_ns == before
    assert "ga × tofu-forget05 × nano seed 0: done (kept)" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_process_of_a_shared_cell(command, bad_methods, number):
    """The launcher of several processes gives each a group of its own; they end with the run nevertheless."""
    words = command.study("-m", "hanging", "--plugin", bad_methods, "-b", "tofu-forget05", "--name", "cut")
    run = command.folder / "runs" / "cut"
    process = start(command, *words, "--set", "run.processes=2")
    wait_for(lambda: running_cell(run, "hanging") and len(processes_in(str(run / "cells" / "hanging"))) >= 4)
    process.send_signal(number)
    process.communicate(timeout=60)
    wait_for(lambda: not processes_in(str(run)))


def processes_in(folder):
    """Processes whose log lies in the folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/fd/1").startswith(folder):
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_what_is_finished_is_kept_and_what_changed_runs_again(command, tmp_path):
    plugin = tmp_path / "edited.py"
    source = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from unlearnbench import MethodSpec, hyperparameter, Requires\n"
        "@dataclass(frozen=True)\nclass Edited:\n    name: ClassVar[str] = 'edited'\n"
        "    requires: ClassVar[Requires] = Requires()\n    factor: float = hyperparameter(1.0, 'x')\n"
        "    def unlearn(self, model, tokenizer, data, ctx):\n        return model\n"
        "def unlearnbench_methods():\n    return [MethodSpec.of(Edited)]\n"
    )
    plugin.write_text(source)
    words = command.study("-m", "edited", "-m", "ga", "--plugin", str(plugin), "-b", "tofu-forget05", "--name", "again")
    first = command(*words)
    assert first.code == 0, first.err
    kept = command(*words)
    assert kept.err.count("(kept)") == 6
    changed = command(*words, "--set", "methods.edited.factor=2.0")
    assert changed.err.count("(kept)") == 5
    plugin.write_text(source.replace("return model\n", "return model  # edited\n"))
    edited = command(*words)
    assert edited.err.count("(kept)") == 5
    # A damaged record is measured again, however long it is, and so are samples cut off; the others are kept.
    record = next((command.folder / "runs" / "again").glob("cells/ga--*/record.json"))
    whole = record.read_text()
    samples = record.with_name("samples.jsonl.gz")
    for path, damaged in ((record, whole[:500].encode()), (record, whole.replace("{", "[").encode()),
                          (samples, samples.read_bytes()[:-50])):  # fmt: skip
        path.write_bytes(damaged)
        assert path == samples or command("render", "runs/again").code == 4
        mended = command(*words)
        assert mended.err.count("(kept)") == 5
        assert read_record(record).identity.method == "ga"


@pytest.mark.slow
def test_a_cell_reads_no_model_but_those_that_it_waits_for(tmp_path):
    """Beside others, it may run before any other model is prepared."""
    study = check_study({
        "study": {"name": "x", "methods": ["ga"], "benchmarks": ["tofu-forget01"], "models": ["tiny"]},
        "data": {"source": "generated", "scale": "quick"}, "recipe": {"epochs": 1},
    }, ())  # fmt: skip
    plan = make_plan(study, load_plugins())
    waited_for = {node.key: node for node in plan.nodes}
    (cell,) = (node for node in plan.cells if node.id.method == "retained")
    nodes = (*(waited_for[key] for key in cell.needs), cell)
    assert [node.kind for node in nodes] == ["model", "cell"]
    run = tmp_path / "run"
    with NodePool(run, tmp_path / "cache", study.run, slots_here(study.run), WORKER) as pool:
        pool.add(nodes)
        while pool.busy:
            pool.step()
    found = [read_status(folder_of(run, node)) for node in nodes]
    assert [(status.status, status.reason) for status in found] == [("done", "")] * 2


def test_a_folder_of_another_study_or_a_newer_schema_or_a_broken_plan_is_refused(command):
    folder = command.folder / "runs" / "mine"
    words = command.study("-m", "ga", "-b", "tofu-forget05", "--out", str(folder))
    folder.mkdir(parents=True)
    plan = folder / "plan.json"
    write_sealed(plan, {"schema_version": 99, "study": "mine"})
    newer = plan.read_text()
    write_sealed(plan, {"schema_version": 1, "study": "other", "nodes": []})
    cases = {
        plan.read_text(): "holds the study 'other', not 'mine'",
        plan.read_text().replace("other", "mine"): "is not what was written there (its hash differs)",
        newer: "plan schema 99; this unlearnbench reads up to 1: upgrade it",
        newer.replace("99", "98"): "if its plan was damaged, delete plan.json",
        '{"schema_version": 1, "stu': "is not valid JSON",
        "[]": "is not what was written there (its hash differs)",
    }
    for content, complaint in cases.items():
        plan.write_text(content)
        done = command(*words, "--name", "mine")
        assert done.code == 4
        assert complaint in done.err
        assert plan.read_text() == content
    assert command("results", str(command.folder / "nowhere")).code == 4


def test_a_record_of_a_newer_schema_is_refused(small_run, tmp_path):
    from unlearnbench.errors import RecordError

    run, _ = small_run
    path = next(run.glob("cells/ga--*/record.json"))
    newer = json.loads(path.read_text()) | {"schema_version": 99}
    (tmp_path / "record.json").write_text(json.dumps(newer))
    with pytest.raises(RecordError, match="record schema 99"):
        read_record(tmp_path / "record.json")
    (tmp_path / "record.json").write_text(json.dumps(json.loads(path.read_text()) | {"extra": 1}))
    with pytest.raises(RecordError, match="extra"):
        read_record(tmp_path / "record.json")


def test_a_model_that_is_there_is_used_although_its_process_was_killed(command):
    """It had prepared the model, and not yet said so."""
    study = NoopStudy(command, "noop-local")
    study(2)
    (failed,) = study.run.glob("models/original*")
    written = json.loads((failed / "status.json").read_text())
    del written["sha256"]
    write_sealed(failed / "status.json", {**written, "status": "failed", "reason": "killed"})
    for cell in study.run.glob("cells/*"):
        shutil.rmtree(cell)
    study(2)
    assert study.whole()
    assert set(study.statuses.values()) <= {"done", "pending"}, "a model from the cache has no status of its own"


def test_two_runs_in_one_folder_do_not_mix(command, bad_methods):
    words = command.study("-m", "hanging", "--plugin", bad_methods, "-b", "tofu-forget05", "--name", "shared")
    process = start(command, *words)
    try:
        wait_for(lambda: (command.folder / "runs" / "shared" / "plan.json").exists())
        second = command(*words)
        assert second.code == 4
        assert "is running the study in runs/shared; wait for it" in second.err
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.skipif(not os.access("/proc/self/mounts", os.R_OK) or os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize("kilobytes", [4, 130])
def test_a_full_disk_is_exit_3_and_loses_nothing(command, kilobytes):
    """A file system too small for the plan, and one too small for the cells."""
    disk = command.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        done = command(*command.study("-m", "ga", "-b", "tofu-forget05", "--out", str(disk / "run"), "--name", "full"))
        assert done.code == 3, done.err
        last = done.err.strip().splitlines()[-1]
        assert "No space left on device; free some space and run the command again" in last
        assert "Traceback" not in done.err
        for file in disk.rglob("*.json"):
            json.loads(file.read_text())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_record_in_any_order_of_cells(command):
    def scores(name, *methods, jobs="1"):
        chosen = [word for method in methods for word in ("-m", method)]
        study = command.study(*chosen, "-b", "tofu-forget05", "--name", name, "-j", jobs, "--set", "run.threads=1")
        done = command(*study)
        assert done.code == 0, done.err
        found = {}
        for cell in stored_cells(command.folder / "runs" / name):
            record = json.loads(cell.record.model_dump_json())
            samples = record["samples"]["sha256"]
            found[cell.identity.method] = (record["scores"], record["comparability"], record["losses"], samples)
        return found

    forwards = scores("forwards", "npo", "flat-tv")
    backwards = scores("backwards", "flat-tv", "npo", jobs="2")
    assert forwards == backwards


def test_several_seeds_are_shown_with_their_spread(command):
    done = command(
        *command.study("-m", "ga", "-b", "tofu-forget05", "--name", "seeds", "--seed", "0", "--seed", "1", "-j", "2")
    )
    assert done.code == 0, done.err
    assert "±" in done.out
    page = (command.folder / "runs" / "seeds" / "site" / "b" / "tofu-forget05.html").read_text()
    assert "±" in page
    assert len(re.findall(r'<td class="c-runs"><a href="[^"]+">0</a> <a href="[^"]+">1</a></td>', page)) == 3


def test_run_cell_repeats_a_cell_from_its_folder(small_run, command, tmp_path):
    import shutil

    run, _ = small_run
    shutil.copytree(run, tmp_path / "copy")
    cell = next((tmp_path / "copy" / "cells").glob("npo--*"))
    before = json.loads((cell / "record.json").read_text())
    (cell / "record.json").unlink()
    done = command("run-cell", str(cell))
    assert done.code == 0, done.err
    after = json.loads((cell / "record.json").read_text())
    assert after["content"] == before["content"]
    for name, entry in before["scores"].items():
        value = after["scores"][name]["value"]
        # A missing score is the text "NaN".
        assert value == (entry["value"] if entry["reason"] else pytest.approx(entry["value"], rel=1e-3, abs=1e-3))
    assert command("run-cell", str(tmp_path)).code == 4


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (CellStatus.DONE, 0),
        (CellStatus.FAILED, 1),
        (CellStatus.DIVERGED, 1),
        (CellStatus.OUT_OF_MEMORY, 1),
        (CellStatus.NOT_APPLICABLE, 1),
    ],
)
def test_the_exit_status_of_a_node_says_whether_what_needs_it_may_start(status, code, small_run, tmp_path, monkeypatch):
    run, _ = small_run
    cell = next((run / "cells").glob("npo--*"))
    (tmp_path / "spec.json").write_bytes((cell / "spec.json").read_bytes())
    monkeypatch.setattr(worker, "_ended", lambda path, spec: NodeStatus(status=status))
    assert worker.start_node(str(tmp_path)) == code
    assert read_status(tmp_path).status == status


def test_run_cell_starts_as_many_processes_as_the_spec_says(small_run, monkeypatch):
    run, _ = small_run
    cell = str(next((run / "cells").glob("npo--*")))
    spec = read_spec(Path(cell))
    wide = spec.model_copy(update={"run": spec.run.model_copy(update={"processes": 3})})
    monkeypatch.setattr(worker, "read_spec", lambda folder: wide)
    monkeypatch.setattr(worker, "run_node", lambda folder: 0)
    commands = []
    monkeypatch.setattr(worker.subprocess, "call", lambda command: commands.append(command) or 1)
    assert worker.start_node(cell) == 1
    assert commands[0][-6:] == ["--nproc_per_node", "3", "-m", "unlearnbench", "run-cell", cell]
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert worker.start_node(cell) == 0
    assert len(commands) == 1


def test_kept_weights_load(command):
    from transformers import AutoModelForCausalLM

    done = command(*command.study("-m", "ga", "-b", "tofu-forget05", "--name", "kept", "--keep-model"))
    assert done.code == 0, done.err
    folder = next((command.folder / "runs" / "kept").glob("cells/ga--*/model"))
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size > 0
