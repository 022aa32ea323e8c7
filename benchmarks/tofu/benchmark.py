"""TOFU as a benchmark: the rows to train on, to forget and to ask, and one scoring pass for all likelihoods."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

from unlearnbench import (
    Context,
    Example,
    Measurement,
    Preparation,
    Row,
    Score,
    Task,
)

from .metrics import scores
from .settings import Settings
from .tables import RETAIN_SPLITS, author


@dataclass(frozen=True)
class Question:
    """One evaluation row: a question, its answer, and the other answers to score."""

    part: str
    example: Example
    paraphrase: str | None
    perturbed: tuple[str, ...]
    author: str = ""
    """The author whom the row is about, or the author's number; empty where rows do not share authors."""


@dataclass(frozen=True)
class Questions:
    """Inputs of the evaluation: the questions, and the most tokens to generate for an answer."""

    asked: tuple[Question, ...]
    new_tokens: int


@dataclass(frozen=True)
class Tofu(Settings):
    """Questions about invented authors, of whom the retained model knows nothing."""

    forget_split: str = "forget10"

    name: ClassVar[str] = "tofu"

    def prepare(self, ctx: Preparation) -> Task:
        tables = ctx.tables
        full = _examples(tables["full"])
        forget = full[-len(tables[self.forget_split]) :]
        retain = _examples(tables[RETAIN_SPLITS[self.forget_split]])
        general = _examples(tables["general"])
        encoder = ctx.encoder(text for row in (*full, *general) for text in (row.prompt, row.answer))
        if self.retain_limit:
            retain = retain[: self.retain_limit]
        asked = self._questions(tables)
        notes: list[str] = []
        prompts = encoder.prompts([question.example for question in asked])
        new_tokens = encoder.new_tokens(prompts, self.max_new_tokens, notes)
        return Task(
            encoder=encoder,
            training={"original": [*full[: len(retain)], *forget, *general], "retained": [*retain, *general]},
            forget=forget,
            retain=retain,
            evaluation=Questions(tuple(asked), new_tokens),
            notes=notes,
        )

    def _questions(self, tables: Mapping[str, Sequence[Row]]) -> list[Question]:
        parts = {
            "forget": tables[f"{self.forget_split}_perturbed"],
            "retain": tables["retain_perturbed"],
            "real_authors": tables["real_authors_perturbed"],
            "world_facts": tables["world_facts_perturbed"],
        }
        return [
            Question(
                part,
                example,
                row.get("paraphrased_answer"),
                tuple(row["perturbed_answer"]),
                author(part, rows, example),
            )
            for part, rows in parts.items()
            for example, row in zip(_examples(rows), rows, strict=True)
            if not self.limit or example.index < self.limit
        ]

    def measure(self, model: Any, task: Task, ctx: Context) -> Measurement:
        questions: Sequence[Question] = task.evaluation.asked
        answers = [question.example.answered(answer) for question in questions for answer in _answers(question)]
        began = time.perf_counter()
        encoded = task.encoder.encode(answers)
        answered = ctx.engine.score(model, encoded)
        middle = time.perf_counter()
        prompts = task.encoder.prompts([question.example for question in questions])
        places = accumulate((len(_answers(question)) for question in questions[:-1]), initial=0)
        # Scoring already shows how much of the true answer the model writes greedily: generation starts after it.
        begun = [
            encoded[place].begun(prompt, answered[place].greedy_prefix)
            for place, prompt in zip(places, prompts, strict=False)
        ]
        written = ctx.engine.generate(model, prompts, task.evaluation.new_tokens, task.encoder.ends, begun)
        scored = iter(answered)
        end = time.perf_counter()
        rows = []
        for question, ids in zip(questions, written, strict=True):
            row: dict[str, Any] = {
                "part": question.part,
                "index": question.example.index,
                **({"author": question.author} if question.author else {}),
                "prompt": question.example.prompt,
                "truth": question.example.answer,
                "generation": task.encoder.decode(ids),
                "generated_tokens": len(ids),
            }
            values = [[each.loss, each.tokens] for _, each in zip(_answers(question), scored, strict=False)]
            row["answer"] = values.pop(0)
            if question.paraphrase is not None:
                row["paraphrase"] = values.pop(0)
            row["perturbed"] = values
            rows.append(row)
        return Measurement(tuple(rows), {"scoring": middle - began, "generation": end - middle})

    def score(
        self, unlearned: Measurement, original: Measurement | None, retained: Measurement | None
    ) -> Iterator[Score]:
        return scores(unlearned, retained)


def _examples(rows: Sequence[Row]) -> list[Example]:
    return [Example(index, row["question"], row["answer"]) for index, row in enumerate(rows)]


def _answers(question: Question) -> list[str]:
    paraphrase = [] if question.paraphrase is None else [question.paraphrase]
    return [question.example.answer, *paraphrase, *question.perturbed]
