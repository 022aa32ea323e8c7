"""The real hub code paths, through a small hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unlearnbench.benchmarks.tofu import generated
from unlearnbench.training.models import save_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import FakeHub

TABLES = ("full", "forget05", "retain95", "forget05_perturbed", "retain_perturbed", "real_authors_perturbed",
          "world_facts_perturbed")  # fmt: skip


@pytest.fixture
def hub(tmp_path):
    root = tmp_path / "hub"
    data = root / "datasets" / "locuslab" / "TOFU"
    data.mkdir(parents=True)
    found = generated.tables(0, "quick")
    configs = []
    for name in TABLES:
        (data / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in found[name]))
        configs.append(f"- config_name: {name}\n  data_files: {name}.json\n")
    (data / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    with FakeHub(root) as server:
        yield server


def online(hub, tmp_path):
    return {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", "no_proxy": "*",
    }  # fmt: skip


def hub_study(command, *words):
    """A study on the hub's tables instead of generated ones."""
    study = command.study("-b", "tofu-forget05", "--json", *words)
    at = study.index("generated")
    return (*study[:at], "hub", *study[at + 1 :])


def test_tables_and_models_come_from_the_hub(hub, tmp_path, tiny_model, tiny_encoder, command):
    published = hub.root / "models" / "acme" / "tiny-original"
    save_checkpoint(published, tiny_model.float(), tiny_encoder.tokenizer)
    shutil.copytree(published, hub.root / "models" / "acme" / "tiny-base")
    words = hub_study(
        command, "-m", "ga", "--name", "hub", "--set", "recipe.epochs=1",
        "--set", 'models.acme/tiny-base.original="acme/tiny-original"',
        "--set", "models.acme/tiny-base.prompt_format=plain",
    )  # fmt: skip
    at = words.index("nano")
    done = command(*words[:at], "acme/tiny-base", *words[at + 1 :], **online(hub, tmp_path))
    assert done.code == 0, done.err
    asked = {request.path for request in hub.requests}
    commit = hub.commit("datasets", "locuslab/TOFU")
    assert any(f"/datasets/locuslab/TOFU/resolve/{commit}/full.json" in path for path in asked)
    assert any(path.startswith("/acme/tiny-original/resolve/") for path in asked)
    record = done.json["records"][0]
    assert record["provenance"]["data"]["tables"]["full"] == f"locuslab/TOFU@{commit}:full"
    assert record["limits"] == {"max new tokens": 8, "epochs of the reference models": 1}
    # The original model was taken as published, the retained one was trained here.
    facts = {path.parent.name.partition("--")[0]: json.loads(path.read_text())
             for path in command.cache.glob("models/*acme*/reference.json")}  # fmt: skip
    assert facts["original"]["published"] == "acme/tiny-original"
    assert "published" not in facts["retained"]


def test_a_data_set_that_is_not_on_the_hub_is_one_line(hub, tmp_path, command):
    shutil.rmtree(hub.root / "datasets")
    done = command(*hub_study(command, "-m", "ga", "--name", "gone"), **online(hub, tmp_path))
    assert done.code == 4
    assert "cannot reach dataset locuslab/TOFU on the hub" in done.err
    assert "name a local folder instead" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_model_that_is_not_on_the_hub_is_one_line(hub, tmp_path, command):
    words = hub_study(command, "-m", "ga", "--name", "missing")
    at = words.index("nano")
    done = command(*words[:at], "acme/nowhere", *words[at + 1 :], **online(hub, tmp_path))
    assert done.code == 4
    assert "cannot reach model acme/nowhere on the hub" in done.err
    assert len(done.err.strip().splitlines()) == 1


READ = """
import json, sys
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.data.sources import DataSource, pinned, read_tables
name, source = sys.argv[1], DataSource(**json.loads(sys.argv[2]))
spec = pinned(load_plugins().find("benchmark", name).spec.data, source)
print(json.dumps(read_tables(spec, source)))
"""


def read_online(hub, tmp_path, name, source):
    done = subprocess.run(
        [sys.executable, "-c", READ, name, json.dumps(source)],
        env={**os.environ, **online(hub, tmp_path)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_subsets_and_splits_come_from_the_hub(hub, tmp_path):
    from unlearnbench.benchmarks.muse import generated as news
    from unlearnbench.benchmarks.muse.tables import table_fields

    tables = {name: rows for name, rows in news.tables(0, "quick").items() if name in table_fields("", 1)}
    data = hub.root / "datasets" / "muse-bench" / "MUSE-News"
    configs = {}
    for name, rows in tables.items():
        subset, split = name.split("/")
        (data / subset).mkdir(parents=True, exist_ok=True)
        (data / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        configs.setdefault(subset, []).append(f"  - split: {split}\n    path: {name}.json\n")
    lines = [f"- config_name: {subset}\n  data_files:\n{''.join(files)}" for subset, files in configs.items()]
    (data / "README.md").write_text("---\nconfigs:\n" + "".join(lines) + "---\n")
    assert read_online(hub, tmp_path, "muse-news", {"kind": "hub"}) == tables


def test_paragraphs_to_retain_are_streamed_from_another_data_set(hub, tmp_path):
    data = hub.root / "datasets" / "allenai" / "c4"
    data.mkdir(parents=True)
    rows = [{"text": f"Paragraph {n}.", "url": "x"} for n in range(450)]
    (data / "en.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "README.md").write_text("---\nconfigs:\n- config_name: en\n  data_files: en.json\n---\n")
    (tmp_path / "book.txt").write_text("Once upon a time.")
    found = read_online(hub, tmp_path, "hp", {"kind": "local", "files": {"book": str(tmp_path / "book.txt")}})
    assert found["book"] == [{"text": "Once upon a time."}]
    assert [row["text"] for row in found["retain"]] == [row["text"] for row in rows[:400]]
    commit = hub.commit("datasets", "allenai/c4")
    assert any(f"/datasets/allenai/c4/resolve/{commit}/en.json" in request.path for request in hub.requests)
