"""The engine's stages on fake CUDA tensors, where there is no GPU: devices, types, shapes, and that nothing waits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from unlearnbench.training.device_benchmark import SHAPES
from unlearnbench.training.footprint import HELD, training_bytes

HERE = Path(__file__).parent.parent / "fake_cuda"

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA of its own"),
]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Runs a stage in a process whose torch has fake devices."""
    built = tmp_path_factory.mktemp("built")
    base = Path(torch.__file__).parent
    includes = [base / "include", base / "include/torch/csrc/api/include", sysconfig.get_paths()["include"]]
    libraries = [f"-L{base / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{base / 'lib'}"]
    out = ["-o", str(built / "fake_cuda_device.so")]
    options = ["-O0", "-std=c++20", "-shared", "-fPIC", *(f"-I{path}" for path in includes)]
    words = ["g++", *options, str(HERE / "device.cpp"), *out, *libraries]
    made = subprocess.run(words, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]

    def run(name, shape, *more):
        path = os.pathsep.join(filter(None, [str(built), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, str(HERE / "stages.py"), name, shape, *more],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_training_stays_on_its_device_in_its_type_and_waits_for_nothing(stage):
    found = stage("training", "tiny", "cuda:1")
    assert found["steps"] == 3
    assert found["devices"] == ["cuda:1"]
    assert found["types"] == ["torch.float32"]


@pytest.mark.parametrize(("name", "way"), [("trees", "trees"), ("padded", "padded rows")])
def test_scoring_stays_on_its_device_and_waits_for_nothing(stage, name, way):
    found = stage(name, "tiny", "cuda:1")
    assert found["scored"] == found["expected"]
    assert found["devices"] == ["cuda:1"]
    assert found["ways"].keys() == {way}


def test_recorded_steps_write_as_many_tokens_as_asked_for(stage):
    assert stage("decoded", "tiny", "cuda:1")["tokens"] == [24]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["1b", "7b"])
@pytest.mark.parametrize("name", ["trees", "padded", "decoded"])
def test_large_shapes_go_through_every_stage(stage, name, shape):
    assert stage(name, shape, "cuda:0")["peak_bytes"] > 2 * 10**9


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "kept"), [(8, "all"), (32, "all"), (32, "inputs")])
@pytest.mark.parametrize("shape", ["1b", "7b"])
@pytest.mark.parametrize("optimiser", sorted(HELD))
def test_training_takes_what_is_estimated_within_a_twentieth(stage, optimiser, shape, rows, kept):
    found = stage("training", shape, "cuda:0", optimiser, str(rows), kept)
    sizes = SHAPES[shape]
    known = {
        "parameters": found["weights"],
        "layers": sizes.layers,
        "width": sizes.width,
        "inner": sizes.inner,
        "vocabulary": sizes.vocabulary,
        "key_width": sizes.width // sizes.heads * sizes.key_heads,
        "tied": sizes.tied,
    }
    expected = training_bytes(known, optimiser, found["tokens"], checkpointing=kept == "inputs")
    assert found["peak_bytes"] == pytest.approx(expected, rel=0.05)
