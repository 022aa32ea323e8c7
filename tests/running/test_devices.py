"""Cells are spread over the devices that there are, and what a device can do is measured."""

from __future__ import annotations

import json

import pytest
import torch

from unlearnbench.cli.main import bench_gpu
from unlearnbench.engine.memory import Peaks
from unlearnbench.planning import provenance
from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.running.executor import Job, LocalExecutor
from unlearnbench.running.scheduler import execute
from unlearnbench.storage import read_json, write_sealed
from unlearnbench.training.device_benchmark import SHAPES, Limits, measured_limits, stages


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


class Recorder(LocalExecutor):
    """Runs nothing: a job ends when it is looked at, and what ran at the same time is remembered."""

    def __init__(self):
        self.running = {}
        self.together = []

    def start(self, key, folder):
        spec = read_json(folder / "spec.json", "")
        self.running[key] = spec["run"]["device"]
        self.together.append(sorted(self.running.values()))
        write_sealed(
            folder / "status.json", {"status": "done", "reason": "", "seconds": 0.0, "content": spec["content"]}
        )
        return Job(key, folder, Ended(self, key), 0.0)


class Ended:
    """A process that lets others start beside it before it is found to have ended."""

    def __init__(self, executor, key):
        self.executor, self.key, self.looks = executor, key, 0
        self.sentinel = _readable()

    @property
    def exitcode(self):
        self.looks += 1
        return 0 if self.looks > 1 else None

    def join(self):
        self.executor.running.pop(self.key, None)


def _readable():
    import os

    read, write = os.pipe()
    os.write(write, b"x")
    return read


def test_cells_are_spread_over_all_devices(tmp_path, monkeypatch):
    monkeypatch.setattr("unlearnbench.running.scheduler.devices", lambda setting: ["cuda:0", "cuda:1"])
    study = check_study({
        "study": {"name": "x", "methods": ["ga", "npo", "flat-tv"], "benchmarks": ["tofu-forget01"],
                  "models": ["tiny"]},
        "data": {"source": "generated", "scale": "quick"}, "run": {"jobs": 2},
    }, ())  # fmt: skip
    executor = Recorder()
    outcomes = execute(tmp_path, make_plan(study, load_plugins()), tmp_path / "cache", lambda *_: None, executor)
    assert {outcome.status for outcome in outcomes} == {"done"}
    assert ["cuda:0", "cuda:1"] in executor.together, "the second node takes the device that is free"
    assert max(map(len, executor.together)) >= 3, "two at a time on each of two devices"
    assert all(devices.count("cuda:0") <= 2 and devices.count("cuda:1") <= 2 for devices in executor.together)


def test_a_stage_has_a_peak_of_its_own():
    peaks, cpu = Peaks(), torch.device("cpu")
    with peaks.stage("large", cpu):
        torch.ones(40_000_000)
    with peaks.stage("small", cpu):
        torch.ones(10)
    assert peaks.resident["large"] - peaks.resident["small"] > 100_000_000
    assert peaks.device == {}


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


def test_every_shape_can_be_asked_for():
    (shapes,) = (option for option in bench_gpu.params if option.name == "shapes")
    assert tuple(shapes.type.choices) == tuple(SHAPES)


def test_a_machine_without_a_gpu_is_told_so(command):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = command("bench-gpu")
    assert done.code == 4
    assert "no GPU is visible here" in done.err


def test_two_processes_that_share_a_model_give_what_one_gives(command):
    """The reference models too are trained by both; a batch of one row leaves a process without a row of its own."""
    chosen = ("-m", "ga", "-m", "llmu", "-m", "flat-tv", "-b", "tofu-forget05", "--json")
    released = ("--set", "methods.flat-tv.edition=as-released", "--set", "methods.ga.batch_size=5")
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
        assert other["losses"] == pytest.approx(record["losses"], rel=1e-3, abs=1e-4), method
        for name in ("forget_probability", "retain_probability"):
            values = [side["scores"][name]["value"] for side in (record, other)]
            assert values[1] == pytest.approx(values[0], rel=1e-2), (method, name)
