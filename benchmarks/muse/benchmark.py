"""MUSE-News as a benchmark: running text to train on and forget; continuations, questions and likelihoods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from unlearnbench import (
    Context,
    EncodedRow,
    Encoder,
    Measurement,
    Preparation,
    Question,
    ReadText,
    Score,
    Tables,
    Task,
)

from .metrics import membership, scores
from .settings import Settings
from .tables import RETAIN, forget_tables, overlaps, seen_tables, text_hash

FORGET = ("verbmem_f", "knowmem_f", "privleak_forget")
"""The parts that concern the forget set."""
KNOWLEDGE = {"knowmem_f": "forget_qa", "knowmem_r": "retain_qa"}


@dataclass(frozen=True)
class Asked:
    """A prompt in tokens, and the fields of it that a record keeps; ``words`` where others than its own are asked."""

    part: str
    index: int
    ids: tuple[int, ...]
    prompt: str
    truth: str
    words: str = ""


@dataclass(frozen=True)
class Questions:
    """Inputs of the evaluation: prompts for continuations and answers, texts to score, and the most new tokens.

    ``examples`` are the few-shot examples of each part of ``answers``.
    """

    continuations: tuple[Asked, ...]
    answers: tuple[Asked, ...]
    texts: tuple[Asked, ...]
    verbatim_tokens: int
    answer_tokens: int
    examples: Mapping[str, str]


@dataclass(frozen=True)
class MuseNews(Settings):
    """Forget news articles as running text; measure memory of words and facts, and traces of membership."""

    study: str = ""
    step: int = 1

    name: ClassVar[str] = "muse-news"

    def prepare(self, ctx: Preparation) -> Task:
        tables = ctx.tables
        encoder = ctx.encoder(_corpus(tables))
        size = encoder.chunk_size(self.chunk_tokens)
        notes = [
            f"{shared} of {total} texts of {name} are also in {other}"
            for name, other, shared, total in overlaps(tables)
        ]
        if size < self.chunk_tokens:
            notes.append(f"training chunks have {size} tokens, which fit the model, instead of {self.chunk_tokens}")
        seen = encoder.chunks(self._texts(tables, seen_tables(self.study)), size)
        retain = encoder.chunks(self._texts(tables, RETAIN), size)
        *earlier, forget = (
            encoder.chunks(self._texts(tables, (name,)), size) for name in forget_tables(self.study, self.step)
        )
        return Task(
            encoder=encoder,
            training={"original": [*seen, *retain], "retained": retain},
            forget=forget,
            # Methods see retain1 alone; the questions about knowledge concern retain2.
            retain=encoder.chunks(self._texts(tables, RETAIN[:1]), size),
            evaluation=self._questions(tables, encoder, notes),
            earlier=earlier,
            notes=notes,
        )

    def _texts(self, tables: Tables, names: Sequence[str]) -> list[str]:
        return [row["text"] for name in names for row in tables[name][: self.train_limit or None]]

    def _questions(self, tables: Tables, encoder: Encoder, notes: list[str]) -> Questions:
        stop = self.limit or None
        verbatim = tables["verbmem/forget"][:stop]
        truths = encoder.text_ids([row["gt"] for row in verbatim])
        continuations = [
            Asked("verbmem_f", index, ids, row["prompt"], _decoded(encoder, truth[: self.verbatim_tokens]))
            for index, (row, ids, truth) in enumerate(
                zip(verbatim, encoder.text_ids([row["prompt"] for row in verbatim]), truths, strict=True)
            )
        ]
        answers = []
        examples = {}
        for part, table in KNOWLEDGE.items():
            rows = tables[f"knowmem/{table}"][:stop]
            shots = "".join(
                f"{_question(row['question'])}{row['answer']}\n\n" for row in tables[f"knowmem/{table}_icl"]
            )
            prompts = encoder.text_ids([shots + _question(row["question"]) for row in rows])
            examples[part] = shots
            answers += [
                Asked(part, index, ids, row["question"], row["answer"])
                for index, (row, ids) in enumerate(zip(rows, prompts, strict=True))
            ]
        texts = []
        for part in ("forget", "holdout"):
            read = [row["text"] for row in tables[f"privleak/{part}"][:stop]]
            texts += [
                Asked(f"privleak_{part}", index, ids, text, "")
                for index, (text, ids) in enumerate(zip(read, encoder.text_ids(read), strict=True))
            ]
        caps = [
            encoder.new_tokens([question.ids for question in questions], wanted, notes)
            for questions, wanted in ((continuations, self.verbatim_tokens), (answers, self.answer_tokens))
        ]
        return Questions(tuple(continuations), tuple(answers), tuple(texts), caps[0], caps[1], examples)

    def forget_questions(self, task: Task) -> list[Question]:
        asked: Questions = task.evaluation
        return [
            Question(row.part, row.index, row.prompt, row.truth, fixed=fixed)
            for rows, fixed in ((asked.continuations, False), (asked.answers, False), (asked.texts, True))
            for row in rows
            if row.part in FORGET
        ]

    def asking(self, task: Task, questions: Sequence[Question]) -> Task:
        asked: Questions = task.evaluation
        encoder = task.encoder
        wanted = {(question.part, question.index): question.prompt for question in questions}
        continuations = tuple(_in_words(asked.continuations, wanted, encoder.text_ids))
        shots = asked.examples
        answers = tuple(
            row
            for part in KNOWLEDGE
            for row in _in_words(
                [row for row in asked.answers if row.part == part],
                wanted,
                lambda texts, part=part: encoder.text_ids([shots[part] + _question(text) for text in texts]),  # type: ignore[misc]
            )
        )
        # What the retained model has not read either stays as it is: membership is judged against it.
        texts = tuple(row for row in asked.texts if (row.part, row.index) in wanted or row.part not in FORGET)
        notes: list[str] = []
        caps = [
            encoder.new_tokens([row.ids for row in rows], wanted_tokens, notes)
            for rows, wanted_tokens in ((continuations, asked.verbatim_tokens), (answers, asked.answer_tokens))
        ]
        return replace(task, evaluation=Questions(continuations, answers, texts, caps[0], caps[1], shots), notes=notes)

    def measure(self, model: Any, task: Task, ctx: Context) -> Measurement:
        asked: Questions = task.evaluation
        began = time.perf_counter()
        # A text of fewer than two tokens has no probability.
        readable = [text for text in asked.texts if len(text.ids) > 1]
        encoded = [EncodedRow(text.ids, 0) for text in readable]
        places = [(text.part, text.index) for text in readable]
        read = dict(zip(places, ctx.engine.read(model, encoded), strict=True))
        norms = ctx.engine.gradient_norms(model, encoded) if self.gradient_norms else []
        gradients = dict(zip(places, norms, strict=False))
        middle = time.perf_counter()
        rows = self._written(model, task.encoder, asked.continuations, asked.verbatim_tokens, ctx)
        for part in KNOWLEDGE:
            # The prompts of a part share its few-shot examples.
            questions = [question for question in asked.answers if question.part == part]
            rows += self._written(model, task.encoder, questions, asked.answer_tokens, ctx)
        end = time.perf_counter()
        for text in asked.texts:
            place = text.part, text.index
            row = {
                "part": text.part,
                "index": text.index,
                "text_sha256": text_hash(text.prompt),
                "tokens": len(text.ids),
                **membership(read.get(place, ReadText()), text.prompt),
            }
            if self.gradient_norms:
                row["gradient_norm"] = gradients.get(place)
            rows.append(row)
        return Measurement(tuple(rows), {"scoring": middle - began, "generation": end - middle})

    def _written(
        self, model: Any, encoder: Encoder, asked: Sequence[Asked], tokens: int, ctx: Context
    ) -> list[dict[str, Any]]:
        written = ctx.engine.generate(model, [question.ids for question in asked], tokens, encoder.ends)
        return [
            {
                "part": question.part,
                "index": question.index,
                "prompt": question.prompt,
                **({"asked": question.words} if question.words else {}),
                "truth": question.truth,
                "generation": _decoded(encoder, ids),
                "generated_tokens": len(ids),
            }
            for question, ids in zip(asked, written, strict=True)
        ]

    def score(
        self, unlearned: Measurement, original: Measurement | None, retained: Measurement | None
    ) -> Iterator[Score]:
        return scores(unlearned, original, retained)


def _question(text: str) -> str:
    return f"Question: {text}\nAnswer: "


def _in_words(
    rows: Sequence[Asked],
    wanted: Mapping[tuple[str, int], str],
    encode: Callable[[Sequence[str]], Sequence[tuple[int, ...]]],
) -> Iterator[Asked]:
    """The rows that are wanted, each in the words wanted of it."""
    for row in rows:
        words = wanted.get((row.part, row.index))
        if words == row.prompt:
            yield row
        elif words is not None:
            (ids,) = encode([words])
            yield replace(row, ids=ids, words=words)


def _decoded(encoder: Encoder, ids: Sequence[int]) -> str:
    """Decode without special tokens and without spaces before punctuation, as MUSE's evaluation does.

    transformers 5 no longer removes these spaces for BPE tokenizers, so a separate call does.
    """
    return str(encoder.tokenizer.clean_up_tokenization(encoder.decode(ids)))


def _corpus(tables: Tables) -> Iterator[str]:
    """All texts, for the vocabulary of a model from scratch."""
    for name, rows in tables.items():
        for row in rows:
            yield from ([_question(row["question"]), row["answer"]] if name.startswith("knowmem/") else row.values())
