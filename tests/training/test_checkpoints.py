"""Weights are those that a checkpoint holds, in the precision asked for, or an error that says what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from unlearnbench.data.model_folder import REFERENCE, folder_fingerprint, reference_facts
from unlearnbench.engine.numerics import cast
from unlearnbench.errors import ModelError, RecordError
from unlearnbench.plugin.specs import ModelSpec
from unlearnbench.training import models
from unlearnbench.training.models import frozen_copy, load_base, load_checkpoint, save_checkpoint


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_encoder):
    save_checkpoint(tmp_path / "model", tiny_model.float(), tiny_encoder.tokenizer, {"notes": [], "rows": 1})
    return tmp_path / "model"


def changed(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})


LAYER = "model.layers.1.mlp.up_proj.weight"
UNFIT = {
    "another prefix": (lambda w: {f"module.{name}": value for name, value in w.items()}, "missing .*unexpected"),
    "a layer missing": (lambda w: {n: v for n, v in w.items() if "layers.1." not in n}, "9 missing"),
    "a tensor too many": (lambda w: {**w, "model.layers.7.mlp.up_proj.weight": w[LAYER].clone()}, "1 unexpected"),
    "another size": (lambda w: {**w, LAYER: w[LAYER][:40].clone()}, rf"1 of another size \({LAYER}\)"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_weights_that_do_not_fit_are_named_and_not_made_up(kind, folder, tiny_encoder):
    change, complaint = UNFIT[kind]
    changed(folder, change)
    spec = ModelSpec("m", "", path=str(folder))
    with pytest.raises(ModelError, match=f"do not fit its config.json: .*{complaint}"):
        load_base(spec, tiny_encoder, 0)
    with pytest.raises(ModelError, match="allow_missing_weights = true"):
        load_checkpoint(str(folder), spec)
    notes = []
    load_base(ModelSpec("m", "", path=str(folder), allow_missing_weights=True), tiny_encoder, 0, notes)
    assert len(notes) == 1
    assert notes[0].startswith("weights do not fit: ")


def test_tied_weights_and_buffers_are_not_missed(folder, tiny_encoder):
    """The head that repeats the embedding is stored once; old checkpoints hold what models compute by now."""
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    changed(folder, lambda w: {**w, "model.rotary_emb.inv_freq": torch.ones(4),
                               "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})  # fmt: skip
    load_base(ModelSpec("m", "", path=str(folder)), tiny_encoder, 0)


def run_with(command, folder, *more):
    words = command.study("-m", "ga", "-b", "tofu-forget05", "--name", "m", "--json", "--limit", "2")
    at = words.index("nano")
    return command(*words[:at], str(folder), *words[at + 1 :], "--set", "recipe.epochs=1",
                   "--set", f"models.{folder}.prompt_format=plain", *more)  # fmt: skip


@pytest.mark.slow
def test_weights_that_do_not_fit_end_the_node_or_are_asked_for_and_never_ranked(folder, command):
    changed(folder, lambda w: {n: v for n, v in w.items() if "layers.1." not in n})
    refused = run_with(command, folder)
    assert refused.code == 4
    assert "9 missing (model.layers.1." in refused.err.strip().splitlines()[-1]
    allowed = run_with(command, folder, "--set", f"models.{folder}.allow_missing_weights=true")
    assert allowed.code == 0, allowed.err
    for record in allowed.json["records"]:
        assert record["unranked"] == ["weights may be missing (allow_missing_weights)"]
        assert any("weights do not fit: 9 missing" in note for note in record["notes"])
    site = (command.folder / "runs" / "m" / "site" / "b" / "tofu-forget05.html").read_text()
    assert "weights may be missing" in site


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"},
         "model.safetensors in .* is a Git LFS pointer in place of the file; fetch it with: git lfs pull"),
        ({"adapter_config.json": b"{}", "config.json": None}, "is a LoRA adapter and not a model; merge it"),
    ],
    ids=["an LFS pointer", "an adapter"],
)  # fmt: skip
def test_a_folder_that_holds_something_else_is_called_what_it_is(content, complaint, folder, command):
    import re

    for name, text in content.items():
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(text)
    done = run_with(command, folder)
    assert done.code == 4
    assert re.search(complaint, done.err.strip().splitlines()[-1]), done.err


def test_weights_that_are_no_numbers_are_the_checkpoint_s_fault(folder, command):
    changed(folder, lambda w: {**w, LAYER: torch.full_like(w[LAYER], torch.nan)})
    done = run_with(command, folder)
    assert done.code == 4, done.err
    line = done.err.strip().splitlines()[-1]
    assert f"{LAYER} is not finite; the checkpoint is damaged" in line
    assert "learning_rate" not in line


def test_a_model_file_that_cannot_be_read_is_one_line(folder, monkeypatch):
    from pathlib import Path

    opened = Path.open

    def refuse(path, *words, **more):
        if path.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *words, **more)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match=r"cannot read '.*model.safetensors': Permission denied; make it readable"):
        folder_fingerprint(str(folder))


# -- precision ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_llama(tmp_path_factory):
    """Its weights are large enough for positions to matter."""
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=2, max_position_embeddings=4096, bos_token_id=None)  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_weights_and_no_buffers(long_llama, dtype):
    wide = AutoModelForCausalLM.from_pretrained(long_llama, dtype=torch.float32).eval()
    expected = AutoModelForCausalLM.from_pretrained(long_llama, dtype=dtype).eval()
    ids = torch.randint(1, 500, (1, 2000), generator=torch.Generator().manual_seed(0))
    for found in (frozen_copy(wide, dtype), cast(wide, dtype)):
        assert {n: b.dtype for n, b in found.named_buffers()} == {n: b.dtype for n, b in expected.named_buffers()}
        assert {n: p.dtype for n, p in found.named_parameters()} == {n: p.dtype for n, p in expected.named_parameters()}
        with torch.no_grad():
            assert torch.equal(found(input_ids=ids).logits, expected(input_ids=ids).logits)


def test_weights_go_to_a_gpu_one_after_another(folder, monkeypatch):
    """By transformers' own placing, here of the CPU: the same model, free to be moved and saved."""
    load, asked = models._load, []

    def elsewhere(path, spec, notes, **where):
        asked.append(where["device_map"])
        return load(path, spec, notes, **{**where, "device_map": {"": "cpu"}})

    plain = load_checkpoint(str(folder), ModelSpec("m", "", path="x"))
    monkeypatch.setattr(models, "_load", elsewhere)
    placed = load_checkpoint(str(folder), ModelSpec("m", "", path="x"), device="cuda:0")
    assert asked == [{"": torch.device("cuda:0")}]
    for mine, theirs in zip(placed.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(placed(ids).logits, plain(ids).logits)
    placed.to("cpu").save_pretrained(folder.parent / "again")


# -- whole or made again ----------------------------------------------------------------------------------------------


def damages(path):
    content = path.read_bytes()
    middle = len(content) // 2
    yield content[:middle]
    for place in (len(content) // 3, middle, len(content) - 2):
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_damaged_prepared_model_is_never_taken(folder):
    """Every file of it, by truncation and by one bit; weights with a flipped bit load as others without a word."""
    assert reference_facts(folder)["rows"] == 1
    files = sorted(path for path in folder.iterdir() if path.name != ".gitattributes")
    assert len(files) >= 5
    for path in files:
        whole = path.read_bytes()
        for content in damages(path):
            path.write_bytes(content)
            with pytest.raises(RecordError, match="run the study again to prepare it anew"):
                reference_facts(folder)
        path.write_bytes(whole)
    (folder / "config.json").unlink()
    with pytest.raises(RecordError, match=r"config.json is missing"):
        reference_facts(folder)


@pytest.fixture
def finished(command):
    words = (*command.study("-m", "ga", "-b", "tofu-forget05", "--name", "again", "--json", "--limit", "2"),)
    cache = command.folder / "cache"
    done = command(*words, UNLEARNBENCH_CACHE=str(cache))
    assert done.code == 0, done.err
    return command, lambda: command(*words, UNLEARNBENCH_CACHE=str(cache)), cache, done.json


def test_a_damaged_cache_is_made_again_with_the_same_weights(finished):
    _, again, cache, first = finished
    weights = next((cache / "models").glob("original--*/model.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:])
    done = again()
    assert done.code == 0, done.err
    assert weights.read_bytes() == whole
    assert [r["scores"] for r in done.json["records"]] == [r["scores"] for r in first["records"]]


@pytest.mark.slow
def test_every_file_of_a_run_is_whole_or_made_again_or_named(finished):
    """A file of each cell is damaged, and of the run: each is named where it is read, and one run makes all whole."""
    command, again, _, first = finished
    run = command.folder / "runs" / "again"
    scores = {record["cell"]: record["scores"] for record in first["records"]}

    def damage(path):
        content = path.read_bytes()
        path.write_bytes(list(damages(path))[1])
        return content

    samples = next((run / "cells").glob("ga--*")) / "samples.jsonl.gz"
    kept = damage(samples)
    seen = command("verify", str(run))
    assert seen.code == 7, seen.err
    assert "samples.jsonl.gz" in seen.err
    assert "Traceback" not in seen.err
    for method, name in (("original", "record.json"), ("retained", "status.json")):
        path = next((run / "cells").glob(f"{method}--*")) / name
        whole = damage(path)
        seen = command("results", str(run), "--json")
        assert seen.code == 4
        assert name in seen.err
        assert "run the study again" in seen.err
        path.write_bytes(whole)
    for path in (next((run / "cells").glob("original--*")) / "spec.json", run / "study.toml"):
        damage(path)
    seen = command("render", str(run), "-o", str(command.folder / "site"))
    assert seen.code == 4
    assert "study.toml" in seen.err
    done = again()
    assert done.code == 0, done.err
    assert {record["cell"]: record["scores"] for record in done.json["records"]} == scores
    assert samples.read_bytes() == kept
    assert done.err.count("(kept)") == 3, "two reference models, and the cell of which nothing was damaged"
    damage(run / "plan.json")
    seen = command("results", str(run))
    assert seen.code == 4
    assert "plan.json" in seen.err


def test_a_published_folder_that_changed_since_is_named(tmp_path, folder):
    from unlearnbench.storage import write_sealed

    facts = {"published": str(folder), "revision": folder_fingerprint(str(folder)), "notes": []}
    write_sealed(tmp_path / "kept" / REFERENCE, facts)
    assert reference_facts(tmp_path / "kept")["notes"] == []
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    with pytest.raises(RecordError, match="changed since the study was planned"):
        reference_facts(tmp_path / "kept")


def test_a_folder_is_known_by_code_templates_and_weights_of_any_kind(folder):
    known = {folder_fingerprint(str(folder))}
    extra = folder / "additional_chat_templates"
    extra.mkdir()
    for path in (folder / "modeling_own.py", folder / "weights.pt", folder / "vocab.tiktoken", extra / "other.jinja"):
        path.write_text("x")
        known.add(folder_fingerprint(str(folder)))
    assert len(known) == 5
    (folder / "README.md").write_text("words")
    assert folder_fingerprint(str(folder)) in known


def test_a_model_with_few_positions_is_benchmarked_with_as_many_new_tokens_as_fit(command, tiny_encoder, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    size = len(tiny_encoder.tokenizer)
    config = GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=120,
                        eos_token_id=tiny_encoder.tokenizer.eos_token_id)  # fmt: skip
    save_checkpoint(tmp_path / "short", GPT2LMHeadModel(config), tiny_encoder.tokenizer)
    done = run_with(command, tmp_path / "short", "--set", "benchmarks.*.max_new_tokens=200")
    assert done.code == 0, done.err
    for record in done.json["records"]:
        (note,) = [note for note in record["notes"] if "new tokens at most" in note]
        assert note.endswith("for which the model has positions, instead of 200")
