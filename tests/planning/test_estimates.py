"""What a plan says of memory is what a run takes."""

from __future__ import annotations

import json

import pytest

from unlearnbench.planning.estimates import estimated, resident, shape_of
from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study
from unlearnbench.plugin.registry import load_plugins
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
                     "vocabulary": 90, "key_width": 16, "tied": 0}  # fmt: skip
    assert shape_of(ModelSpec("elsewhere", "on the hub", path="somebody/model")) == {}


def test_an_attack_is_estimated_by_what_it_adds():
    """At most a measurement, as often as it draws answers, and its own training; unlearning is its cell's."""
    head = {"methods": ["npo"], "benchmarks": ["tofu-forget10"], "models": ["llama2-7b"],
            "attacks": ["quantise", "sample", "relearn"]}  # fmt: skip
    plan = make_plan(check_study({"study": head, "data": {"source": "hub"}, "run": {"device": "cpu"}}), load_plugins())
    cost = {node.id.attack: estimated(node.spec) for node in plan.cells if node.id.method == "npo"}
    assert cost["sample"].seconds == pytest.approx(16 * cost["quantise"].seconds)
    assert cost["quantise"].seconds < cost[""].seconds
    assert cost["relearn"].memory > 2 * cost["quantise"].memory
    stages = {node.id.attack: set(resident(node.spec)) for node in plan.cells if node.id.method == "npo"}
    both = {"load", "measure"}
    assert stages == {"": both | {"unlearn"}, "quantise": both, "sample": both, "relearn": both | {"attack"}}
