"""A book as a benchmark: chunks to forget, excerpts to continue, and tasks that measure remaining utility."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, ClassVar

from unlearnbench import (
    Context,
    DataError,
    Encoder,
    Example,
    Measurement,
    Preparation,
    Question,
    Row,
    Score,
    Tables,
    Task,
    ask_tasks,
    hub_tasks,
    local_tasks,
    worth_another_try,
)

from .metrics import ACCURACY, PERPLEXITY, scores
from .settings import Settings
from .tables import RELEASED

# Folders of the tasks in lm-eval.
FOLDERS = tuple("arc glue/rte hellaswag openbookqa piqa super_glue/boolq truthfulqa wikitext winogrande".split())
WORDING = "Continue this passage: "
OTHER_WORDINGS = ("How does this text go on? ", "Write the next lines of the story that begins like this: ")
"""Instructions that no evaluation asks with, for attacks."""


@dataclass(frozen=True)
class PromptPair:
    """Format of a prompt: text before and after it, the answer's tag, and the release's text after it."""

    before: str = ""
    after: str = ""
    tag: str = ""
    released_after: str = ""


# By the model's prompt format; the release writes Llama's closing tag with a backslash.
PROMPTS = {
    "question-answer": PromptPair("### Question: ", "\n", "### Answer: ", "\n"),
    "llama2": PromptPair("[INST] ", " [/INST]", "", " [\\INST]"),
}


@dataclass(frozen=True)
class Excerpt:
    """A passage to continue: the prompt's tokens and the true continuation, in either edition.

    ``words`` is what the prompt format is put around: the passage, with an instruction where models take one;
    ``other_words`` are other instructions, ``reworded`` says that an attack chose the words.
    """

    index: int
    prompt: str
    truth: str
    truth_released: str
    ids: tuple[int, ...]
    ids_released: tuple[int, ...]
    words: str
    other_words: tuple[str, ...] = ()
    reworded: bool = False


@dataclass(frozen=True)
class Questions:
    """Inputs of the evaluation: excerpts, the most tokens by which to continue them, and lm-eval tasks by name."""

    excerpts: tuple[Excerpt, ...]
    new_tokens: int
    tasks: dict[str, Any]


@dataclass(frozen=True)
class ForgottenBook(Settings):
    """A book read in chunks; the retained model has not read it.

    A pretrained base model is itself the retained model. Both references of a model from scratch first train on the
    text to retain, because the model would otherwise know no language.
    """

    name: ClassVar[str] = "hp"

    def prepare(self, ctx: Preparation) -> Task:
        tables = ctx.tables
        encoder = ctx.encoder(_corpus(tables))
        size = encoder.chunk_size(self.chunk_tokens)
        notes = []
        released = tables[RELEASED]
        book = [row["text"] for row in tables["book"]] or _excerpts_of(released)
        forget = encoder.chunks(book, size)[: self.chunks]
        retain = encoder.chunks([row["text"] for row in tables["retain"]], size)[: self.chunks]
        for what, chunks in (("book", forget), ("text to retain", retain)):
            if len(chunks) < 2:
                raise DataError(
                    f"the {what} gives {len(chunks)} chunks of {size} tokens, and 2 are needed at least: name a longer "
                    "text or lower benchmarks.hp.chunk_tokens"
                )
            if len(chunks) < self.chunks:
                notes.append(f"the {what} gives {len(chunks)} chunks of {size} tokens, {self.chunks} were asked for")
        base = [] if ctx.pretrained else retain
        rows = self._released_rows(released) if released else self._rows(forget, encoder)
        excerpts = self._excerpts(rows, encoder, bool(released))
        task_set = ("local" if ctx.generated else "hub") if self.tasks == "auto" else self.tasks
        return Task(
            encoder=encoder,
            training={"original": [*base, *forget], "retained": base},
            forget=forget,
            retain=retain,
            evaluation=self._questions(excerpts, encoder, _tasks(task_set), notes),
            notes=notes,
        )

    def _questions(
        self, excerpts: tuple[Excerpt, ...], encoder: Encoder, tasks: dict[str, Any], notes: list[str]
    ) -> Questions:
        # One generation pass continues the prompts of both editions.
        wanted = max((self.max_new_tokens, *map(self._released_cap, excerpts)))
        prompts = [ids for excerpt in excerpts for ids in (excerpt.ids, excerpt.ids_released)]
        return Questions(excerpts, encoder.new_tokens(prompts, wanted, notes), tasks)

    def _released_rows(self, released: Sequence[Row]) -> list[Row]:
        """The first excerpts in all their wordings: the release asks each passage in several."""
        kept = set(list(dict.fromkeys(row["response"] for row in released))[: self.excerpts])
        return [row for row in released if row["response"] in kept]

    def _released_cap(self, excerpt: Excerpt) -> int:
        return max(0, self.released_tokens - len(excerpt.ids_released))

    def _rows(self, forget: Sequence[Example], encoder: Encoder) -> list[Row]:
        """Consecutive prompts and their continuations from the forgotten chunks."""
        # Decode all tokens at once: a SentencePiece tokenizer drops the leading space of each separately decoded piece.
        text = encoder.decode([token for chunk in forget for token in (*chunk.prompt_ids, *chunk.answer_ids)])
        words = re.findall(r"\s*\S+", text)
        length = self.prefix_words + self.response_words
        if len(words) < length:
            raise DataError(
                f"the forgotten part of the book has {len(words)} words; an excerpt needs {length}: name a longer book "
                "or lower benchmarks.hp.prefix_words and response_words"
            )
        rows = []
        for begin in range(0, len(words) - length + 1, length):
            middle, end = begin + self.prefix_words, begin + length
            rows.append({"prompt": "".join(words[begin:middle]).strip(), "response": "".join(words[middle:end])})
        return rows[: self.excerpts]

    def _excerpts(self, rows: Sequence[Row], encoder: Encoder, worded: bool) -> tuple[Excerpt, ...]:
        """Rows in the model's prompt format; rows of the release already contain an instruction (``worded``)."""
        rows = rows[: self.limit or None]
        instructs = encoder.style.name in PROMPTS or encoder.style.name == "chat"
        instruction = WORDING if instructs and not worded else ""
        words = [instruction + row["prompt"] for row in rows]
        pair = PROMPTS.get(encoder.style.name)
        tag = pair.tag if pair else ""
        return tuple(
            Excerpt(
                index,
                row["prompt"],
                row["response"],
                tag + row["response"].lstrip(),
                ids,
                ids_released,
                said,
                tuple(other + row["prompt"] for other in OTHER_WORDINGS) if instruction else (),
            )
            for index, (row, said, (ids, ids_released)) in enumerate(
                zip(rows, words, _prompts(words, encoder), strict=True)
            )
        )

    def forget_questions(self, task: Task) -> list[Question]:
        return [
            Question("excerpts", excerpt.index, excerpt.words, excerpt.truth, excerpt.other_words)
            for excerpt in task.evaluation.excerpts
        ]

    def asking(self, task: Task, questions: Sequence[Question]) -> Task:
        excerpts = {excerpt.index: excerpt for excerpt in task.evaluation.excerpts}
        words = [question.prompt for question in questions]
        asked = tuple(
            replace(excerpts[question.index], ids=ids, ids_released=ids_released, words=said, reworded=True)
            if (said := question.prompt) != excerpts[question.index].words
            else excerpts[question.index]
            for question, (ids, ids_released) in zip(questions, _prompts(words, task.encoder), strict=True)
        )
        notes: list[str] = []
        # Only what concerns the book: lm-eval's tasks measure utility.
        return replace(task, evaluation=self._questions(asked, task.encoder, {}, notes), notes=notes)

    def measure(self, model: Any, task: Task, ctx: Context) -> Measurement:
        questions: Questions = task.evaluation
        encoder = task.encoder
        began = time.perf_counter()
        excerpts = questions.excerpts
        caps = [self._released_cap(excerpt) for excerpt in excerpts]
        # The engine computes equal prompts of both editions once.
        prompts = [*(excerpt.ids for excerpt in excerpts), *(excerpt.ids_released for excerpt in excerpts)]
        written = ctx.engine.generate(model, prompts, questions.new_tokens, encoder.ends)
        rows: list[Row] = []
        for place, excerpt in enumerate(excerpts):
            mine = written[place][: self.max_new_tokens]
            # The release drops the first token that it generates.
            released = written[len(excerpts) + place][: caps[place]][1:]
            rows.append(
                {
                    "part": "excerpts",
                    "index": excerpt.index,
                    "prompt": excerpt.prompt,
                    **({"asked": excerpt.words} if excerpt.reworded else {}),
                    "truth": excerpt.truth,
                    "generation": encoder.decode(mine),
                    "generated_tokens": len(mine),
                    "truth_released": excerpt.truth_released,
                    "generation_released": encoder.decode(released),
                }
            )
        middle = time.perf_counter()
        rows += ask_tasks(model, encoder, questions.tasks, ctx.engine, self.limit)
        end = time.perf_counter()
        seconds = {"scoring": end - middle, "generation": middle - began}
        return Measurement(tuple(rows), seconds, incomplete=worth_another_try(questions.tasks))

    def score(
        self, unlearned: Measurement, original: Measurement | None, retained: Measurement | None
    ) -> Iterator[Score]:
        return scores(unlearned, retained)


def _prompts(words: Sequence[str], encoder: Encoder) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids of prompts in the model's prompt format, in either edition."""
    pair = PROMPTS.get(encoder.style.name)
    if pair:
        own = encoder.text_ids([pair.before + text + pair.after + pair.tag for text in words])
        return list(
            zip(own, encoder.text_ids([pair.before + text + pair.released_after for text in words]), strict=True)
        )
    if encoder.style.name == "chat":
        own = encoder.prompts([Example(place, text, "") for place, text in enumerate(words)])
    else:
        own = encoder.text_ids(words)
    return list(zip(own, own, strict=True))


def _tasks(task_set: str) -> dict[str, Any]:
    if task_set == "none":
        return {}
    if task_set == "local":
        return local_tasks(files("unlearnbench.benchmarks.hp").joinpath("tasks"))
    names = (PERPLEXITY["hub"], *ACCURACY["hub", "as-released"])
    return hub_tasks(FOLDERS, names)


def _excerpts_of(released: Sequence[Row]) -> list[str]:
    """The distinct passages behind the released rows, which repeat each in several wordings."""
    passages = {row["response"]: row["prompt"].partition(": ")[2] + " " + row["response"] for row in released}
    return list(passages.values())


def _corpus(tables: Tables) -> Iterator[str]:
    """All texts, for the vocabulary of a model from scratch."""
    for rows in tables.values():
        for row in rows:
            yield from row.values()
