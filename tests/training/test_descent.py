from __future__ import annotations

import copy
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from unlearnbench import Context, Example, LossMethod, Requires, Term, UnlearningData, answer_logprobs
from unlearnbench.contracts import derived_seed
from unlearnbench.engine.batch import collate
from unlearnbench.engine.budgets import Mechanisms
from unlearnbench.engine.engine import Engine
from unlearnbench.errors import Diverged, PluginError, UndeclaredAccess, UsageError
from unlearnbench.methods.dpo import DPO
from unlearnbench.methods.flat import FLAT
from unlearnbench.methods.ga import GradientAscent
from unlearnbench.methods.gd import GradientDifference
from unlearnbench.methods.kl import KLMinimization
from unlearnbench.methods.llmu import LLMU
from unlearnbench.methods.mismatch import Mismatch
from unlearnbench.methods.npo import NPO
from unlearnbench.methods.po import PreferenceOptimization
from unlearnbench.training.loop import _budget, _scheduler, _weight_groups, train
from unlearnbench.training.loss import Batch
from unlearnbench.training.loss_method import FineTune

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from architectures import ARCHITECTURES

# Answers of very different lengths, so that means over tokens and over rows cannot be mixed up.
FORGET = [Example(i, f"Who is {i}?", "Ada " * (1 + 3 * i)) for i in range(4)]
RETAIN = [Example(i, f"What is {i}?", "a poem " * (1 + i)) for i in range(5)]
METHODS = [GradientAscent, GradientDifference, KLMinimization, PreferenceOptimization, Mismatch, LLMU, DPO, NPO, FLAT]
QUICK = {"learning_rate": 1e-3, "epochs": 2, "warmup_epochs": 0.0}


def unlearned(model, method, encoder, log=lambda line: None, mechanisms=None):
    model = copy.deepcopy(model)
    requires = method.requires
    original = copy.deepcopy(model) if requires.original == "model" else None
    ctx = Context(method.name, 7, Engine(mechanisms=mechanisms), log=log, original=original)
    data = UnlearningData(method.name, requires, encoder, FORGET, RETAIN, ("I don't know.", "No idea."))
    return method.unlearn(model, encoder.tokenizer, data, ctx), ctx


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_accumulation_does_not_change_the_weights(method, tiny_model, tiny_encoder):
    whole, first = unlearned(tiny_model, method(batch_size=4, accumulation=1, **QUICK), tiny_encoder)
    parts, second = unlearned(tiny_model, method(batch_size=1, accumulation=4, **QUICK), tiny_encoder)
    assert first.meter.optimiser_steps == second.meter.optimiser_steps == 2
    assert torch.allclose(weights(whole), weights(parts), atol=1e-9)
    assert not torch.allclose(weights(whole), weights(tiny_model), atol=1e-5)
    assert first.meter.losses == pytest.approx(second.meter.losses)


def test_several_processes_do_not_train_in_float16(tiny_model, tiny_encoder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    ctx = Context("ga", 7, Engine(), log=print, autocast="fp16")
    expected = r"^dtype = 'float16' with run\.processes = 2: .*; use dtype = 'bfloat16', or run\.processes = 1$"
    with pytest.raises(UsageError, match=expected):
        train(tiny_model, GradientAscent(**QUICK), iter([]), 1, ctx)


def test_a_short_last_window_is_divided_by_its_own_count(tiny_model, tiny_encoder):
    whole, _ = unlearned(tiny_model, GradientAscent(batch_size=3, accumulation=1, **QUICK), tiny_encoder)
    parts, _ = unlearned(tiny_model, GradientAscent(batch_size=1, accumulation=3, **QUICK), tiny_encoder)
    assert torch.allclose(weights(whole), weights(parts), atol=1e-9)


class Crowded:
    """Runs out of memory where a pass has more than so many rows; the first failure comes late in a step."""

    def __init__(self, rows):
        self.rows = rows
        self.refused = 0

    def __deepcopy__(self, memo):
        return self

    def __call__(self, module, args, inputs):
        if len(inputs["input_ids"]) > self.rows:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("method", [GradientAscent, KLMinimization, LLMU, DPO, FLAT], ids=lambda m: m.name)
def test_a_batch_too_large_for_memory_is_cut_and_gives_the_same_weights(method, tiny_model, tiny_encoder):
    # Padded rows, so that a pass has as many rows as the batch.
    padded = Mechanisms(prefix_trees=False)
    whole, first = unlearned(tiny_model, method(batch_size=4, **QUICK), tiny_encoder, mechanisms=padded)
    model, lines = copy.deepcopy(tiny_model), []
    crowded = Crowded(6)
    model.register_forward_pre_hook(crowded, with_kwargs=True)
    parts, second = unlearned(model, method(batch_size=4, **QUICK), tiny_encoder, lines.append, padded)
    small = method in (GradientAscent, KLMinimization)
    assert bool(crowded.refused) != small, "batches of four rows pass"
    assert any("cut into" in line for line in lines) != small
    torch.testing.assert_close(weights(whole), weights(parts), rtol=0, atol=1e-9)
    assert first.meter.losses == pytest.approx(second.meter.losses)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_of_a_batch_hold_every_row_once_and_keep_together_what_was_drawn_together(count, tiny_encoder):
    forget = tiny_encoder.encode(FORGET)
    parts = {"forget": collate(forget, "cpu"), "random": collate([row for row in forget for _ in range(3)], "cpu"),
             "uneven": collate(tiny_encoder.encode(RETAIN), "cpu")}  # fmt: skip
    shares = [share for number in range(count) if (share := Batch(parts).share(number, count))]
    assert len(shares) == min(count, len(FORGET))
    for name, rows in parts.items():
        assert [row for share in shares for row in share.parts[name].encoded] == list(rows.encoded)
    for share in shares:
        assert share.parts["random"].encoded == tuple(row for row in share.forget.encoded for _ in range(3))


def test_a_batch_of_single_rows_and_a_loss_that_couples_them_are_out_of_memory(tiny_model, tiny_encoder):
    tiny_model.register_forward_pre_hook(Crowded(0), with_kwargs=True)
    for method in (GradientAscent(batch_size=2, **QUICK), FLAT(edition="as-released", batch_size=4, **QUICK)):
        with pytest.raises(torch.OutOfMemoryError):
            unlearned(tiny_model, method, tiny_encoder)


def test_the_released_flat_accumulates_means_of_its_forward_passes(tiny_model, tiny_encoder):
    """As accelerate does for the release: the loss of a step is the mean of its passes' losses."""
    losses = {}
    for passes in (1, 4):
        method = FLAT(edition="as-released", batch_size=1, accumulation=passes, learning_rate=1e-12, epochs=1)
        _, ctx = unlearned(copy.deepcopy(tiny_model), method, tiny_encoder)
        losses[passes] = ctx.meter.losses
    assert len(set(losses[1])) == 4
    assert losses[4] == pytest.approx([sum(losses[1]) / 4], rel=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_same_seed_gives_the_same_weights(method, tiny_model, tiny_encoder):
    torch.manual_seed(1)
    one, _ = unlearned(tiny_model, method(**QUICK), tiny_encoder)
    torch.manual_seed(2)
    two, _ = unlearned(tiny_model, method(**QUICK), tiny_encoder)
    assert torch.equal(weights(one), weights(two))


def test_npo_finds_its_reference_values_in_the_batch_and_keeps_no_second_model(tiny_model, tiny_encoder):
    seen = []

    @dataclass(frozen=True)
    class Watching(NPO):
        def loss(self, model, batch):
            (logp,) = answer_logprobs(model, batch.forget)
            seen.append((logp.sum(-1).detach(), batch.forget.logp_original))
            return super().loss(model, batch)

    unlearned(tiny_model, Watching(batch_size=4, **QUICK), tiny_encoder)
    before, after = seen
    # Reference values are kept in float32.
    assert torch.allclose(before[0].float(), before[1], atol=1e-4)
    assert torch.allclose(before[1].sort().values, after[1].sort().values)
    assert not torch.allclose(after[0].float(), after[1], atol=1e-3)


@pytest.mark.parametrize(
    ("touch", "remedy"),
    [
        (lambda data, ctx: data.retain, r"Requires\(retain=True\)"),
        (lambda data, ctx: data.templates, r"Requires\(template=True\)"),
        (lambda data, ctx: ctx.original, r'Requires\(original="model"\)'),
    ],
)
def test_what_a_method_did_not_declare_it_cannot_touch(touch, remedy, tiny_model, tiny_encoder):
    class Curious:
        name = "curious"
        requires = Requires()

        def unlearn(self, model, tokenizer, data, ctx):
            touch(data, ctx)
            return model

    with pytest.raises(UndeclaredAccess, match=remedy):
        unlearned(tiny_model, Curious(), tiny_encoder)


def test_a_loss_that_stops_being_finite_stops_the_run(tiny_model, tiny_encoder):
    with pytest.raises(Diverged, match="optimiser step"):
        unlearned(tiny_model, GradientAscent(**{**QUICK, "learning_rate": 1e300, "max_grad_norm": 0.0}), tiny_encoder)


def test_a_term_must_name_what_it_is_averaged_over(tiny_model, tiny_encoder):
    @dataclass(frozen=True)
    class Wrong(LossMethod):
        name: ClassVar[str] = "wrong"

        def loss(self, model, batch):
            (logp,) = answer_logprobs(model, batch.forget)
            yield Term(logp.sum(), per="forget words")

    with pytest.raises(PluginError, match="names 'forget words'; counts are: batches, forget positions"):
        unlearned(tiny_model, Wrong(**QUICK), tiny_encoder)


def test_a_batch_names_the_parts_it_has(tiny_model, tiny_encoder):
    @dataclass(frozen=True)
    class Wrong(LossMethod):
        name: ClassVar[str] = "wrong"

        def loss(self, model, batch):
            yield Term(batch.retain.labels.sum(), per="batches")

    with pytest.raises(AttributeError, match=r"no part 'retain' \(drawn: forget\)"):
        unlearned(tiny_model, Wrong(**QUICK), tiny_encoder)


def test_dropout_is_off_unless_asked(tiny_model, tiny_encoder):
    modes = []

    @dataclass(frozen=True)
    class Watching(FineTune):
        def loss(self, model, batch):
            modes.append(model.training)
            return super().loss(model, batch)

    unlearned(tiny_model, Watching(**QUICK), tiny_encoder)
    unlearned(tiny_model, Watching(dropout=True, **QUICK), tiny_encoder)
    assert modes == [False, False, True, True]


def test_checkpointed_activations_give_the_same_weights(tiny_model, tiny_encoder):
    plain, _ = unlearned(tiny_model, FineTune(**QUICK), tiny_encoder)
    saved, _ = unlearned(tiny_model, FineTune(gradient_checkpointing=True, **QUICK), tiny_encoder)
    assert torch.allclose(weights(plain), weights(saved), atol=1e-12)


def test_checkpointing_brings_no_dropout_back():
    from transformers import OPTConfig, OPTForCausalLM

    from unlearnbench.training.loop import _set_training

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=50, max_position_embeddings=32, word_embed_proj_dim=16, **sizes))
    _set_training(model, FineTune(gradient_checkpointing=True))
    ids = torch.tensor([[1, 2, 3]])
    assert model.training
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_under_autocast_the_references_round_as_the_model_does(tiny_model, tiny_encoder):
    """At the original model KL is 0 and NPO's ratio is 1, in bfloat16 too."""
    model = tiny_model.float()
    quick = {**QUICK, "epochs": 1, "batch_size": 4}
    for method, start in ((NPO(**quick), 20 * math.log(2)), (KLMinimization(**quick), None)):
        requires = method.requires
        original = copy.deepcopy(model) if requires.original == "model" else None
        ctx = Context(method.name, 7, Engine(), log=lambda line: None, original=original, autocast="bf16")
        data = UnlearningData(method.name, requires, tiny_encoder, FORGET, RETAIN, ())

        @dataclass(frozen=True)
        class Watching(type(method)):
            def loss(self, model, batch):
                terms = list(super().loss(model, batch))
                self.seen.extend(terms)
                return terms

        seen = Watching.seen = []

        Watching(**quick).unlearn(copy.deepcopy(model), tiny_encoder.tokenizer, data, ctx)
        if start is None:
            assert abs(seen[1].value.item()) < 1e-5
        else:
            assert seen[0].value.item() / len(FORGET) == pytest.approx(start, abs=1e-2)


def test_training_leaves_a_model_on_its_device(tiny_model, tiny_encoder, monkeypatch):
    """Another library's idea of the device would move a model on the second GPU to the first."""

    def moved(self, *arguments, **options):
        raise AssertionError(f"the model was moved: {arguments}")

    ctx = Context("ga", 7, Engine(), log=lambda line: None, autocast="bf16")
    data = UnlearningData("ga", Requires(), tiny_encoder, FORGET, (), ())
    model = tiny_model.float()
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    GradientAscent(**QUICK).unlearn(model, tiny_encoder.tokenizer, data, ctx)
    assert ctx.meter.optimiser_steps == 2


def test_gradients_in_float16_do_not_underflow(tiny_model, tiny_encoder, monkeypatch):
    """Losses are scaled before the backward pass, and gradients scaled back before they are clipped and used."""
    norms: dict[str, list[float]] = {"no": [], "fp16": []}
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: norms[precision].append(float(clip(*given))))
    model, data = tiny_model.float(), UnlearningData("ga", Requires(), tiny_encoder, FORGET, (), ())
    for precision in ("no", "fp16"):
        ctx = Context("ga", 7, Engine(), log=lambda line: None, autocast=precision)
        recipe = FineTune(max_grad_norm=1.0, **{**QUICK, "epochs": 8})
        recipe.unlearn(copy.deepcopy(model), tiny_encoder.tokenizer, data, ctx)
    # Steps are left out while the scale is too large: up to then the weights are those of the beginning.
    first = next(norm for norm in norms["fp16"] if math.isfinite(norm))
    assert first == pytest.approx(norms["no"][0], rel=1e-2)


def test_no_epochs_leave_the_model_as_it_is(tiny_model, tiny_encoder):
    same, ctx = unlearned(tiny_model, NPO(**{**QUICK, "epochs": 0}), tiny_encoder)
    assert torch.equal(weights(same), weights(tiny_model))
    assert ctx.meter.optimiser_steps == 0


def test_llmu_draws_as_many_answers_as_asked(tiny_encoder):
    data = UnlearningData("llmu", LLMU.requires, tiny_encoder, FORGET, RETAIN, ("No idea.",))
    rng = Context("llmu", 0, Engine()).rng("draw")
    drawn = LLMU(random_per_prompt=3).draw(data, FORGET[0], rng)
    assert [len(drawn[part]) for part in ("forget", "retain", "random")] == [1, 1, 3]
    assert {row.answer for row in drawn["random"]} <= {row.answer for row in RETAIN}
    released = LLMU(edition="as-released").draw(data, FORGET[0], rng)
    assert [row.answer for row in released["random"]] == ["No idea."]


def test_mismatched_answers_come_with_the_forget_prompt(tiny_encoder):
    data = UnlearningData("mismatch", Mismatch.requires, tiny_encoder, FORGET, RETAIN, ())
    (row,) = Mismatch().draw(data, FORGET[1], Context("m", 0, Engine()).rng("draw"))["mismatch"]
    assert row.prompt == FORGET[1].prompt
    assert row.answer in {other.answer for other in RETAIN}


def rates(recipe, rows):
    """The learning rate of every step, as a factor of the peak."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = _scheduler(optimiser, recipe, rows)
    found = []
    for _ in range(_budget(recipe, rows)[1]):
        found.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("size", "passes", "steps", "summed"),
    [(32, 1, 6, 3.0), (16, 4, 3, 1.5), (8, 1, 25, 12.5)],
    ids=["effective batch 32", "the release's configuration", "batch 8"],
)
def test_as_released_steps_and_rates_are_those_of_the_release(size, passes, steps, summed):
    """forget01, five epochs, as locuslab/tofu's forget.py counts them."""
    recipe = GradientAscent(edition="as-released", batch_size=size, accumulation=passes)
    assert _budget(recipe, 40) == (max(1, 40 // (size * passes)), steps)
    assert sum(rates(recipe, 40)) == pytest.approx(summed)


def test_as_released_a_run_ends_after_whole_windows_of_rows(tiny_model, tiny_encoder):
    steps = {}
    for edition in ("paper", "as-released"):
        recipe = GradientAscent(edition=edition, batch_size=3, epochs=2, warmup_epochs=1.0)
        steps[edition] = unlearned(copy.deepcopy(tiny_model), recipe, tiny_encoder)[1].meter.optimiser_steps
    assert len(FORGET) == 4
    assert steps == {"paper": 4, "as-released": 2}


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "gemma2", "mamba", "stablelm", "mpt"])
def test_biases_and_norms_are_not_decayed(name):
    """As transformers' Trainer has it, with which all releases train."""
    from transformers import Trainer

    model = ARCHITECTURES[name]()
    decayed, kept = _weight_groups(model)
    names = {id(weight): key for key, weight in model.named_parameters()}
    assert "weight_decay" not in decayed
    assert kept["weight_decay"] == 0.0
    assert {names[id(weight)] for group in (decayed, kept) for weight in group["params"]} == set(names.values())
    assert {names[id(weight)] for weight in decayed["params"]} == set(Trainer.get_decay_parameter_names(None, model))
    assert any("norm" in names[id(weight)] or "ln_" in names[id(weight)] for weight in kept["params"])
    assert not any(names[id(weight)].endswith("bias") for weight in decayed["params"])


def test_the_schedule_warms_up_from_nothing_and_comes_down():
    values = rates(FineTune(epochs=4, warmup_epochs=1.0, batch_size=2), 10)
    assert len(values) == 20
    assert values[0] == 0.0
    assert values[1] < values[4] < values[5] == 1.0
    assert all(a > b for a, b in itertools.pairwise(values[5:]))
    assert values[-1] > 0
    assert rates(FineTune(epochs=2, warmup_epochs=0.0, schedule="constant", batch_size=1), 3) == [1.0] * 6
    assert rates(FineTune(epochs=2, warmup_epochs=1.0, schedule="constant", batch_size=1), 3)[:3] == pytest.approx(
        [0.0, 1 / 3, 2 / 3]
    )
    released = GradientAscent(edition="as-released", epochs=2, schedule="constant", batch_size=1)
    assert rates(released, 3) == [1.0] * 6
    assert rates(FineTune(epochs=2, warmup_epochs=0.0, schedule="cosine", batch_size=1), 2)[2] == pytest.approx(0.5)


def test_seeds_are_told_apart_by_purpose():
    assert derived_seed(0, "draw") != derived_seed(0, "order") != derived_seed(1, "order")
    assert derived_seed(3, "a", "b") == derived_seed(3, "a", "b") != derived_seed(3, "ab")


def test_lora_trains_few_weights_and_merges(tiny_model, tiny_encoder):
    pytest.importorskip("peft")
    from unlearnbench.training.models import with_adapter

    adapted = with_adapter(copy.deepcopy(tiny_model).float(), rank=2)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert 0 < trainable < 0.25 * sum(p.numel() for p in tiny_model.parameters())
    before = copy.deepcopy(adapted).merge_and_unload()
    after = unlearned(adapted, GradientAscent(**QUICK), tiny_encoder)[0].merge_and_unload()
    assert not torch.allclose(weights(before), weights(after), atol=1e-5)
    assert math.isfinite(weights(after).sum())
