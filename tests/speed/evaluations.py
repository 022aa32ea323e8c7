"""Whole evaluations, each as the harness measures it and as anybody could ask the same without the engine."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import plain
import pytest
import torch
import tuned
from workload import Work, prepared, untrained

from unlearnbench.benchmarks.hp.benchmark import Excerpt
from unlearnbench.benchmarks.muse.benchmark import Asked
from unlearnbench.benchmarks.tofu.benchmark import AskedRow, _answers
from unlearnbench.contracts import Attack, Context
from unlearnbench.domain import Example
from unlearnbench.engine.engine import Engine
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.plugin.specs import resolve
from unlearnbench.records.node_spec import PlannedAttack
from unlearnbench.worker.attack import measure_attacked
from unlearnbench.worker.stage_meter import StageMeter


@dataclass(frozen=True)
class Found:
    """What an evaluation finds: summed log-likelihoods, or what they are for it, and generated texts."""

    likelihoods: list[float]
    texts: list[str]


Scorer = Callable[[Any, Sequence[tuple[Sequence[int], int]]], list[list[float]]]
Writer = Callable[[Any, Sequence[Sequence[int]], int, Sequence[int]], list[list[int]]]


@dataclass(frozen=True)
class Evaluation:
    """A whole evaluation.

    Args:
        measured: by the harness, on an engine.
        plain: the plain way.
        asked: each likelihood and each continuation once, by a function for either.
    """

    measured: Callable[[Engine], Found]
    plain: Callable[[], Found]
    asked: Callable[[Scorer, Writer], Found]

    def tuned(self) -> Found:
        """By the tuned baseline."""
        return self.asked(tuned.logprobs, tuned.generations)

    def continuous(self) -> Found:
        """By transformers' continuous batching; likelihoods, which it does not give, by the tuned baseline."""
        return self.asked(tuned.logprobs, tuned.continuous)


def close(found, expected):
    """Summed log-likelihoods agree to float32's noise."""
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-2)


def same_texts(found, expected):
    """All continuations but those that a near tie of two tokens decides."""
    unlike = sum(mine != theirs for mine, theirs in zip(found, expected, strict=True))
    assert unlike <= 0.01 * len(expected), f"{unlike} of {len(expected)} differ"


def equal(found: Found, expected: Found) -> None:
    """Both found the same."""
    close(found.likelihoods, expected.likelihoods)
    same_texts(found.texts, expected.texts)


def plainly(rows):
    return [(list(row.ids), row.start) for row in rows]


def tofu(work: Work) -> Evaluation:
    """TOFU; plainly, each metric asks for its likelihoods by itself."""
    encoder, limit, ends = work.task.encoder, work.task.evaluation.new_tokens, work.task.encoder.ends
    asked = work.task.evaluation.asked
    rows = [plainly(encoder.encode([q.example.answered(answer) for answer in _answers(q)])) for q in asked]
    prompts = encoder.prompts([question.example for question in asked])
    parts: dict[str, list[dict[str, Any]]] = {}
    for question, (answer, *others), prompt in zip(asked, rows, prompts, strict=True):
        paraphrase = others.pop(0) if question.paraphrase is not None else None
        parts.setdefault(question.part, []).append(
            {"answer": answer, "paraphrase": paraphrase, "perturbed": others, "prompt": prompt}
        )

    def measured(engine: Engine) -> Found:
        found = work.benchmark.measure(work.model, work.task, Context("measure", 0, engine)).rows
        values = [pair for row in found for pair in _of_row(row)]
        return Found([loss * tokens for loss, tokens in values], [row["generation"] for row in found])

    def plain_way() -> Found:
        losses, written = plain.tofu(work.model, parts, limit, ends)
        values: list[float] = []
        for part, questions in parts.items():
            wrong = iter(losses[part, "perturbed"])
            paraphrases = iter(losses[part, "paraphrase"])
            for question, answer in zip(questions, losses[part, "answer"], strict=True):
                paraphrase = next(paraphrases)
                values += [answer] if question["paraphrase"] is None else [answer, paraphrase]
                values += [next(wrong) for _ in question["perturbed"]]
        return Found(values, [encoder.decode(ids) for part in parts for ids in written[part]])

    def once(score: Scorer, write: Writer) -> Found:
        found = score(work.model, [row for question in rows for row in question])
        written = write(work.model, prompts, limit, ends)
        return Found([-sum(values) for values in found], [encoder.decode(ids) for ids in written])

    return Evaluation(measured, plain_way, once)


ATTACKS = ("quantise", "relearn", "sample", "paraphrase")


def tofu_attacked(work: Work, engine: Engine) -> list[int]:
    """The whole of TOFU and the forget part under each attack; how many rows each measured."""
    registry = load_plugins()
    counts = [len(work.benchmark.measure(work.model, work.task, Context("measure", 0, engine)).rows)]
    for name in ATTACKS:
        spec = registry.find("attack", name).spec
        values = {parameter.name: parameter.default for parameter in spec.parameters}
        planned = PlannedAttack(
            name=name,
            qualified=f"unlearnbench/{name}",
            target=spec.target,
            source="",
            values=values,
            fixed=dict(spec.fixed),
            requires=spec.requires,
        )
        cell: Any = SimpleNamespace(seed=0, benchmark=work.benchmark, model=SimpleNamespace(name="speed"))
        changes = resolve(spec.target, name).change is not Attack.change
        model = copy.deepcopy(work.model) if changes else work.model
        ctx, meter = Context(name, 0, engine, lambda _: None), StageMeter(engine.device)
        found, _, _ = measure_attacked(cell, planned, model, work.benchmark, work.task, ctx, meter)
        counts.append(len(found.rows))
    return counts


def _of_row(row: dict[str, Any]) -> list[Any]:
    return [row["answer"], *([row["paraphrase"]] if "paraphrase" in row else []), *row["perturbed"]]


def muse(work: Work) -> Evaluation:
    """MUSE-News; plainly, each text's likelihood is a pass of its own, as in MUSE's code."""
    encoder, questions = work.task.encoder, work.task.evaluation
    generated = [(questions.continuations, questions.verbatim_tokens)] + [
        ([row for row in questions.answers if row.part == part], questions.answer_tokens)
        for part in ("knowmem_f", "knowmem_r")
    ]

    def measured(engine: Engine) -> Found:
        rows = work.benchmark.measure(work.model, work.task, Context("measure", 0, engine)).rows
        return Found([r["min40"] for r in rows if "min40" in r], [r["generation"] for r in rows if "generation" in r])

    def once(score: Scorer, write: Writer) -> Found:
        values = []
        for found in score(work.model, [(text.ids, 1) for text in questions.texts]):
            lowest = sorted(found)[: int(0.4 * len(found))]
            values.append(-sum(lowest) / len(lowest))
        written = [
            ids
            for asked, limit in generated
            for ids in write(work.model, [row.ids for row in asked], limit, encoder.ends)
        ]
        return Found(values, [encoder.tokenizer.clean_up_tokenization(encoder.decode(ids)) for ids in written])

    return Evaluation(measured, lambda: once(_each_alone, plain.generations), once)


@torch.no_grad()
def _each_alone(model, rows):
    found = []
    for row, _ in rows:
        ids = torch.tensor([row])
        logp = model(input_ids=ids, labels=ids).logits[0, :-1].log_softmax(-1)
        found.append(logp.gather(-1, ids[0, 1:, None]).flatten().tolist())
    return found


def book(work: Work) -> Evaluation:
    """A book's excerpts; lm-eval's tasks are no part of it."""
    encoder, questions = work.task.encoder, work.task.evaluation

    def measured(engine: Engine) -> Found:
        rows = work.benchmark.measure(work.model, work.task, Context("measure", 0, engine)).rows
        return Found([], [row["generation"] for row in rows])

    def once(_score: Scorer, write: Writer) -> Found:
        written = write(work.model, [row.ids for row in questions.excerpts], questions.new_tokens, encoder.ends)
        return Found([], [encoder.decode(ids) for ids in written])

    return Evaluation(measured, lambda: once(_each_alone, plain.generations), once)


# -- the suite's evaluations, on generated data ------------------------------------------------------------------------


def small_muse() -> Work:
    return Work(untrained(), *prepared("muse-news", verbatim_tokens=32, answer_tokens=16))


def small_book() -> Work:
    settings = {"chunk_tokens": 128, "prefix_words": 40, "response_words": 40, "released_tokens": 2, "limit": 24}
    return Work(untrained(), *prepared("hp", max_new_tokens=24, tasks="none", **settings))


def small_tofu(limit: int = 0) -> Work:
    return Work(untrained(), *prepared("tofu-forget01", max_new_tokens=32, limit=limit))


# -- the same evaluations with longer rows, of random tokens -----------------------------------------------------------

LENGTHS = {
    "TOFU": "20 questions of 12 to 30 words with an answer and a paraphrase of 20 to 60, and 5 wrong answers that "
    "differ from the paraphrase in its last words; 60 such questions with answers of 1 to 4 words, no paraphrase and 3 "
    "wrong answers; a continuation has at most 200 tokens, and most end within 40",
    "MUSE-News": "4 passages of 300 to 700 tokens, continued by 64; twice 12 questions of 12 to 30 tokens after 400 "
    "tokens of examples, answered with at most 32, most with fewer; the likelihood of 4 texts of 300 to 700 tokens",
    "the book": "16 excerpts of 240 to 300 tokens, continued by 64",
}


def long_tofu() -> Work:
    rng = random.Random(0)
    work = Work(untrained(), *prepared("tofu-forget01", max_new_tokens=200))
    texts = [text for row in work.task.training["original"] for text in (row.prompt, row.answer)]
    vocabulary = sorted({word for text in texts for word in text.split()})

    def words(least: int, most: int) -> str:
        return " ".join(rng.choice(vocabulary) for _ in range(rng.randint(least, most)))

    asked = []
    for index in range(80):
        short = index >= 20
        answer, paraphrase = (words(1, 4), words(1, 4)) if short else (words(20, 60), words(20, 60))
        same = paraphrase.split()[: -rng.randint(2, 8)]
        wrong = tuple(" ".join([*same, words(2, 8)]) for _ in range(3 if short else 5))
        part = "world_facts" if short else "retain" if index >= 5 else "forget"
        asked.append(AskedRow(part, Example(index, words(12, 30), answer), None if short else paraphrase, wrong))
    prompts = work.task.encoder.prompts([question.example for question in asked])
    questions = replace(work.task.evaluation, asked=tuple(asked), new_tokens=200)
    return _ending(work, questions, [(prompts, 200, 3, 40)])


def long_muse() -> Work:
    rng = random.Random(0)
    work = small_muse()

    def ids(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, work.task.encoder.tokenizer.vocab_size) for _ in range(rng.randint(least, most)))

    examples = {part: ids(400, 400) for part in ("knowmem_f", "knowmem_r")}
    questions = replace(
        work.task.evaluation,
        continuations=tuple(Asked("verbmem_f", index, ids(300, 700), "", "") for index in range(4)),
        answers=tuple(
            Asked(part, index, examples[part] + ids(12, 30), "", "") for part in examples for index in range(12)
        ),
        texts=tuple(Asked("privleak_forget", index, ids(300, 700), "", "") for index in range(4)),
        verbatim_tokens=64,
        answer_tokens=32,
    )
    return _ending(work, questions, [([row.ids for row in questions.answers], 32, 1, 32)])


def long_book() -> Work:
    rng = random.Random(0)
    work = small_book()
    size = work.task.encoder.tokenizer.vocab_size
    rows = [tuple(rng.randrange(2, size) for _ in range(rng.randint(240, 300))) for _ in range(16)]
    excerpts = tuple(Excerpt(index, "", "", "", ids, ids, "") for index, ids in enumerate(rows))
    questions = replace(work.task.evaluation, excerpts=excerpts, new_tokens=64)
    return Work(work.model, replace(work.benchmark, max_new_tokens=64), replace(work.task, evaluation=questions))


def _ending(work: Work, questions: Any, written: list[tuple[Any, int, int, int]]) -> Work:
    """The work with tokens that end rows, as an untrained model writes no end.

    Args:
        written: prompts, their cap, and the least and the most tokens after which a row is to end.
    """
    rng = random.Random(0)
    ends = {work.eos}
    for prompts, limit, least, most in written:
        for line in tuned.generations(work.model, prompts, min(limit, most), (work.eos,)):
            ends.add(line[min(rng.randint(least, most), len(line)) - 1])
    encoder = copy.copy(work.task.encoder)
    encoder.ends = tuple(sorted(ends))
    return Work(work.model, work.benchmark, replace(work.task, encoder=encoder, evaluation=questions))
