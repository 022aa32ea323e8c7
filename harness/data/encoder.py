"""Turns text into token ids, and decides which tokens belong to the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..domain import Example
from ..errors import ModelError, UsageError
from .prompts import ANSWER, QUESTION, PromptFormat, named

# Tokens reserved for another answer to half a chunk, beyond the chunk's own length.
ANSWER_ROOM = 64


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a prompt and its answer; the answer (EOS included) begins at ``start``."""

    ids: tuple[int, ...]
    start: int

    @property
    def answer_tokens(self) -> int:
        return len(self.ids) - max(self.start, 1)

    @property
    def scored_ids(self) -> tuple[int, ...]:
        """The answer's tokens except one at position 0, which nothing predicts."""
        return self.ids[max(self.start, 1) :]

    def begun(self, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
        """The answer's first ``tokens`` ids if ``prompt``, tokenised alone, precedes them; empty otherwise."""
        return self.ids[self.start : self.start + tokens] if self.ids[: self.start] == prompt else ()


class Encoder:
    """Turns examples into token ids in one prompt format.

    The encoder alone adds special tokens: before a text those that the tokenizer puts there (a BOS), after an answer
    one ``end``. The answer starts at the length of the prompt tokenised alone, as in the TOFU release. The encoder
    truncates nothing: a sequence longer than ``context`` tokens is an error.

    Args:
        ends: tokens beside the tokenizer's EOS with which the model ends a text (``generation_config``).
        notes: what the loader had to make up.
        vocabulary: number of tokens that the model has embeddings of.

    Raises:
        ModelError: the tokenizer lacks what the protocol needs; names it.
    """

    def __init__(
        self,
        tokenizer: Any,
        style: PromptFormat,
        context: int,
        notes: Sequence[str] = (),
        ends: Sequence[int] = (),
        vocabulary: int = 2**31,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.style = style
        self.context = context
        self.notes = tuple(notes)
        self.lead = _leading_tokens(tokenizer)
        """Tokens in front of every text that is not a chat, (BOS) or none."""
        self.ends = tuple(dict.fromkeys((int(tokenizer.eos_token_id), *ends)))
        """Tokens that end a generation."""
        self.end = self._end()
        """The token after an answer, scored with it: the EOS, or the one with which a chat template ends a turn."""
        self._try_out()

    def _end(self) -> int:
        after = self.tokenizer(self.style.after_answer(self.tokenizer), add_special_tokens=False)["input_ids"]
        return int(after[0]) if after and after[0] in self.ends else self.ends[0]

    def _try_out(self) -> None:
        """Raise ModelError for a tokenizer that does not keep prompts, answers and their special tokens apart."""
        example = Example(0, QUESTION, ANSWER)
        (prompt,), (row,) = self.prompts([example]), self._questions([example])
        answer, bos = row.ids[row.start :], self.tokenizer.bos_token_id
        faults = {
            "tokenises a prompt otherwise alone than before its answer": row.ids[: row.start] != prompt,
            "gives a prompt no tokens": not prompt,
            "gives an answer no tokens": len(answer) < 2,
            # Every turn of a chat may begin with the BOS, as SmolLM2's do; only a doubled first token is a fault.
            "begins a prompt with its BOS twice": bos not in self.ends and prompt[:2] == (bos, bos),
            "puts an end token into an answer": any(token in self.ends for token in answer[:-1]),
        }
        for fault, present in faults.items():
            if present:
                raise ModelError(
                    f"the tokenizer of {named(self.tokenizer)} {fault} (prompt format {self.style.name}); mend its "
                    "tokenizer.json, or set another prompt_format"
                )

    def encode(self, examples: Sequence[Example]) -> list[EncodedRow]:
        """One ``EncodedRow`` per example. Raises UsageError naming a row that is longer than the context."""
        questions = iter(self._questions([example for example in examples if not example.prompt_ids]))
        rows = [self._continued(example) if example.prompt_ids else next(questions) for example in examples]
        for example, row in zip(examples, rows, strict=True):
            if len(row.ids) > self.context:
                raise UsageError(
                    f"row {example.index} ({example.prompt[:40]!r}) has {len(row.ids)} tokens and the model's "
                    f"context is {self.context}; use a model with a longer context or remove the row"
                )
        return rows

    def _questions(self, examples: Sequence[Example]) -> list[EncodedRow]:
        if not examples:
            return []
        prompts = [self.style.prompt(example.prompt, self.tokenizer) for example in examples]
        texts = [prompt + self.style.answer + example.answer for prompt, example in zip(prompts, examples, strict=True)]
        starts = [len(ids) for ids in self._tokenise(prompts)]
        return [EncodedRow((*ids, self.end), start) for ids, start in zip(self._tokenise(texts), starts, strict=True)]

    def _continued(self, example: Example) -> EncodedRow:
        """Encode a chunk with every token scored, or its first half with another answer on a new line."""
        if example.answer_ids:
            return EncodedRow(example.prompt_ids + example.answer_ids, 0)
        answer = self.tokenizer("\n" + example.answer, add_special_tokens=False)["input_ids"]
        return EncodedRow((*example.prompt_ids, *answer, self.tokenizer.eos_token_id), len(example.prompt_ids))

    def text_ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of plain texts without a prompt format, with a BOS where the tokenizer writes one.

        Raises:
            UsageError: a text is longer than the model's context.
        """
        rows = [self.lead + ids for ids in self._bare(texts)]
        for number, (text, ids) in enumerate(zip(texts, rows, strict=True)):
            if len(ids) > self.context:
                raise UsageError(
                    f"text {number} ({text[:40]!r}) has {len(ids)} tokens; the model's context is {self.context}: use "
                    "a model with a longer one"
                )
        return rows

    def new_tokens(self, prompts: Iterable[Sequence[int]], wanted: int, notes: list[str]) -> int:
        """The number of tokens that may follow every prompt: ``wanted``, or as many as fit after the longest.

        Args:
            notes: receives a line where fewer than ``wanted`` fit.

        Raises:
            UsageError: the longest prompt leaves no room.
        """
        longest = max(map(len, prompts), default=0)
        room = self.context - longest
        if room < 1:
            raise UsageError(
                f"a prompt has {longest} tokens, which fill the model's context of {self.context}; use a model with a "
                "longer one"
            )
        if room < wanted:
            notes.append(f"{room} new tokens at most, for which the model has positions, instead of {wanted}")
        return min(wanted, room)

    def chunk_size(self, tokens: int) -> int:
        """``tokens``, or fewer, so that the context has room for another answer to half a chunk."""
        return min(tokens, self.context - ANSWER_ROOM)

    def chunks(self, texts: Iterable[str], tokens: int, separator: str = "\n\n") -> list[Example]:
        """Join the texts into one stream and cut it into chunks of ``tokens`` tokens, a BOS included.

        The last chunk may be shorter; one of a single token is dropped. The first half of a chunk is its prompt.
        """
        stream = self._bare([separator.join(texts)])[0]
        length = tokens - len(self.lead)
        examples = []
        for index, begin in enumerate(range(0, len(stream), length)):
            piece = stream[begin : begin + length]
            half = max(1, len(piece) // 2)
            if len(piece) > 1:
                prompt, answer = piece[:half], piece[half:]
                example = Example(index, self.decode(prompt), self.decode(answer), self.lead + prompt, answer)
                examples.append(example)
        return examples

    @property
    def shown_prompt(self) -> str:
        """The prompt of a sample question as the model reads it, special tokens included."""
        return str(self.tokenizer.decode(self.prompts([Example(0, QUESTION, "")])[0]))

    def prompts(self, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        """Token ids of the prompts alone, for generation."""
        return self._tokenise([self.style.prompt(example.prompt, self.tokenizer) for example in examples])

    def decode(self, ids: Sequence[int]) -> str:
        """Generated tokens as text, special tokens skipped."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _tokenise(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        lead = self.lead if self.style.special_tokens else ()
        return [lead + ids for ids in self._bare(texts)]

    def _bare(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
        rows = [tuple(ids) for ids in encoded["input_ids"]]
        highest = max((max(ids) for ids in rows if ids), default=0)
        if highest >= self.vocabulary:
            raise ModelError(
                f"the tokenizer of {named(self.tokenizer)} writes token {highest} "
                f"({self.tokenizer.convert_ids_to_tokens(highest)!r}), and the model has embeddings of "
                f"{self.vocabulary} tokens: they do not belong together"
            )
        return rows


def _leading_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before a text.

    Raises:
        ModelError: the tokenizer puts a token there twice, or changes the text's own tokens where it adds special ones.
    """
    bare, whole = (tuple(tokenizer(QUESTION, add_special_tokens=add)["input_ids"]) for add in (False, True))
    places = range(len(whole) - len(bare) + 1)
    at = next((place for place in places if whole[place : place + len(bare)] == bare), None)
    lead = whole[:at]
    if at is None or len(set(lead)) < len(lead):
        fault = "changes a text's own tokens where it adds special ones" if at is None else f"begins with {lead}"
        raise ModelError(f"the tokenizer of {named(tokenizer)} {fault}; mend its tokenizer.json")
    return lead
