"""``run.optimiser`` and ``run.deterministic`` from the command line to the record, and what a GPU has no room for."""

from __future__ import annotations

import json
import os

import pytest
import torch

from unlearnbench.errors import UsageError
from unlearnbench.training.footprint import refuse_unfit

LARGE = ("--model", "llama2-7b", "-m", "ga", "-b", "tofu-forget10", "--set", "run.device=cuda:0")


def records(folder):
    found = [json.loads(path.read_text()) for path in folder.glob("cells/*/record.json")]
    return {record["identity"]["method"]: record for record in found}


@pytest.mark.parametrize(
    "optimiser", ["adamw-bf16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw-8bit", "lora"))]
)
def test_rows_of_another_optimiser_say_so_and_are_not_compared_with_those_of_adamw(optimiser, command):
    words = command.study("-m", "ga", "-b", "tofu-forget10", "--set", f"run.optimiser={optimiser}")
    done = command(*words)
    assert done.code == 0, done.err
    found = records(command.folder / "runs" / "study")
    assert found.keys() == {"original", "retained", "ga"}
    for record in found.values():
        assert record["comparability"]["key"]["optimiser"] == optimiser
        assert record["limits"]["optimiser"] == optimiser
        assert record["comparability"]["key"]["lora_rank"] == (16 if optimiser == "lora" else 0)
    assert found["ga"]["cost"]["optimiser_steps"] > 0


def test_deterministic_runs_give_the_same_bits(command):
    """A cell of its own, in which torch may use nothing else."""
    plugin = command.folder / "asks.py"
    plugin.write_text(
        "import torch\nfrom unlearnbench import Method, MethodSpec\n"
        "class Asks:\n"
        "    def unlearn(self, model, tokenizer, data, ctx):\n"
        "        assert torch.are_deterministic_algorithms_enabled()\n"
        "        return model\n"
        "def unlearnbench_methods():\n"
        "    return [MethodSpec('asks', 'asks:Asks', 'asks torch')]\n"
    )
    words = command.study("-b", "tofu-forget10", "--plugin", str(plugin), "-m", "asks", "-m", "ga")
    plain = command(*words, "--name", "plain", "-m", "ga")
    assert plain.code == 1, "asks fails where torch may use anything"
    done = command(*words, "--name", "same", "--set", "run.deterministic=true")
    assert done.code == 0, done.err
    one, other = (records(command.folder / "runs" / name)["ga"] for name in ("plain", "same"))
    assert one["samples"]["sha256"] == other["samples"]["sha256"]
    assert one["cell"] != other["cell"]


@pytest.fixture
def gpu(command):
    """The environment of a machine whose GPU has so many GiB, as nvidia-smi has it."""

    def of(gibibytes):
        tool = command.folder / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\necho {gibibytes * 1024}\n")
        tool.chmod(0o755)
        return {"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}

    return of


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_what_a_gpu_has_no_room_for_is_refused_before_anything_is_loaded(verb, command, gpu):
    done = command(verb, *LARGE, **gpu(80))
    assert done.code == 4
    needs = "retained model llama2-7b (retain90) needs about 104 GiB of GPU memory with run.optimiser = 'adamw'"
    assert f"{needs}, and the device has 80: set run.optimiser to 'adamw-8bit' (66 GiB) or " in done.err
    assert not list(command.folder.glob("runs/*/*/*/log.txt"))
    if verb == "plan":
        assert "estimate for one H100-class GPU" in done.out, "the plan is shown all the same"
        shown = command(verb, *LARGE, "--json", **gpu(80))
        assert shown.code == 4
        assert max(node["estimate"]["device_memory_bytes"] for node in shown.json["nodes"]) > 100 * 2**30


def test_what_fits_is_planned(command, gpu):
    for more in (("--set", "run.optimiser=adamw-8bit"), ("--set", "run.processes=2")):
        done = command("plan", *LARGE, *more, **gpu(80))
        assert done.code == 0, done.err
    assert command("plan", *LARGE, **gpu(140)).code == 0
    assert command("plan", *LARGE, PATH="").code == 0, "where nvidia-smi says nothing, nothing is refused"


def test_where_nothing_fits_no_optimiser_is_named():
    with pytest.raises(UsageError, match="the device has 1: take a smaller batch or model, or share"):
        refuse_unfit("a cell", "lora", 2**30, lambda name: 2**34)


def test_a_worker_refuses_too(monkeypatch):
    """On a cluster, whose GPUs the planner does not see."""
    from types import SimpleNamespace

    from unlearnbench.worker.setup import check_fits

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 40 * 2**30))
    model = SimpleNamespace(shape={"parameters": 3e9, "layers": 20, "width": 2048}, spec=SimpleNamespace(lora_rank=0))

    def check(optimiser):
        run = SimpleNamespace(optimiser=optimiser, processes=1)
        check_fits(SimpleNamespace(title="ga × b × m", model=model, run=run), torch.device("cuda"))

    with pytest.raises(UsageError, match=r"ga × b × m needs about 45 GiB .*'adamw-8bit' \(28 GiB\)"):
        check("adamw")
    check("adamw-8bit")


@pytest.mark.parametrize("optimiser", ["adamw-8bit", "adamw-bf16"])
def test_bad_combinations_are_refused_with_a_remedy(optimiser, command):
    done = command("plan", *LARGE, "--set", "run.processes=2", "--set", f"run.optimiser={optimiser}")
    assert done.code == 4
    assert f"run.optimiser = '{optimiser}' with run.processes = 2" in done.err
    unknown = command("plan", *LARGE, "--set", "run.optimiser=sgd")
    assert unknown.code == 4
    assert "run.optimiser = 'sgd'" in unknown.err
