"""TOFU as a benchmark: the rows to train on, to forget and to ask, and one scoring pass for all likelihoods."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

from unlearnbench import (
    Context,
    Encoder,
    Example,
    Measurement,
    Preparation,
    Question,
    Row,
    Score,
    Task,
)

from .metrics import scores
from .settings import Settings
from .tables import RETAIN_SPLITS, author


@dataclass(frozen=True)
class AskedRow:
    """One evaluation row: a question, its answer, and the other answers to score.

    Args:
        author: whom the row is about, or the author's number; empty where rows do not share authors.
        other_question: the question in other words, where the data have them.
        words: the words in which it is asked where they are not the question's own.
    """

    part: str
    example: Example
    paraphrase: str | None
    perturbed: tuple[str, ...]
    author: str = ""
    other_question: str = ""
    words: str = ""

    @property
    def asked(self) -> Example:
        """The question as it is asked."""
        return replace(self.example, prompt=self.words) if self.words else self.example


@dataclass(frozen=True)
class Questions:
    """Inputs of the evaluation: the questions, and the most tokens to generate for an answer."""

    asked: tuple[AskedRow, ...]
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
        asked = self._asked_rows(tables)
        notes: list[str] = []
        return Task(
            encoder=encoder,
            training={"original": [*full[: len(retain)], *forget, *general], "retained": [*retain, *general]},
            forget=forget,
            retain=retain,
            evaluation=self._questions(asked, encoder, notes),
            notes=notes,
        )

    def _questions(self, asked: Sequence[AskedRow], encoder: Encoder, notes: list[str]) -> Questions:
        prompts = encoder.prompts([row.asked for row in asked])
        return Questions(tuple(asked), encoder.new_tokens(prompts, self.max_new_tokens, notes))

    def forget_questions(self, task: Task) -> list[Question]:
        return [
            Question(
                row.part,
                row.example.index,
                row.example.prompt,
                row.example.answer,
                (row.other_question,) if row.other_question else (),
            )
            for row in task.evaluation.asked
            if row.part == "forget"
        ]

    def asking(self, task: Task, questions: Sequence[Question]) -> Task:
        rows = {(row.part, row.example.index): row for row in task.evaluation.asked}
        asked = []
        for question in questions:
            row = rows[question.part, question.index]
            same = question.prompt == row.example.prompt
            asked.append(replace(row, words="" if same else question.prompt))
        notes: list[str] = []
        return replace(task, evaluation=self._questions(asked, task.encoder, notes), notes=notes)

    def _asked_rows(self, tables: Mapping[str, Sequence[Row]]) -> list[AskedRow]:
        parts = {
            "forget": tables[f"{self.forget_split}_perturbed"],
            "retain": tables["retain_perturbed"],
            "real_authors": tables["real_authors_perturbed"],
            "world_facts": tables["world_facts_perturbed"],
        }
        return [
            AskedRow(
                part,
                example,
                row.get("paraphrased_answer"),
                tuple(row["perturbed_answer"]),
                author(part, rows, example),
                str(row.get("paraphrased_question") or ""),
            )
            for part, rows in parts.items()
            for example, row in zip(_examples(rows), rows, strict=True)
            if not self.limit or example.index < self.limit
        ]

    def measure(self, model: Any, task: Task, ctx: Context) -> Measurement:
        questions: Sequence[AskedRow] = task.evaluation.asked
        answers = [question.asked.answered(answer) for question in questions for answer in _answers(question)]
        began = time.perf_counter()
        encoded = task.encoder.encode(answers)
        answered = ctx.engine.score(model, encoded)
        middle = time.perf_counter()
        prompts = task.encoder.prompts([question.asked for question in questions])
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
                **({"asked": question.words} if question.words else {}),
                "truth": question.example.answer,
                "generation": task.encoder.decode(ids),
                "generated_tokens": len(ids),
            }
            likelihoods = [each for _, each in zip(_answers(question), scored, strict=False)]
            values = [[each.loss, each.tokens] for each in likelihoods]
            row["answer"] = values.pop(0)
            row["greedy"] = [likelihoods[0].greedy, likelihoods[0].greedy_suffix]
            if question.paraphrase is not None:
                row["paraphrase"] = values.pop(0)
                row["paraphrased"] = question.paraphrase
            row["perturbed"] = values
            rows.append(row)
        return Measurement(tuple(rows), {"scoring": middle - began, "generation": end - middle})

    def score(
        self, unlearned: Measurement, original: Measurement | None, retained: Measurement | None
    ) -> Iterator[Score]:
        return scores(unlearned, retained)


def _examples(rows: Sequence[Row]) -> list[Example]:
    return [Example(index, row["question"], row["answer"]) for index, row in enumerate(rows)]


def _answers(question: AskedRow) -> list[str]:
    paraphrase = [] if question.paraphrase is None else [question.paraphrase]
    return [question.example.answer, *paraphrase, *question.perturbed]
