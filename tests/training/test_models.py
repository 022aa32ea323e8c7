"""Models that cannot be used are one line before anything is trained; odd tokenizers work."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unlearnbench.training.models import complete_special_tokens, save_checkpoint


@pytest.fixture
def saved(tmp_path, tiny_model, tiny_encoder):
    folder = tmp_path / "model"
    save_checkpoint(folder, tiny_model.float(), tiny_encoder.tokenizer)
    return folder


def run_with(command, folder, *more):
    words = command.study("-m", "ga", "-b", "tofu-forget05", "--name", "m", "--json", *more)
    # The study's nano model is replaced by the folder.
    at = words.index("nano")
    return command(*words[:at], str(folder), *words[at + 1 :], "--set", "recipe.epochs=1")


def refused(done, complaint):
    assert done.code == 4, done.err
    assert complaint in done.err.strip().splitlines()[-1], done.err


def test_a_model_folder_is_trained_and_unlearned(saved, command):
    done = run_with(command, saved)
    assert done.code == 0, done.err
    assert {cell["status"] for cell in done.json["cells"]} == {"done"}
    fingerprint = done.json["records"][0]["provenance"]["model"]["fingerprint"]
    assert len(fingerprint) == 64


def test_a_folder_without_weights(saved, command):
    (saved / "model.safetensors").unlink()
    refused(run_with(command, saved), "has no weights; expected model.safetensors")


def test_a_folder_that_does_not_exist(tmp_path, command):
    refused(run_with(command, tmp_path / "nowhere"), "does not exist")


def test_truncated_safetensors(saved, command):
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(run_with(command, saved), "truncated or damaged; copy it again")


def test_pickle_weights_need_consent(saved, tiny_model, command):
    (saved / "model.safetensors").unlink()
    torch.save(tiny_model.float().state_dict(), saved / "pytorch_model.bin")
    refused(run_with(command, saved), "has only pickle weights, which can run code")
    allowed = run_with(command, saved, "--set", f"models.{saved}.allow_pickle=true")
    assert allowed.code == 0, allowed.err


def test_a_context_shorter_than_the_rows(saved, command):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
    refused(run_with(command, saved), "which fill the model's context of 8; use a model with a longer one")


def test_an_unknown_prompt_format(saved, command):
    done = run_with(command, saved, "--set", f"models.{saved}.prompt_format=lama2")
    refused(done, "unknown prompt format 'lama2'; did you mean 'llama2'")


def plain_tokenizer(**special):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_a_tokenizer_with_neither_end_nor_pad_gets_both_and_says_so():
    tokenizer = plain_tokenizer()
    said = complete_special_tokens(tokenizer)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 3
    assert len(said) == 2
    assert "no EOS" in said[0]
    assert complete_special_tokens(tokenizer) == []


def test_a_tokenizer_whose_end_is_its_pad_is_left_alone():
    tokenizer = plain_tokenizer(eos_token="b", pad_token="b")
    assert complete_special_tokens(tokenizer) == []
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2


def test_a_model_without_an_end_token_grows_one_and_runs(tmp_path, tiny_model, tiny_encoder, command):
    tokenizer = copy.deepcopy(tiny_encoder.tokenizer)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Without its special tokens, and with the ids that they had left unused.
    backend["added_tokens"] = []
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    assert bare.eos_token is None
    folder = tmp_path / "bare"
    save_checkpoint(folder, tiny_model.float(), bare)
    done = run_with(command, folder, "--set", f"models.{folder}.prompt_format=plain")
    assert done.code == 0, done.err
    notes = next((command.cache / "models").glob("original--*bare*/reference.json"))
    assert "the tokenizer has no EOS; made '<|end|>'" in notes.read_text()
    assert any("no EOS" in note for note in done.json["records"][0]["notes"])
