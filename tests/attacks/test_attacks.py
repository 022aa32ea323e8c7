"""The built-in attacks: their specs, what each does to weights and words, and that they touch what they declare."""

from __future__ import annotations

import copy
from contextlib import suppress
from importlib.resources import files

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from unlearnbench import AttackData, Context, Example, NotApplicable, Question, Touches, UndeclaredAccess, written_specs
from unlearnbench.attacks._weights import linear_weights
from unlearnbench.attacks.catalogue import specs
from unlearnbench.attacks.plugin import unlearnbench_attacks
from unlearnbench.attacks.prune import Prune
from unlearnbench.attacks.quantise import NormalFloat, Quantise, round_to_nearest
from unlearnbench.attacks.questions import FewShot, Paraphrase, Prompt, Sample
from unlearnbench.attacks.relearn import Relearn, RelearnRetain, RelearnText
from unlearnbench.authoring.conformance import check, checkable
from unlearnbench.engine.engine import Engine
from unlearnbench.plugin.registry import load_plugins

STORED = files("unlearnbench.attacks") / "specs.json"
FORGET = tuple(Example(n, f"Where was Ada born in {n}?", f"Ada was born in Rome {n}.") for n in range(20))
RETAIN = tuple(Example(n, f"What does Bo write in {n}?", f"Bo writes poems {n}.") for n in range(9))
QUESTION = Question("forget", 0, "Where was Ada born?", "Ada was born in Rome.", ("Ada comes from where?",))


@pytest.fixture
def data(tiny_encoder):
    chunks = tiny_encoder.chunks(["Ada was born in Rome. " * 40], 32)
    return lambda seed=0, **requires: AttackData(
        "tried", Touches(**requires), tiny_encoder, FORGET, RETAIN, chunks, seed
    )


@pytest.fixture
def ctx():
    return Context("tried", 0, Engine(), lambda _: None)


def test_the_stored_specs_are_those_of_the_classes():
    """Where this fails, write them anew: ``attacks/catalogue.py`` names the command."""
    assert STORED.read_text(encoding="utf-8") == written_specs(specs())
    assert unlearnbench_attacks() == specs()


@pytest.mark.parametrize("name", [spec.name for spec in specs() if not spec.packages])
def test_an_attack_keeps_its_promises(name):
    broken = [each for each in check(checkable(load_plugins(), name)) if not each.kept]
    assert not broken


# -- what is handed out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["forget", "retain", "text"])
def test_what_is_not_declared_is_not_handed_out(data, part):
    with pytest.raises(UndeclaredAccess, match=rf"declare Touches\({part}=True\)"):
        getattr(data(), f"draw_{part}")(1)
    assert getattr(data(**{part: True}), f"draw_{part}")(1)


def test_a_quarter_of_the_forget_set_is_handed_out_at_most_and_one_seed_draws_the_same(data):
    first, again, other = (data(seed, forget=True).draw_forget(100) for seed in (0, 0, 1))
    assert len(first) == 5
    assert first == again != other


def test_no_rows_to_draw_from_is_not_applicable(tiny_encoder):
    with pytest.raises(NotApplicable, match="needs retain rows"):
        AttackData("tried", Touches(retain=True), tiny_encoder, FORGET, (), (), 0).draw_retain(2)


@pytest.mark.parametrize(
    ("row", "about"),
    [
        (Example(3, "Where was Ada born?", "In Rome."), True),
        (Example(3, "Ada comes from where?", "From Rome."), True),
        (Example(3, "When was Ada born?", "Ada was born in Rome."), False),
        (Example(3, "It is said that Ada was", " born in Rome. She left.", (1,), (2,)), True),
        (Example(3, "It is said that Ada was", " born in Lima. She left.", (1,), (2,)), False),
    ],
    ids=["the question", "a paraphrase", "another question", "a chunk with the answer", "a chunk without it"],
)
def test_a_question_is_about_a_row_that_tells_its_answer(row, about):
    assert QUESTION.about(row) is about


# -- weights -----------------------------------------------------------------------------------------------------------


def test_rounding_by_hand():
    weight = torch.tensor([[0.0, 0.9, 2.1, 3.0, -1.0, -0.4]])
    # Groups of four: [0, 3] in steps of 1, and what is left, [-1, -0.4], which both ends keep.
    assert torch.allclose(round_to_nearest(weight, 2, 4), torch.tensor([[0.0, 1.0, 2.0, 3.0, -1.0, -0.4]]))
    # One step of one bit is the whole range.
    assert round_to_nearest(weight[:, :4], 1, 4).tolist() == [[0.0, 0.0, 3.0, 3.0]]


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (8, 64), (4, 7), (4, 1000)])
def test_no_weight_moves_by_more_than_half_a_step(bits, group):
    weight = torch.randn(5, 130, generator=torch.Generator().manual_seed(0))
    rounded = round_to_nearest(weight, bits, group)
    for row, kept in zip(weight, rounded, strict=True):
        for begin in range(0, 130, group):
            own, other = row[begin : begin + group], kept[begin : begin + group]
            step = float(own.max() - own.min()) / (2**bits - 1)
            assert float((own - other).abs().max()) <= step / 2 + 1e-6
            assert len(other.unique()) <= 2**bits


def test_equal_weights_are_kept():
    assert torch.equal(round_to_nearest(torch.full((2, 8), 0.3), 4, 4), torch.full((2, 8), 0.3))


@pytest.mark.slow
def test_nf4_keeps_its_promises():
    pytest.importorskip("bitsandbytes")
    test_an_attack_keeps_its_promises("quantise-nf4")


@pytest.mark.slow
def test_nf4_has_sixteen_levels_for_each_scale(tiny_model, data, ctx):
    pytest.importorskip("bitsandbytes")
    model = copy.deepcopy(tiny_model).float()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    changed = dict(NormalFloat(group=32).change(model, data(), ctx).named_parameters())
    moved = [name for name in before if not torch.equal(before[name], changed[name])]
    assert moved
    assert all("proj" in name for name in moved)
    weight, own = before[moved[0]].flatten(), changed[moved[0]].flatten()
    for begin in range(0, weight.numel(), 32):
        block, greatest = own[begin : begin + 32], weight[begin : begin + 32].abs().max()
        assert len((block / greatest).mul(1e4).round().unique()) <= 16
        assert torch.isclose(block.abs().max(), greatest, rtol=1e-3)


def test_the_linear_layers_are_those_of_any_architecture(tiny_model):
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=16))
    assert len(list(linear_weights(tiny_model))) == 2 * 7
    assert [transposed for _, transposed in linear_weights(gpt2)] == [True] * (2 * 4)


def test_rows_of_a_transposed_layer_are_rounded_as_rows(data, ctx):
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=16))
    before = gpt2.transformer.h[0].mlp.c_fc.weight.detach().clone()
    after = Quantise(group=8).change(gpt2, data(), ctx).transformer.h[0].mlp.c_fc.weight
    assert torch.equal(after, round_to_nearest(before.T, 4, 8).T)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_smallest_weights_are_pruned(tiny_model, data, ctx, share):
    before = {id(weight): weight.detach().abs().clone() for weight, _ in linear_weights(tiny_model)}
    for weight, _ in linear_weights(Prune(share=share).change(tiny_model, data(), ctx)):
        gone = weight == 0
        assert int(gone.sum()) == round(share * weight.numel())
        kept, lost = before[id(weight)][~gone], before[id(weight)][gone]
        assert not kept.numel() or not lost.numel() or lost.max() <= kept.min()


@pytest.mark.parametrize(
    ("attack", "part"), [(Relearn, "forget"), (RelearnRetain, "retain"), (RelearnText, "text")], ids=lambda v: str(v)
)
def test_relearning_takes_exactly_its_steps_on_what_it_declares(tiny_model, data, ctx, attack, part):
    given = data(**{part: True})
    changed = attack(steps=3, rows=4, batch_size=2, learning_rate=1e-3).change(tiny_model.float(), given, ctx)
    assert ctx.meter.optimiser_steps == 3
    assert given.drawn.keys() == {part}
    assert len(given.drawn[part]) == 4
    assert changed.training is False


# -- words -------------------------------------------------------------------------------------------------------------


def test_paraphrases_are_those_of_the_data(data, ctx):
    assert tuple(Paraphrase().put(QUESTION, data(), ctx)) == QUESTION.paraphrases
    with pytest.raises(NotApplicable, match="no question in other words"):
        Paraphrase().put(Question("forget", 0, "Who?", "Ada."), data(), ctx)


def test_framings_hold_the_question_and_the_last_begins_the_answer(data, ctx):
    *framed, begun = Prompt(prefix=0.5).put(QUESTION, data(), ctx)
    assert len(set(framed)) == 4
    assert all(QUESTION.prompt in text for text in framed)
    assert begun == "Where was Ada born? Ada was"
    assert len(Prompt(prefix=0.0).put(QUESTION, data(), ctx)) == 4


def test_examples_stand_before_the_question_as_many_as_fit(data, ctx):
    (text,) = FewShot(shots=2).put(QUESTION, data(retain=True), ctx)
    assert text.endswith(f"\n\n{QUESTION.prompt}")
    assert text.count("Bo writes poems") == 2
    counts = []
    for length in range(1, 60, 4):
        question = Question("forget", 0, "Where was Ada born? " * length, "In Rome.")
        with suppress(NotApplicable):
            counts.append(FewShot(shots=9).put(question, data(retain=True), ctx)[0].count("Bo writes poems"))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 9
    assert set(counts) & set(range(1, 9))
    with pytest.raises(NotApplicable, match="not one example fits"):
        FewShot().put(Question("forget", 0, "Where was Ada born? " * 500, "In Rome."), data(retain=True), ctx)


def test_sampling_says_how_many_and_how_hot():
    found = Sample(samples=3, temperature=0.5).sampling
    assert (found.samples, found.temperature) == (3, 0.5)
