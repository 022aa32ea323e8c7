"""What a plan says of memory is what a run takes."""

from __future__ import annotations

import json

import pytest

from unlearnbench.planning.estimates import resident, shape_of
from unlearnbench.plugin.specs import ModelSpec
from unlearnbench.records.node_spec import read_spec
from unlearnbench.running.builtin import unlearnbench_models
from unlearnbench.training.models import make_encoder


def test_each_stage_takes_what_was_estimated_within_a_quarter(small_run):
    compared = 0
    for folder in (small_run[0] / "cells").iterdir():
        spec = read_spec(folder)
        measured = json.loads((folder / "record.json").read_text())["cost"]["stage_memory_bytes"]
        for stage, expected in resident(spec).items():
            assert measured[stage] == pytest.approx(expected, rel=0.25), (folder.name, stage)
            compared += 1
    assert compared > 30


def test_the_size_of_a_model_is_that_of_its_weights(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from unlearnbench.training.models import load_base

    tiny = next(spec for spec in unlearnbench_models() if spec.name == "tiny")
    encoder = make_encoder(tiny, ["some words to make a vocabulary of"])
    built = load_base(tiny, encoder, 0)
    missing = (tiny.architecture["vocabulary"] - built.config.vocab_size) * built.config.hidden_size
    weights = sum(weight.numel() for weight in built.parameters())
    assert shape_of(tiny)["parameters"] == pytest.approx(weights + missing, rel=0.01)
    sizes = dict(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=3)
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    found = shape_of(ModelSpec("mine", "a folder", path=str(tmp_path)))
    weights = sum(weight.numel() for weight in LlamaForCausalLM(config).parameters())
    assert found == {"parameters": pytest.approx(weights, rel=0.1), "layers": 3, "width": 32, "inner": 48,
                     "vocabulary": 90, "key_width": 16}  # fmt: skip
    assert shape_of(ModelSpec("elsewhere", "on the hub", path="somebody/model")) == {}
