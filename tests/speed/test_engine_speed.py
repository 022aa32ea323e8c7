"""Each stage of the engine against plain transformers on the same work."""

from __future__ import annotations

import copy
import random

import evaluations
import plain
import pytest
import torch
from evaluations import close, equal, plainly, same_texts
from workload import REAL_DATA

from unlearnbench.benchmarks.tofu.benchmark import _answers
from unlearnbench.contracts import Context, UnlearningData
from unlearnbench.data.encoder import EncodedRow
from unlearnbench.domain import Example
from unlearnbench.engine.batch import collate
from unlearnbench.engine.engine import Engine
from unlearnbench.methods import dpo, flat, ga, gd, kl, llmu, mismatch, npo, po
from unlearnbench.training.loss_method import FineTune
from unlearnbench.training.models import fine_tune


def random_rows(count, vocabulary, shortest=20, longest=80):
    generator = random.Random(0)
    lengths = [generator.randint(shortest, longest) for _ in range(count)]
    return [EncodedRow(tuple(generator.randrange(1, vocabulary) for _ in range(n)), n // 2) for n in lengths]


# -- texts to tensors --------------------------------------------------------------------------------------------------


def test_tokenisation_and_collation(race, tofu_work):
    encoder = tofu_work.task.encoder
    examples = list(tofu_work.task.training["original"])[:600]

    def ours():
        rows = encoder.encode(examples)
        return [collate(rows[at : at + 8], "cpu") for at in range(0, len(rows), 8)]

    def one_by_one():
        tokenizer, style = encoder.tokenizer, encoder.style
        rows = []
        for example in examples:
            prompt = style.prompt(example.prompt, tokenizer)
            options = {"add_special_tokens": style.special_tokens}
            start = len(tokenizer(prompt, **options)["input_ids"])
            ids = tokenizer(prompt + style.answer + example.answer, **options)["input_ids"]
            rows.append(([*ids, tokenizer.eos_token_id], start))
        return [plain.right_padded(rows[at : at + 8]) for at in range(0, len(rows), 8)]

    def equal(found, expected):
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine.input_ids, theirs["input_ids"])
            assert torch.equal(mine.labels, theirs["labels"])

    race("tokenisation and collation", ours, one_by_one, equal)


# -- scoring -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions(tofu_work):
    """The rows that TOFU asks the likelihood of: some answers to each of the first questions."""
    asked = [question for question in tofu_work.task.evaluation.asked if question.part in ("forget", "retain")][:40]
    return tofu_work.task.encoder.encode([q.example.answered(answer) for q in asked for answer in _answers(q)])


def test_scoring_answers_that_share_their_prompts(race, tofu_work, questions):
    race("scoring, shared prompts", lambda: [found.nll for found in Engine().score(tofu_work.model, questions)],
         lambda: plain.losses(tofu_work.model, plainly(questions)), close)  # fmt: skip


def test_scoring_rows_that_share_nothing(race, tofu_work):
    rows = random_rows(120, tofu_work.vocabulary)
    race("scoring, nothing shared", lambda: [found.nll for found in Engine().score(tofu_work.model, rows)],
         lambda: plain.losses(tofu_work.model, plainly(rows)), close)  # fmt: skip


# -- generation --------------------------------------------------------------------------------------------------------


def generation_race(race, stage, model, prompts, limit, eos):
    race(stage, lambda: Engine().generate(model, prompts, limit, [eos]),
         lambda: plain.generations(model, prompts, limit, eos), same_texts)  # fmt: skip


def test_generation_of_rows_that_run_to_the_cap(race, tofu_work):
    prompts = [row.ids for row in random_rows(64, tofu_work.vocabulary, 10, 60)]
    generation_race(race, "generation, to the cap", tofu_work.model, prompts, 48, tofu_work.vocabulary - 1)


def test_generation_of_rows_that_stop_early(race, tofu_work):
    """Rows end where they first write a token that some write soon and some late."""
    prompts = [row.ids for row in random_rows(96, tofu_work.vocabulary, 10, 60)]
    written = Engine().generate(tofu_work.model, prompts, 96, [])
    endings = {
        token: [line.index(token) if token in line else 96 for line in written] for line in written for token in line
    }
    eos = min(endings, key=lambda token: abs(sum(endings[token]) / len(written) - 40))
    generation_race(race, "generation, early stops", tofu_work.model, prompts, 96, eos)


def test_generation_after_a_shared_prefix(race, tofu_work):
    """KnowMem's form: ten examples, a question, a short answer."""
    examples = random_rows(1, tofu_work.vocabulary, 600, 600)[0].ids
    prompts = [examples + row.ids for row in random_rows(40, tofu_work.vocabulary, 12, 24)]
    generation_race(race, "generation, shared prefix", tofu_work.model, prompts, 32, tofu_work.vocabulary - 1)


# -- training ----------------------------------------------------------------------------------------------------------

METHODS = {
    "ga": ga.GradientAscent,
    "gd": gd.GradientDifference,
    "kl": kl.KLMinimization,
    "po": po.PreferenceOptimization,
    "mismatch": mismatch.Mismatch,
    "llmu": llmu.LLMU,
    "npo": npo.NPO,
    "npo-rt": npo.NPORetain,
    "dpo": dpo.DPO,
    "flat-tv": flat.FLAT,
}
STEPS, ROWS, RATE = 4, 8, 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_steps_of(race, tofu_work, name):
    """Four epochs of one batch of eight forget rows, with the values that a method computes before it starts."""
    method = METHODS[name](epochs=STEPS, batch_size=ROWS, learning_rate=RATE, warmup_epochs=0.0, schedule="constant",
                           max_grad_norm=0.0)  # fmt: skip
    task = tofu_work.task
    templates = ["I don't know.", "That is not something I can answer.", "I have no idea."]
    data = UnlearningData(name, method.needs, task.encoder, task.forget[:ROWS], task.retain[:100], templates)

    def context():
        ctx = Context(name, 0, Engine(), lambda _: None)
        if method.needs.original == "model":
            ctx = ctx.for_request(copy.deepcopy(tofu_work.model).eval().requires_grad_(False))
        return ctx

    def ours():
        ctx = context()
        method.unlearn(copy.deepcopy(tofu_work.model), task.encoder.tokenizer, data, ctx)
        return ctx.meter.losses

    rng = context().rng("draw")
    epochs = [[method.draw(data, row, rng) for row in data.forget] for _ in range(STEPS)]
    batches = [
        {part: plainly(task.encoder.encode([row for draw in epoch for row in draw[part]])) for part in epoch[0]}
        for epoch in epochs
    ]
    race(f"steps of {name}", ours, lambda: plain.train(name, copy.deepcopy(tofu_work.model), batches, RATE),
         lambda mine, theirs: _equal_losses(mine, theirs))  # fmt: skip


def _equal_losses(mine, theirs):
    assert mine == pytest.approx(theirs, rel=2e-3, abs=2e-3)


def test_preparation_of_a_reference_model(race, tofu_work):
    rows = list(tofu_work.task.training["original"])[:64]
    recipe = {"epochs": 1, "batch_size": 16, "learning_rate": RATE, "warmup_epochs": 0.0, "schedule": "constant",
              "max_grad_norm": 0.0}  # fmt: skip
    encoded = tofu_work.task.encoder.encode(rows)
    order = list(range(len(rows)))
    Context("fine-tune", 0, Engine()).rng("order").shuffle(order)
    batches = [{"forget": plainly([encoded[place] for place in order[at : at + 16]])} for at in range(0, len(rows), 16)]

    def ours():
        ctx = Context("fine-tune", 0, Engine(), lambda _: None)
        fine_tune(copy.deepcopy(tofu_work.model), tofu_work.task.encoder, rows, recipe, ctx)
        return ctx.meter.losses

    plain.LOSSES["fine-tune"] = lambda model, reference, batch: plain.mean_loss(model, batch["forget"])
    race("preparation of references", ours,
         lambda: plain.train("fine-tune", copy.deepcopy(tofu_work.model), batches, RATE), _equal_losses)  # fmt: skip
    assert FineTune.name == "fine-tune"


# -- whole evaluations -------------------------------------------------------------------------------------------------


EVALUATIONS = {
    "TOFU": lambda work: evaluations.tofu(work),
    "MUSE-News": lambda _: evaluations.muse(evaluations.small_muse()),
    "a book": lambda _: evaluations.book(evaluations.small_book()),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_whole_evaluation_of(race, tofu_work, name):
    evaluation = EVALUATIONS[name](tofu_work)
    race(f"evaluation of {name}", lambda: evaluation.measured(Engine()), evaluation.plain, equal)


def test_an_evaluation_with_four_attacks_beside_the_plain_way_without(race, tofu_work):
    """All metrics, quantise, relearn, sixteen samples and paraphrases against the plain evaluation alone."""
    plainly = evaluations.tofu(tofu_work).plain
    questions = len(tofu_work.task.evaluation.asked)

    def asked_all(mine, _):
        assert mine[0] == questions
        assert mine[3] == 16 * mine[1]

    stage = "TOFU's own rows with four attacks" if REAL_DATA else "TOFU with four attacks"
    race(stage, lambda: evaluations.tofu_attacked(tofu_work, Engine()), plainly, asked_all)


TUNED = ["TOFU"]


@pytest.mark.parametrize("name", TUNED)
def test_a_whole_evaluation_against_the_tuned_baseline(race, tofu_work, name):
    evaluation = EVALUATIONS[name](tofu_work)
    race(f"evaluation of {name}, tuned", lambda: evaluation.measured(Engine()), evaluation.tuned, equal)


def test_the_prompt_of_every_row_is_what_is_generated_from(tofu_work):
    """What scoring finds can be taken over where prompts tokenised alone are what stands before answers."""
    question = tofu_work.task.evaluation.asked[0]
    (row,) = tofu_work.task.encoder.encode([question.example])
    (prompt,) = tofu_work.task.encoder.prompts([Example(0, question.example.prompt, "")])
    assert row.begun(prompt, 2) == row.ids[row.start : row.start + 2]
