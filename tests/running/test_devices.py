"""Cells are spread over the devices that there are, and what a device can do is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import get_args

import pytest
import torch
from noop_worker import WORKER

from unlearnbench.cli.main import bench_gpu
from unlearnbench.engine.memory import Peaks
from unlearnbench.errors import UsageError
from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records import provenance
from unlearnbench.records.node_spec import Optimiser, RunSettings, read_spec
from unlearnbench.records.run_folder import read_status
from unlearnbench.running.local_executor import slots_here
from unlearnbench.running.node_pool import NodePool, Slot
from unlearnbench.running.run_store import folder_of
from unlearnbench.training.device_benchmark import SHAPES, Limits, measured_limits, stages
from unlearnbench.training.footprint import HELD
from unlearnbench.worker.setup import device_of


@pytest.mark.parametrize(
    ("setting", "visible", "gpus", "expected"),
    [
        ("cpu", None, 4, ["cpu"]),
        ("cuda:1", None, 4, ["cuda:1"]),
        ("auto", None, 0, ["cpu"]),
        ("auto", None, 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", "5,7", 8, ["cuda:0", "cuda:1"]),
        ("auto", "", 8, ["cpu"]),
    ],
)
def test_a_setting_names_the_devices_that_are_there(setting, visible, gpus, expected, tmp_path, monkeypatch):
    driver = tmp_path / "nvidia"
    for number in range(gpus):
        (driver / "gpus" / f"0000:{number:02}:00.0").mkdir(parents=True)
    if gpus:
        (driver / "version").write_text("NVRM version")
    monkeypatch.setattr(provenance, "DRIVER", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert provenance.devices(setting) == expected


@pytest.mark.parametrize(
    ("name", "visible", "shown"),
    [
        ("cuda:0", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda:1", "2,5", "5"),
        ("cuda:0", "GPU-b1, GPU-a2", "GPU-b1"),
    ],
)
def test_a_process_sees_only_the_gpu_that_it_is_given(name, visible, shown, monkeypatch):
    """accelerate, bitsandbytes and others take the first GPU for theirs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # Set first, so that what the process sets itself is undone as well.
    for variable in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_of(name) == torch.device("cuda:0")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == shown
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(("visible", "count"), [("2,5", 2), ("", 0)])
def test_a_gpu_that_is_not_among_the_visible_ones_is_refused(visible, count, monkeypatch):
    """An empty list hides all of them, which naming one does not undo."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UsageError, match=rf"^run\.device = 'cuda:2': CUDA_VISIBLE_DEVICES shows {count}; .* from 0$"):
        device_of("cuda:2")


def test_cells_are_spread_over_all_devices(tmp_path):
    study = check_study({
        "study": {"name": "x", "methods": ["ga", "npo", "flat-tv"], "benchmarks": ["tofu-forget01"],
                  "models": ["tiny"]},
        "data": {"source": "generated", "scale": "quick"},
    }, ())  # fmt: skip
    plan = make_plan(study, load_plugins())
    slots = [Slot("cuda:0", 3), Slot("cuda:0", 3), Slot("cuda:1", 3), Slot("cuda:1", 3)]
    run = tmp_path / "run"
    (tmp_path / "behaviour.json").write_text('{"seconds": 0.2}')
    together = []
    with NodePool(run, tmp_path / "cache", study.run, slots, WORKER) as pool:
        pool.add(plan.nodes)
        while pool.busy:
            pool.step()
            places = []
            for key in pool.running:
                (folder,) = run.glob(f"*/{key}~*")
                settings = read_spec(folder).run
                assert settings.threads == 3
                places.append(settings.device)
            together.append(sorted(places))
    assert {read_status(folder_of(run, node)).status for node in plan.nodes} == {"done"}
    assert ["cuda:0", "cuda:1"] in together, "the second node takes the device that is free"
    assert max(map(len, together)) >= 3, "two at a time on each of two devices"
    assert all(devices.count("cuda:0") <= 2 and devices.count("cuda:1") <= 2 for devices in together)


def test_this_machine_has_a_slot_for_every_job_on_every_device(monkeypatch):
    monkeypatch.setattr("unlearnbench.running.local_executor.devices", lambda setting: ["cuda:0", "cuda:1"])
    monkeypatch.setattr("unlearnbench.running.local_executor.usable_cores", lambda: 16)
    slots = slots_here(RunSettings(jobs=2))
    assert sorted(slot.device for slot in slots) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert {slot.threads for slot in slots} == {4}
    together = slots_here(RunSettings(processes=2, device="cpu"))
    assert together == [Slot("cpu", 8)], "a cell that takes several devices has them all"


def test_a_stage_has_a_peak_of_its_own():
    peaks, cpu = Peaks(), torch.device("cpu")
    with peaks.stage("large", cpu):
        torch.ones(40_000_000)
    with peaks.stage("small", cpu):
        torch.ones(10)
    assert peaks.resident["large"] - peaks.resident["small"] > 100_000_000
    assert peaks.device == {}


@pytest.mark.slow
def test_what_a_device_can_do_is_measured_and_compared_with_its_limits(command):
    limits = measured_limits(torch.device("cpu"), torch.float32)
    assert limits.operations > 1e8
    assert limits.bandwidth > 1e7
    found = {stage.stage: stage for stage in stages("tiny", limits, torch.device("cpu"))}
    assert set(found) == {"training", "scoring", "decoding"}
    for stage in found.values():
        assert stage.tokens_per_second > 0
        assert 0 < stage.utilisation < 1
    faster = Limits(limits.operations * 1e6, limits.bandwidth)
    scoring = next(stage for stage in stages("tiny", faster, torch.device("cpu")) if stage.stage == "scoring")
    assert scoring.utilisation < found["scoring"].utilisation / 1e3, "the same work is less of a faster device"
    done = command("bench-gpu", "--shape", "tiny", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    assert [stage["stage"] for stage in json.loads(done.out)["stages"]] == ["training", "scoring", "decoding"]


def test_every_shape_and_every_optimiser_can_be_asked_for():
    options = {option.name: option.type for option in bench_gpu.params}
    assert tuple(options["shapes"].choices) == tuple(SHAPES)
    assert tuple(options["optimiser"].choices) == tuple(HELD) == get_args(Optimiser)


def test_a_machine_without_a_gpu_is_told_so(command):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = command("bench-gpu")
    assert done.code == 4
    assert "no GPU is visible here" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_two_processes_that_share_a_model_give_what_one_gives(dtype, near, command):
    """The reference models too are trained by both; a batch of one row leaves a process without a row of its own."""
    chosen = ("-m", "ga", "-m", "llmu", "-m", "flat-tv", "-b", "tofu-forget05", "--json")
    released = ("--set", "methods.flat-tv.edition=as-released", "--set", "methods.ga.batch_size=5",
                "--set", f"models.nano.dtype={dtype}")  # fmt: skip
    found = []
    for processes in ("1", "2"):
        cache = command.folder / f"cache-{processes}"
        words = command.study(*chosen, *released, "--name", f"p{processes}", "--set", f"run.processes={processes}",
                              "--set", "run.threads=1")  # fmt: skip
        done = command(*words, UNLEARNBENCH_CACHE=str(cache))
        assert done.code == 0, done.err
        found.append({record["identity"]["method"]: record for record in done.json["records"]})
    one, two = found
    assert one.keys() == two.keys() == {"original", "retained", "ga", "llmu", "flat-tv"}
    for method, record in one.items():
        other = two[method]
        assert (record["provenance"]["processes"], other["provenance"]["processes"]) == (1, 2)
        assert other["losses"] == pytest.approx(record["losses"], rel=near, abs=near / 10), method
        for name in ("forget_probability", "retain_probability"):
            values = [side["scores"][name]["value"] for side in (record, other)]
            assert values[1] == pytest.approx(values[0], rel=10 * near), (method, name)


ONE_IS_BLIND = """
import sys
from pathlib import Path
from unlearnbench.engine import process_group
from unlearnbench.errors import RecordError
from unlearnbench.records.node_spec import read_spec
from unlearnbench.worker import reference

def facts(folder):
    if process_group.rank() == int(sys.argv[2]):
        raise RecordError("not there yet")
    return {"rows": 7}

reference.reference_facts = facts
reference._train = lambda spec, folder: {"rows": "trained"}
found = reference.prepare_reference(read_spec(Path(sys.argv[1])))
Path(sys.argv[3], str(process_group.rank())).write_text(repr(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("blind", "found"), [(1, ["{'rows': 7}", "{}"]), (0, ["{'rows': 'trained'}"] * 2)])
def test_processes_that_see_a_cache_differently_do_the_same(blind, found, small_run, tmp_path):
    """The model was stored between two looks: one process would train and wait for the other forever."""
    run, _ = small_run
    (tmp_path / "script.py").write_text(ONE_IS_BLIND)
    node = next((run / "models").iterdir())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [str(tmp_path / "script.py"), str(node), str(blind), str(tmp_path)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == found
