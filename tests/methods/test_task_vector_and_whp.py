"""Task Vector and WHP: one against numbers by hand, the other as a model among models."""

from __future__ import annotations

import copy

import pytest
import torch

from unlearnbench import Context, Example, UnlearningData
from unlearnbench.domain import Requires
from unlearnbench.engine.batch import collate
from unlearnbench.engine.engine import Engine
from unlearnbench.engine.logprobs import sequence_logprob
from unlearnbench.errors import NotApplicable
from unlearnbench.methods.task_vector import TaskVector, negate
from unlearnbench.methods.whp import WHP, Contrast
from unlearnbench.training.loss_method import FineTune
from unlearnbench.training.models import frozen_copy, save_checkpoint, with_adapter

FORGET = [Example(i, f"Who is {i}?", "Ada " * (1 + i)) for i in range(3)]
RECIPE = {"learning_rate": 1e-2, "epochs": 3, "batch_size": 2}


def unlearned(method, model, encoder, original=None):
    data = UnlearningData(method.name, Requires(), encoder, FORGET, (), ())
    ctx = Context(method.name, 3, Engine(), log=lambda line: None, original=original)
    return method.unlearn(model, encoder.tokenizer, data, ctx)


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_a_tensor_is_negated_as_by_hand():
    layer = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -1.0]]))  # after fine-tuning
    original = {"weight": torch.tensor([[1.0, 2.0]])}  # before it: the change is (2, −3)
    negate(layer, original, alpha=0.5)
    assert layer.weight.tolist() == [[0.0, 3.5]]


def test_a_task_vector_changes_the_weights_and_none_with_alpha_0(tiny_model, tiny_encoder):
    before = weights(tiny_model)
    moved = weights(unlearned(TaskVector(**RECIPE), copy.deepcopy(tiny_model), tiny_encoder))
    kept = weights(unlearned(TaskVector(**RECIPE, alpha=0.0), copy.deepcopy(tiny_model), tiny_encoder))
    assert not torch.equal(moved, before)
    assert torch.equal(kept, before)


def test_a_task_vector_is_the_mirror_image_of_fine_tuning(tiny_model, tiny_encoder):
    """The same seed fine-tunes alike, so the two ends lie symmetrically around the original weights."""
    before = weights(tiny_model)
    method = TaskVector(**RECIPE)
    mirrored = weights(unlearned(method, copy.deepcopy(tiny_model), tiny_encoder))
    data = UnlearningData(method.name, Requires(), tiny_encoder, FORGET, (), ())
    ctx = Context(method.name, 3, Engine(), log=lambda line: None)
    tuned = weights(FineTune.unlearn(method, copy.deepcopy(tiny_model), tiny_encoder.tokenizer, data, ctx))
    torch.testing.assert_close(mirrored, 2 * before - tuned)


def test_whp_lowers_only_what_the_reinforced_model_prefers(tiny_model, tiny_encoder):
    original = frozen_copy(tiny_model, torch.float64)
    model = unlearned(WHP(**RECIPE, alpha=5.0), copy.deepcopy(tiny_model), tiny_encoder, original)
    ids = torch.tensor([tiny_encoder.encode(FORGET[:1])[0].ids])
    with torch.no_grad():
        plain, preferred, mixed = (part(input_ids=ids).logits for part in (original, model.reinforced, model))
    raised = preferred > plain
    assert raised.any()
    assert torch.equal(mixed[~raised], plain[~raised])
    torch.testing.assert_close(mixed[raised], (plain - 5.0 * (preferred - plain))[raised])
    (before,), (after,) = (sequence_logprob(m, collate(tiny_encoder.encode(FORGET), "cpu")) for m in (original, model))
    assert after.sum() < before.sum()


@pytest.fixture
def pair(tiny_model, tiny_encoder):
    """A model of two, with alpha 0: it must behave as the first one alone."""
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05)
    return Contrast(tiny_model, other, alpha=0.0), Contrast(tiny_model, other, alpha=2.0)


def test_a_model_made_of_two_generates_and_scores_like_any_other(pair, tiny_model, tiny_encoder):
    same, mixed = pair
    rows = tiny_encoder.encode(FORGET)
    assert Engine().score(same, rows) == Engine().score(tiny_model, rows)
    shared = tuple(range(40))
    prompts = [(*shared, 5, 6), (*shared, 7), (*shared, 7, 8, 9)]
    assert Engine().generate(same, prompts, 6, []) == Engine().generate(tiny_model, prompts, 6, [])
    written = Engine().generate(mixed, prompts, 6, [])
    for prompt, found in zip(prompts, written, strict=True):
        ids = list(prompt)
        for token in found:  # without any cache
            assert int(mixed(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


def test_a_model_made_of_two_is_saved_as_two(pair, tiny_encoder, tmp_path):
    from transformers import AutoModelForCausalLM

    _, mixed = pair
    save_checkpoint(tmp_path / "model", mixed, tiny_encoder.tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "reinforced", dtype=torch.float64)
    assert torch.equal(weights(loaded), weights(mixed.reinforced))
    assert (tmp_path / "model" / "contrast.json").read_text() == '{"alpha": 2.0}\n'


@pytest.mark.parametrize("method", [TaskVector(**RECIPE), WHP(**RECIPE)], ids=lambda m: m.name)
def test_methods_that_mix_all_weights_refuse_an_adapter(method, tiny_model, tiny_encoder):
    pytest.importorskip("peft")
    with pytest.raises(NotApplicable, match="lora_rank = 0"):
        unlearned(method, with_adapter(tiny_model.float(), 2), tiny_encoder, tiny_model)


def test_whp_refuses_a_second_request(pair, tiny_encoder):
    with pytest.raises(NotApplicable, match="made a model of two"):
        unlearned(WHP(), pair[0], tiny_encoder, pair[0].original)


def test_a_model_made_of_two_contrasts_in_float32(pair):
    _, mixed = pair
    ids = torch.arange(6)[None]
    with torch.no_grad():
        half = copy.deepcopy(mixed).bfloat16()
        parts = [part(input_ids=ids).logits for part in (half.original, half.reinforced)]
        found = half(input_ids=ids).logits
    assert parts[0].dtype == torch.bfloat16
    first, second = (part.float() for part in parts)
    assert torch.equal(found, first - 2.0 * torch.relu(second - first))
