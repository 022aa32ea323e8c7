"""How a question is put to a model: the prompt formats of the papers, and chat templates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import ModelError, UnknownName


@dataclass(frozen=True)
class PromptFormat:
    """Text around a question, and text before its answer (which then belongs to the answer's tokens)."""

    name: str
    before: str
    after: str
    answer: str = ""
    source: str = ""

    def prompt(self, question: str, tokenizer: Any) -> str:
        """The text a model continues."""
        return f"{self.before}{question}{self.after}"

    @property
    def special_tokens(self) -> bool:
        """Whether the tokenizer adds its own special tokens (BOS) in front."""
        return True


@dataclass(frozen=True)
class ChatFormat(PromptFormat):
    """The tokenizer's own chat template with one user turn; it writes its special tokens itself."""

    def prompt(self, question: str, tokenizer: Any) -> str:
        turn = [{"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))

    @property
    def special_tokens(self) -> bool:
        return False


FORMATS = {
    format.name: format
    for format in (
        PromptFormat("plain", "", "\n", source="question, newline, answer"),
        PromptFormat("llama2", "[INST] ", " [/INST]", source="TOFU, Llama-2 chat"),
        PromptFormat("question-answer", "Question: ", "\n", "Answer: ", "TOFU, Phi-1.5; FLAT, OPT"),
        ChatFormat("chat", "", "", source="the tokenizer's chat template"),
    )
}


def prompt_format(name: str, tokenizer: Any) -> PromptFormat:
    """The format called ``name``; ``auto`` is the chat template where there is one, else question-answer."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if name == "auto":
        return FORMATS["chat" if has_template else "question-answer"]
    if name not in FORMATS:
        raise UnknownName("prompt format", name, [*FORMATS, "auto"])
    if name == "chat" and not has_template:
        raise ModelError("prompt format 'chat' needs a tokenizer with a chat template; choose another prompt_format")
    return FORMATS[name]
