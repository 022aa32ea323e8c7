"""Machines that people have: what a process may use, file systems without locks, users without a home, full memory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from unlearnbench import storage
from unlearnbench.engine import memory
from unlearnbench.engine.counters import Counters
from unlearnbench.engine.memory import in_pieces, lacks_memory
from unlearnbench.planning.study import read_study
from unlearnbench.records import provenance
from unlearnbench.records.claim import Held
from unlearnbench.running.run_store import locked
from unlearnbench.training.models import save_checkpoint
from unlearnbench.worker.worker import _failed


@pytest.fixture
def sixteen(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(provenance, "CONTROL_GROUP", tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("quota", "threads", "expected"),
    [
        (None, None, 16),
        ("max 100000", None, 16),
        ("400000 100000", None, 4),
        ("50000 100000", None, 1),
        ("nonsense", None, 16),
        (None, "3", 3),
        ("400000 100000", "6", 4),
        (None, "4,2", 4),
        (None, "0", 16),
        (None, "many", 16),
    ],
)
def test_a_process_uses_the_processors_that_it_may(sixteen, monkeypatch, quota, threads, expected):
    if quota:
        sixteen.write_text(quota + "\n")
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert provenance.usable_cores() == expected


def test_a_run_folder_needs_no_locks_of_the_file_system(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for name in ("flock", "lockf", "fcntl"):
        monkeypatch.setattr(fcntl, name, refuse)
    with locked(tmp_path), pytest.raises(Held, match=r"^process \d+ on .* is running the study in .*; wait for it"):
        locked(tmp_path).__enter__()


def test_a_run_that_dies_leaves_no_lock_to_a_child_that_lives(tmp_path):
    """A forked child has the open files of its parent, and with them would have its lock."""
    script = """if True:
        import os, pathlib, signal, sys
        from unlearnbench.running.run_store import locked

        with locked(pathlib.Path(sys.argv[1])):
            child = os.fork()
            if not child:
                os.closerange(1, 3)
                signal.pause()
            print(child, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    try:
        assert done.returncode == -signal.SIGKILL, done.stderr
        with locked(tmp_path):
            pass
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)


def test_who_waits_for_a_lock_has_it_when_it_is_free(tmp_path):
    script = """if True:
        import pathlib, sys
        from unlearnbench.records.claim import claimed

        folder = pathlib.Path(sys.argv[1])
        print("waits", flush=True)
        with claimed(folder / ".runner", wait=True):
            print((folder / "freed").exists())
    """
    with locked(tmp_path):
        process = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "waits\n"
        time.sleep(0.3)
        (tmp_path / "freed").touch()
    assert process.communicate(timeout=60)[0] == "True\n"


@pytest.fixture
def nobody():
    """Runs a command as a user without an entry and without a home."""
    if os.getuid() != 0:
        pytest.skip("only root can become a user without an entry")
    become = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    without = ("HOME", "USER", "LOGNAME")

    def run(words, environment, **more):
        known = {name: value for name, value in environment.items() if name not in without}
        return subprocess.run([*become, *words], env=known, capture_output=True, text=True, timeout=300, **more)

    # By a shell: what root starts directly may lie where the user's own processes may not start it.
    started = ["sh", "-c", f"exec {shlex.quote(sys.executable)} -c 'import unlearnbench'"]
    if run(started, os.environ, cwd="/").returncode:
        pytest.skip("the interpreter or the package lies where only root may read it")
    return run


def test_a_container_s_user_without_an_entry_has_what_cells_import(nobody):
    """rouge-score's nltk looks for a home when it is imported."""
    asked = (
        "import unlearnbench.worker.worker, unlearnbench.records.run_folder as run_folder\n"
        "print(run_folder.cache_folder())"
    )
    done = nobody([sys.executable, "-c", asked], os.environ | {"UNLEARNBENCH_CACHE": ""}, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/.cache/unlearnbench")
    assert "~" not in done.stdout


def test_a_container_s_user_without_an_entry_runs_a_study(nobody, command, nano_plugin):
    for folder in (command.folder, command.cache, nano_plugin.parent):
        subprocess.run(["chmod", "-R", "a+rwX", str(folder)], check=True)
        for parent in folder.parents:
            if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o055)
    words = command.study("-m", "ga", "-b", "tofu-forget05", "--name", "nobody", "--limit", "2", "--json")
    done = nobody([sys.executable, "-m", "unlearnbench", *words], command.environment, cwd=command.folder)
    assert done.returncode == 0, done.stderr


def test_a_long_temporary_folder_is_no_obstacle_to_sockets(command):
    deep = command.folder / ("t" * 60) / ("u" * 60)
    deep.mkdir(parents=True)
    words = command.study("-m", "ga", "-b", "tofu-forget05", "--name", "deep", "--limit", "2")
    done = command(*words, TMPDIR=str(deep))
    assert done.code == 0, done.err


@pytest.mark.parametrize(("mask", "folder_mode", "file_mode"), [(0o002, 0o775, 0o664), (0o027, 0o750, 0o640)])
def test_a_cache_is_shared_with_whom_the_umask_allows(mask, folder_mode, file_mode, tmp_path, tiny_model, tiny_encoder):
    before = os.umask(mask)
    try:
        save_checkpoint(tmp_path / "models" / "m", tiny_model.float(), tiny_encoder.tokenizer, {"rows": 1})
        storage.write_json(tmp_path / "plain.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "models" / "m").stat().st_mode) == folder_mode
    for path in (*(tmp_path / "models" / "m").iterdir(), tmp_path / "plain.json"):
        assert stat.S_IMODE(path.stat().st_mode) == file_mode, path.name


ALLOCATORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 2.01 MB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", ALLOCATORS, ids=["CUDA", "Python", "CPU", "MPS", "cuBLAS"])
def test_a_lack_of_memory_is_known_by_whatever_name(error, monkeypatch):
    assert lacks_memory(error)
    assert not lacks_memory(RuntimeError("shape mismatch"))

    def attempt(pieces):
        if pieces < 4:
            raise error
        return pieces

    monkeypatch.setattr(memory, "release", lambda: None)
    assert in_pieces(attempt, Counters()) == 4
    assert _failed(error, []).status == "out-of-memory"


def test_a_byte_order_mark_is_read_as_if_it_were_not_there(tmp_path, command):
    study = tmp_path / "study.toml"
    study.write_bytes(b'\xef\xbb\xbf[study]\nname = "x"\n')
    assert read_study(str(study)) == {"study": {"name": "x"}}
    templates = tmp_path / "templates.txt"
    templates.write_bytes(b"\xef\xbb\xbfNo idea.\n")
    done = command("plan", "-m", "po", "-b", "tofu-forget05", "--model", "tiny", "--data", "generated", "--json",
                   "--set", f"data.templates={templates}")  # fmt: skip
    assert done.code == 0, done.err
    records = tmp_path / "records.json"
    records.write_bytes(b"\xef\xbb\xbf" + json.dumps({"records": []}).encode())
    assert command("results", str(records)).code == 0


SCRIPT = """
from unlearnbench.cli.main import run_command

code = run_command({words!r})
print("code", code)
"""


@pytest.mark.parametrize("way", ["a script without a guard", "standard input", "a thread"])
def test_the_harness_may_be_called_from(way, command):
    words = [*command.study("-m", "ga", "-b", "tofu-forget05", "--name", "called", "--limit", "2")]
    text = SCRIPT.format(words=words)
    if way == "a thread":
        text = "import threading\ndef work():\n" + textwrap.indent(text, "    ")
        text += "\nthread = threading.Thread(target=work)\nthread.start()\nthread.join()\n"
    script = command.folder / "script.py"
    script.write_text(text)
    given = script.read_bytes() if way == "standard input" else None
    done = subprocess.run(
        [sys.executable, *([] if given else [str(script)])], input=given, cwd=command.folder, env=command.environment,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.decode().strip().splitlines()[-1] == "code 0", done.stderr.decode()[-2000:]
    assert done.stdout.decode().count("code") == 1, "the script ran once"


@pytest.mark.parametrize("name", ["data\U0001f600", 'say "so"', "back\\slash", "two\nlines", "it's"])
def test_values_of_the_command_line_arrive_as_they_are(name, command):
    folder = command.folder / name
    folder.mkdir()
    done = command("plan", "-m", "ga", "-b", "tofu-forget05", "--model", "tiny", "--data-dir", str(folder))
    assert done.code == 4
    assert " ".join(str(folder).split()) in done.err, "the folder itself, in which a table is missing"


def test_plugins_and_runs_lie_in_folders_of_any_name(command, nano_plugin):
    folder = command.folder / '\U0001f600 "so" back\\slash two\nlines it\'s'
    folder.mkdir()
    plugin = folder / "nano_model.py"
    plugin.write_bytes(nano_plugin.read_bytes())
    words = command.study("-m", "ga", "-b", "tofu-forget05", "--out", str(folder / "run"), "--limit", "2")
    done = command(*(str(plugin) if word == str(nano_plugin) else word for word in words))
    assert done.code == 0, done.err
    assert command("results", str(folder / "run")).code == 0


@pytest.mark.slow
def test_models_whose_folders_end_alike_are_told_apart_everywhere(command, tiny_model, tiny_encoder):
    folders = [command.folder / place / "model" for place in ("one", "two")]
    for number, folder in enumerate(folders):
        changed = tiny_model.float()
        changed.lm_head.weight.data.add_(number)
        save_checkpoint(folder, changed, tiny_encoder.tokenizer)
    words = command.study("-m", "ga", "-b", "tofu-forget05", "--name", "twins", "--limit", "2", "--json")
    at = words.index("nano")
    done = command(*words[: at - 1], *(w for f in folders for w in ("--model", str(f))), *words[at + 1 :],
                   "--set", "models.*.prompt_format=plain", "--set", "recipe.epochs=1")  # fmt: skip
    assert done.code == 0, done.err
    assert {record["identity"]["model"] for record in done.json["records"]} == {"one/model", "two/model"}
    shown = command("results", "runs/twins").out
    table = (command.folder / "runs" / "twins" / "site" / "data" / "tofu-forget05.csv").read_text()
    for name in ("one/model", "two/model"):
        assert name in shown
        assert f",{name}," in table


def test_a_setting_of_a_model_given_as_a_folder_is_used_under_either_name(command, tiny_model, tiny_encoder):
    folder = command.folder / "kept"
    save_checkpoint(folder, tiny_model.float(), tiny_encoder.tokenizer)
    words = ("plan", "-m", "ga", "-b", "tofu-forget05", "--model", str(folder), "--data", "generated", "--json")
    keys = set()
    for name in ("", "kept", str(folder)):
        done = command(*words, *(("--set", f"models.{name}.prompt_format=llama2") if name else ()))
        assert done.code == 0, done.err
        keys.add(tuple(node["key"] for node in done.json["nodes"] if node["kind"] == "model"))
    assert len(keys) == 2, "as set, and as not set"
    done = command(*words, "--set", "models.kepd.prompt_format=llama2")
    assert done.code == 4
    assert "did you mean 'kept'" in done.err
    assert "its settings would change nothing" in done.err


@pytest.mark.slow
def test_a_study_whose_models_all_fail_shows_the_failures(command, tiny_model, tiny_encoder):
    """Without a single record there is no table, and still a page, a summary and an exit code."""
    folder = command.folder / "nan"
    tiny_model.model.norm.weight.data.fill_(float("nan"))
    save_checkpoint(folder, tiny_model.float(), tiny_encoder.tokenizer)
    words = command.study("-m", "ga", "-b", "tofu-forget05", "--name", "none", "--limit", "2")
    at = words.index("nano")
    done = command(*words[:at], str(folder), *words[at + 1 :], "--set", "models.*.prompt_format=plain")
    assert done.code == 4
    assert "Traceback" not in done.err
    slow = command(*command.study("-m", "ga", "-b", "tofu-forget05", "--name", "late", "--timeout", "0.01"),
                   UNLEARNBENCH_CACHE=str(command.folder / "fresh"))  # fmt: skip
    assert slow.code == 1, slow.err
    for run in ("none", "late"):
        shown = command("results", f"runs/{run}")
        assert shown.code == 0, shown.err
        assert "ga × tofu-forget05" in shown.out
        assert "failed: needs" in shown.out
        page = command("render", f"runs/{run}", "-o", f"site-{run}")
        assert page.code == 0, page.err
        assert "No cell of these sources has a score" in (command.folder / f"site-{run}" / "index.html").read_text()
