"""Prompt formats: those of the papers, and chat templates."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ..errors import ModelError, UnknownName
from ..plugin.specs import TEMPLATE_DATE

# Question, answer and second date with which tokenizers and chat templates are tested.
QUESTION, ANSWER, OTHER_DATE = "Who wrote it?", "Ada wrote it.", "1999-12-31"


@dataclass(frozen=True)
class PromptFormat:
    """Text around a question, and text before its answer, which counts as part of the answer."""

    name: str
    before: str
    after: str
    answer: str = ""
    source: str = ""

    def prompt(self, question: str, tokenizer: Any) -> str:
        """The text a model continues."""
        return f"{self.before}{question}{self.after}"

    def after_answer(self, tokenizer: Any) -> str:
        """The text that the format writes after an answer; empty where the tokenizer's EOS alone ends it."""
        return ""

    @property
    def special_tokens(self) -> bool:
        """Whether the tokenizer's own special tokens (BOS) precede the prompt."""
        return True


@dataclass(frozen=True)
class ChatFormat(PromptFormat):
    """The tokenizer's chat template, which writes its own special tokens.

    A template may write today's date; a fixed date keeps prompts equal from day to day.
    """

    system_prompt: str = ""
    date: str = TEMPLATE_DATE
    enable_thinking: bool = False

    def prompt(self, question: str, tokenizer: Any) -> str:
        return self._rendered(tokenizer, question)

    def after_answer(self, tokenizer: Any) -> str:
        return self._rendered(tokenizer, QUESTION, ANSWER).rpartition(ANSWER)[2]

    def writes_date(self, tokenizer: Any) -> bool:
        """Whether the template writes the date, found by rendering it on two days.

        Raises:
            ModelError: the output depends on the machine's clock although the date is given.
        """
        on_other_day = replace(self, date=OTHER_DATE).prompt(QUESTION, tokenizer)
        here = self.prompt(QUESTION, tokenizer)
        with _clock(OTHER_DATE, _modules_of(tokenizer)):
            elsewhere = self.prompt(QUESTION, tokenizer)
        if here != elsewhere:
            raise ModelError(
                f"the chat template of {named(tokenizer)} writes what the machine's clock says, so that prompts differ "
                "from day to day; choose another prompt_format"
            )
        return here != on_other_day

    @property
    def special_tokens(self) -> bool:
        return False

    def _rendered(self, tokenizer: Any, question: str, answer: str = "") -> str:
        turns = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        turns.append({"role": "user", "content": question})
        if answer:
            turns.append({"role": "assistant", "content": answer})
        day = datetime.fromisoformat(self.date)
        try:
            # A template reads the clock through ``strftime_now`` alone; Llama's looks for ``date_string`` first.
            with _clock(self.date, {"transformers.utils.chat_template_utils"}):
                return str(
                    tokenizer.apply_chat_template(
                        turns,
                        add_generation_prompt=not answer,
                        tokenize=False,
                        date_string=day.strftime("%d %b %Y"),
                        enable_thinking=self.enable_thinking,
                    )
                )
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            remedy = "set system_prompt to an empty text" if self.system_prompt else "choose another prompt_format"
            raise ModelError(
                f"the chat template of {named(tokenizer)} cannot be rendered ({type(error).__name__}: {text}); {remedy}"
            ) from error


def named(tokenizer: Any) -> str:
    """The name of a tokenizer in messages: its folder or hub id, or its class."""
    return repr(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def _modules_of(tokenizer: Any) -> set[str]:
    return {kind.__module__ for kind in type(tokenizer).__mro__ if kind is not object}


@contextmanager
def _clock(date: str, modules: set[str]) -> Iterator[None]:
    """Stop ``datetime`` in these modules at midnight of that day."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.fromisoformat(date).replace(tzinfo=tz)

        @classmethod
        def today(cls) -> datetime:  # type: ignore[override]
            return cls.now()

    asking = [sys.modules[name] for name in modules if isinstance(vars(sys.modules[name]).get("datetime"), type)]
    before = [vars(module)["datetime"] for module in asking]
    try:
        for module in asking:
            vars(module)["datetime"] = Stopped
        yield
    finally:
        for module, original in zip(asking, before, strict=True):
            vars(module)["datetime"] = original


FORMATS = {
    format.name: format
    for format in (
        PromptFormat("plain", "", "\n", source="question, newline, answer"),
        PromptFormat("llama2", "[INST] ", " [/INST]", source="TOFU, Llama-2 chat"),
        PromptFormat("question-answer", "Question: ", "\n", "Answer: ", "TOFU, Phi-1.5; FLAT, OPT"),
        ChatFormat("chat", "", "", source="the tokenizer's chat template"),
    )
}


def prompt_format(name: str, tokenizer: Any, chat: Mapping[str, Any] | None = None) -> PromptFormat:
    """The format called ``name``; ``auto`` is the chat template where there is one, else question-answer.

    Args:
        chat: fields of ``ChatFormat``, used only where the format is the chat template.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if name == "auto":
        name = "chat" if has_template else "question-answer"
    if name not in FORMATS:
        raise UnknownName("prompt format", name, [*FORMATS, "auto"])
    if name == "chat" and not has_template:
        raise ModelError("prompt format 'chat' needs a tokenizer with a chat template; choose another prompt_format")
    return replace(FORMATS[name], **(chat or {})) if name == "chat" else FORMATS[name]
