"""Seeded faults while a study runs: after each it ends as if it had not been hit.

``UNLEARNBENCH_FAULTS`` is about how many there are in all, and ``UNLEARNBENCH_FAULTS_SEED`` which; the table of what
came of them goes into the file that ``UNLEARNBENCH_FAULTS_TABLE`` names.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from faults.bench import NODES_BESIDES, TESTS, Bench, Tally, cells, files, send, servers, stop, wait_until
from ray_cluster import RayCluster
from ray_cluster import missing as ray_missing
from slurm_cluster import SlurmCluster
from slurm_cluster import missing as slurm_missing

FAULTS = int(os.environ.get("UNLEARNBENCH_FAULTS", "8"))
SEED = int(os.environ.get("UNLEARNBENCH_FAULTS_SEED", "0"))
TABLE = os.environ.get("UNLEARNBENCH_FAULTS_TABLE", "")


def kill_cells(bench, process, count):
    """SIGKILL of nodes' processes at random moments."""
    return _hit(bench, process, count, cells, signal.SIGKILL)


def stop_cells(bench, process, count):
    """SIGSTOP of nodes' processes, and SIGCONT a moment later."""
    return _hit(bench, process, count, cells, signal.SIGSTOP)


def kill_servers(bench, process, count):
    """SIGKILL of the server that nodes' processes are forked from."""
    return _hit(bench, process, count, servers, signal.SIGKILL)


def stop_runner(bench, process, count):
    """SIGSTOP of the runner, and SIGCONT a moment later."""
    return _hit(bench, process, count, lambda pid: [process], signal.SIGSTOP)


def _hit(bench, process, count, victims, number):
    # Where a reference model dies its cells do not run: half of the studies are hit once these are there.
    begun = bench.rng.choice([0, NODES_BESIDES])
    wait_until(lambda: sum(bench.begun.values()) > begun or process.poll() is not None, 60)
    done = 0
    while done < count and process.poll() is None:
        found = victims(process.pid)
        if not found:
            time.sleep(0.002)
            continue
        time.sleep(bench.rng.uniform(0, 2 * bench.seconds))
        victim = bench.rng.choice(found).pid
        if send(victim, number):
            done += 1
            if number == signal.SIGSTOP:
                time.sleep(bench.rng.uniform(0, 0.05))
                send(victim, signal.SIGCONT)
    return done


def kill_runner(bench, process, count):
    """SIGKILL of the runner, again and again."""
    return _end_runner(bench, process, count, signal.SIGKILL)


def interrupt_runner(bench, process, count):
    """SIGTERM or SIGINT of the runner."""
    return _end_runner(bench, process, count, None)


def _end_runner(bench, process, count, number):
    done = 0
    while True:
        _wait_for_more(bench, process)
        if process.poll() is not None:
            return done
        time.sleep(bench.rng.uniform(0, 4 * bench.seconds))
        chosen = number or bench.rng.choice([signal.SIGTERM, signal.SIGINT])
        done += send(process.pid, chosen)
        if number:
            stop(process)
        else:
            process.communicate(timeout=60)
        if done >= count:
            return done
        process = bench.start()


def _wait_for_more(bench, process):
    """Wait until another node begins, or the runner ends."""
    before = sum(bench.begun.values())
    wait_until(lambda: sum(bench.begun.values()) > before or process.poll() is not None, 60)


def two_runners(bench, process, count):
    """Another runner in the same folder, which is refused."""
    done = 0
    while done < count and process.poll() is None:
        other = bench.start()
        _, said = other.communicate(timeout=120)
        assert other.returncode == 0 or (other.returncode == 4 and "is running the study in" in said), said
        done += 1
    return done


def damage_files(bench, process, count):
    """Torn files, and flipped bytes, in the run and the cache."""
    process.communicate(timeout=120)
    found = bench.rng.sample(files(bench.run, bench.cache), k=min(count, len(files(bench.run, bench.cache))))
    for path in found:
        content = bytearray(path.read_bytes())
        if content and bench.rng.random() < 0.5:
            place = bench.rng.randrange(len(content))
            content[place] ^= 1 << bench.rng.randrange(8)
        else:
            del content[bench.rng.randrange(len(content) + 1) :]
        path.write_bytes(content)
    return len(found)


def jump_clocks(bench, process, count):
    """Times of modification far in the past or the future, as after a clock was set, and then the runner killed."""
    wait_until(lambda: sum(bench.begun.values()) > bench.rng.randrange(1, 10), 60)
    done = 0
    while done < count and process.poll() is None:
        for path in bench.rng.sample(files(bench.run, bench.cache), k=3):
            try:
                at = time.time() + bench.rng.uniform(-1e7, 1e7)
                os.utime(path, (at, at))
                done += 1
            except FileNotFoundError:
                continue
        time.sleep(0.01)
    stop(process)
    return done


def move_folder(bench, process, count):
    """The run folder moved between two attempts."""
    done = 0
    while done < count:
        _wait_for_more(bench, process)
        ended = process.poll() is not None
        stop(process)
        moved = bench.run.with_name(f"moved-{done}")
        bench.run.rename(moved)
        bench.run = moved
        done += 1
        if ended:
            break
        process = bench.start()
    stop(process)
    return done


CALLS = {
    "write": ("ENOSPC", "EIO", "EINTR"),
    "fsync": ("EIO", "ENOSPC"),
    "rename": ("EIO", "ENOSPC"),
    "mkdir": ("ENOSPC", "EIO"),
    "openat": ("EINTR", "EIO"),
}


def refuse_calls(bench, process, count):
    """ENOSPC, EIO and EINTR from the system, at random calls of the runner and of all that it starts, by strace."""
    stop(process)
    done, log = 0, bench.home / "strace.txt"
    for _ in range(count):
        call = bench.rng.choice(sorted(CALLS))
        error = bench.rng.choice(CALLS[call])
        # strace counts the calls of each process by itself; Python opens some hundreds of files at first.
        place = bench.rng.randrange(1, 40) + (bench.rng.choice([0, 900]) if call == "openat" else 0)
        inject = f"inject={call}:error={error}:when={place}+{bench.rng.randrange(20, 200)}"
        process = bench.start("strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call}", "-e", inject)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            stop(process)
        done += log.read_text(errors="replace").count("(INJECTED)")
    return done


KINDS = {
    # kind: (what hits, faults a study, its cells, seconds of each, cells at a time, share of all faults)
    "cell killed": (kill_cells, 20, 30, 0.15, 2, 0.25),
    "cell stopped": (stop_cells, 20, 30, 0.15, 2, 0.15),
    "fork server killed": (kill_servers, 5, 20, 0.05, 1, 0.05),
    "runner stopped": (stop_runner, 20, 30, 0.05, 1, 0.1),
    "runner killed": (kill_runner, 8, 20, 0.02, 1, 0.1),
    "runner interrupted": (interrupt_runner, 6, 20, 0.02, 1, 0.05),
    "two runners": (two_runners, 3, 20, 0.05, 1, 0.02),
    "files damaged": (damage_files, 25, 20, 0.02, 1, 0.15),
    "clocks jump": (jump_clocks, 15, 20, 0.02, 1, 0.02),
    "folder moved": (move_folder, 3, 20, 0.02, 1, 0.02),
    "calls refused": (refuse_calls, 4, 10, 0.02, 1, 0.1),
}
TALLIES: dict[tuple[str, str], Tally] = {}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_study_that_is_hit_ends_as_one_that_is_not(kind, tmp_path):
    hit, at_once, count, seconds, jobs, share = KINDS[kind]
    if hit is refuse_calls and not shutil.which("strace"):
        pytest.skip("no strace here")
    settings = {"cells": count, "jobs": jobs, "seconds": seconds}
    _try("local", kind, hit, at_once, max(1, round(FAULTS * share)), tmp_path, settings)


def _try(executor, kind, hit, at_once, wanted, home, settings):
    """Hit one study after another until there were as many faults as wanted; then nothing may be wrong."""
    tally = TALLIES.setdefault((executor, kind), Tally())
    rng = random.Random(f"{SEED} {executor} {kind}")
    number = 0
    while tally.faults < wanted:
        bench = Bench(home / str(number), rng, f"noop-{executor}", **settings)
        process = bench.start()
        faults = hit(bench, process, min(at_once, wanted - tally.faults))
        # One that was waited for before has no more to say.
        with suppress(ValueError):
            process.communicate(timeout=240)
        bench.judge(tally, faults)
        shutil.rmtree(bench.home)
        number += 1
        if TABLE:
            rows = {f"{name}: {what}": vars(found) for (name, what), found in sorted(TALLIES.items())}
            Path(TABLE).write_text(json.dumps(rows, indent=1))
        assert number < 50 + wanted, "faults do not hit"
    assert (tally.wrong, tally.lost, tally.doubled) == (0, 0, 0)
    assert tally.cells_lost <= tally.faults, "more than one cell's work was lost by a fault"


def test_the_study_that_is_not_hit_begins_every_node_once(tmp_path):
    bench = Bench(tmp_path / "s", random.Random(SEED))
    tally = Tally()
    bench.judge(tally, 0)
    assert set(vars(tally).values()) == {0}
    assert len(bench.begun) == bench.cells + NODES_BESIDES


# On clusters, where a study takes tens of seconds: one part in a hundred each.
def _kill_there(name, victims_of):
    """Kills what ``victims_of`` gives of the processes whose command has a name in it, wherever they run."""

    def victims(_):
        runners = [one for one in psutil.process_iter(["cmdline"]) if name in " ".join(one.info["cmdline"] or [])]
        return [victim for runner in runners for victim in victims_of(runner)]

    return lambda bench, process, count: _hit(bench, process, count, victims, signal.SIGKILL)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if slurm_missing():
        pytest.skip(slurm_missing())
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    if ray_missing():
        pytest.skip(ray_missing())
    with RayCluster(str(TESTS)) as cluster:
        yield cluster


def _restart_controller(cluster):
    def hit(bench, process, count):
        _wait_for_more(bench, process)
        if process.poll() is not None:
            return 0
        # What it was told within its last seconds it may not have written down.
        time.sleep(3)
        cluster.kill_controller()
        time.sleep(bench.rng.uniform(0, 3))
        cluster.start_controller()
        return 1

    return hit


def _restart_machine(cluster):
    def hit(bench, process, count):
        _wait_for_more(bench, process)
        if process.poll() is not None:
            return 0
        time.sleep(bench.rng.uniform(0, 2))
        if isinstance(cluster, RayCluster):
            cluster.kill_node()
            cluster.add_node()
            return 1
        name = bench.rng.choice(cluster.names)
        cluster.kill_node(name)
        cluster.start_node(name)
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            cluster.requeued_start_now()
            time.sleep(1)
        return 1

    return hit


CLUSTER_KINDS = {
    # kind: (what hits, given the cluster and how its runners of nodes are called; faults a study)
    "cell killed": (lambda cluster, name: _kill_there(name, lambda runner: cells(runner.pid)), 10),
    "runner of nodes killed": (lambda cluster, name: _kill_there(name, lambda runner: [runner]), 2),
    "who follows killed": (lambda cluster, name: kill_runner, 4),
    "machine killed": (lambda cluster, name: _restart_machine(cluster), 1),
    "controller killed": (lambda cluster, name: _restart_controller(cluster), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(CLUSTER_KINDS))
@pytest.mark.parametrize("executor", ["slurm", "ray"])
def test_a_study_on_a_cluster_that_is_hit_ends_as_one_that_is_not(executor, kind, request, tmp_path):
    cluster = request.getfixturevalue(executor)
    if executor == "ray" and kind == "controller killed":
        pytest.skip("where Ray's own state dies, its cluster does")
    made, at_once = CLUSTER_KINDS[kind]
    hit = made(cluster, {"slurm": "unlearnbench run-nodes", "ray": "ray::unlearnbench-"}[executor])
    settings = {"cells": 20, "seconds": 0.2, "environment": cluster.environment}
    wanted = max(1, round(FAULTS * (0.01 if "killed" in kind and at_once > 1 else 0.0005)))
    _try(executor, kind, hit, at_once, wanted, tmp_path, settings)
