"""MUSE-News as a benchmark: running text to train on and forget; continuations, questions and likelihoods."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnbench import (
    Context,
    EncodedRow,
    Encoder,
    Measurement,
    Preparation,
    Row,
    Score,
    Tables,
    Task,
)

from .metrics import min_k_score, scores
from .settings import Settings
from .tables import RETAIN, forget_tables, overlaps, seen_tables, text_hash

KNOWLEDGE = {"knowmem_f": "forget_qa", "knowmem_r": "retain_qa"}


@dataclass(frozen=True)
class Asked:
    """A prompt in tokens, and the fields of it that a record keeps."""

    part: str
    index: int
    ids: tuple[int, ...]
    prompt: str
    truth: str


@dataclass(frozen=True)
class Questions:
    """Inputs of the evaluation: prompts for continuations and answers, texts to score, and the most new tokens."""

    continuations: tuple[Asked, ...]
    answers: tuple[Asked, ...]
    texts: tuple[Asked, ...]
    verbatim_tokens: int
    answer_tokens: int


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
        for part, table in KNOWLEDGE.items():
            rows = tables[f"knowmem/{table}"][:stop]
            examples = "".join(f"{_question(row)}{row['answer']}\n\n" for row in tables[f"knowmem/{table}_icl"])
            prompts = encoder.text_ids([examples + _question(row) for row in rows])
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
        return Questions(tuple(continuations), tuple(answers), tuple(texts), *caps)

    def measure(self, model: Any, task: Task, ctx: Context) -> Measurement:
        asked: Questions = task.evaluation
        began = time.perf_counter()
        # A text of fewer than two tokens has no probability.
        readable = [text for text in asked.texts if len(text.ids) > 1]
        scored = ctx.engine.token_logprobs(model, [EncodedRow(text.ids, 0) for text in readable])
        logprobs = dict(zip([(text.part, text.index) for text in readable], scored, strict=True))
        middle = time.perf_counter()
        rows = self._written(model, task.encoder, asked.continuations, asked.verbatim_tokens, ctx)
        for part in KNOWLEDGE:
            # The prompts of a part share its few-shot examples.
            questions = [question for question in asked.answers if question.part == part]
            rows += self._written(model, task.encoder, questions, asked.answer_tokens, ctx)
        end = time.perf_counter()
        for text in asked.texts:
            rows.append(
                {
                    "part": text.part,
                    "index": text.index,
                    "text_sha256": text_hash(text.prompt),
                    "tokens": len(text.ids),
                    "min40": min_k_score(logprobs.get((text.part, text.index), [])),
                }
            )
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


def _question(row: Row) -> str:
    return f"Question: {row['question']}\nAnswer: "


def _decoded(encoder: Encoder, ids: Sequence[int]) -> str:
    """Decode without special tokens and without spaces before punctuation, as MUSE's evaluation does.

    transformers 5 no longer removes these spaces for BPE tokenizers, so a separate call does.
    """
    return str(encoder.tokenizer.clean_up_tokenization(encoder.decode(ids)))


def _corpus(tables: Tables) -> Iterator[str]:
    """All texts, for the vocabulary of a model from scratch."""
    for name, rows in tables.items():
        for row in rows:
            yield from ([_question(row), row["answer"]] if name.startswith("knowmem/") else row.values())
