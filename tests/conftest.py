"""Shared fixtures: a tiny model, its encoder, and a runner for the command line in folders of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from made_cells import cells_with  # noqa: F401 (a fixture)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A model far smaller than tiny: trained in a second or two, which is enough to see whether machinery works.
NANO = """
from unlearnbench import ModelSpec

def unlearnbench_models():
    return [ModelSpec(
        "nano", "one layer, for tests", prompt_format="plain", dtype="float32",
        architecture={"layers": 1, "width": 32, "heads": 2, "hidden": 32, "vocabulary": 700, "context": 256},
        recipe={"learning_rate": 1e-2, "epochs": 2, "batch_size": 64},
        method_defaults={"learning_rate": 1e-3, "epochs": 2, "batch_size": 8},
    )]
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole studies first: files are dealt out in this order, and a long one that began last would be waited for."""
    items.sort(key=lambda item: "running" not in item.path.parts)


@pytest.fixture(scope="session")
def tiny_encoder() -> Any:
    from unlearnbench.running.builtin import unlearnbench_models
    from unlearnbench.training.models import make_encoder

    spec = next(spec for spec in unlearnbench_models() if spec.name == "tiny")
    corpus = ["Where was Ada born? Ada was born in Rome.", "What does Bo write? Bo writes long poems about the sea."]
    return make_encoder(spec, corpus * 20)


@pytest.fixture
def tiny_model(tiny_encoder: Any) -> Any:
    """A fresh two-layer Llama with random weights, in float64 so that equalities can be tight."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tiny_encoder.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tiny_encoder.tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).double().eval()


@dataclass
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Command:
    """The command line in a folder of its own, with a cache of its own."""

    folder: Path
    cache: Path
    nano: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "UNLEARNBENCH_CACHE": str(self.cache), "PYTHONWARNINGS": "ignore"}

    def __call__(self, *words: str, timeout: float = 300, **environment: str) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "unlearnbench", *words],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def study(self, *words: str) -> tuple[str, ...]:
        """Arguments of a run that takes seconds: the nano model on generated data."""
        quick = ("--data", "generated", "--set", "data.scale=quick", "--set", "benchmarks.*.max_new_tokens=8",
                 "--set", "run.threads=1")  # fmt: skip
        return ("run", "--plugin", str(self.nano), "--model", "nano", *quick, "--device", "cpu", *words)


@pytest.fixture(scope="session")
def reseal() -> Callable[[Path], None]:
    """Lets a finished cell that a test changed stand as if it had been left like that: with the hashes of its files."""
    from unlearnbench.storage import file_digest, read_sealed, write_json, write_sealed

    def sealed(cell: Path) -> None:
        record, samples = cell / "record.json", cell / "samples.jsonl.gz"
        content = json.loads(record.read_text())
        content["samples"]["sha256"] = file_digest(samples)
        write_json(record, content)
        hashes = {"record_sha256": file_digest(record), "samples_sha256": content["samples"]["sha256"]}
        write_sealed(cell / "status.json", read_sealed(cell / "status.json", "") | hashes)

    return sealed


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of the session, one for all processes that run its tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def run_once(command: Command, *words: str) -> Finished:
    """A study in the command's folder, and what it printed; the first process that asks runs it."""
    kept = command.folder.with_suffix(".json")
    with FileLock(f"{command.folder}.lock"):
        if not kept.exists():
            command.folder.mkdir()
            kept.write_text(json.dumps(asdict(command(*command.study(*words)))))
    done = Finished(**json.loads(kept.read_text()))
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="session")
def shared_cache(shared_folder: Path) -> Path:
    """Prepared nano models, trained once for all tests that do not change what they depend on."""
    return shared_folder / "cache"


@pytest.fixture(scope="session")
def nano_plugin(shared_folder: Path) -> Path:
    path = shared_folder / "plugins" / "nano_model.py"
    with FileLock(shared_folder / "plugins.lock"):
        if not path.exists():
            path.parent.mkdir()
            path.write_text(NANO)
    return path


@pytest.fixture(scope="session")
def command_in(shared_cache: Path, nano_plugin: Path) -> Callable[[Path], Command]:
    """Makes the command line of a folder."""
    return lambda folder: Command(folder, shared_cache, nano_plugin)


@pytest.fixture
def command(tmp_path: Path, command_in: Callable[[Path], Command]) -> Command:
    return command_in(tmp_path)


@pytest.fixture(scope="session")
def small_run(shared_folder: Path, command_in: Callable[[Path], Command]) -> Any:
    """A finished run of every built-in method on generated forget10; for reading only."""
    command = command_in(shared_folder / "small-run")
    done = run_once(command, "-m", "all", "-b", "tofu-forget10", "--name", "small", "-j", "2", "--json")
    return command.folder / "runs" / "small", done


@pytest.fixture(scope="session")
def text_run(shared_folder: Path, command_in: Callable[[Path], Command]) -> Any:
    """A finished run of some methods on the two benchmarks of running text, and what it printed; for reading only."""
    command = command_in(shared_folder / "text-run")
    small = ("chunk_tokens=64", "verbatim_tokens=8", "answer_tokens=4", "prefix_words=8", "response_words=8",
             "released_tokens=60")  # fmt: skip
    settings = [word for value in small for word in ("--set", f"benchmarks.*.{value}")]
    methods = [word for name in ("npo-rt", "task-vector", "whp", "flat-kl") for word in ("-m", name)]
    done = run_once(command, *methods, "-b", "muse-news", "-b", "hp", *settings, "--name", "text", "-j", "2", "--json")
    return command.folder / "runs" / "text", done.json
