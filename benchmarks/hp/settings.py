"""Settings of the benchmark that forgets a book. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench import hyperparameter

TASK_SETS = ("auto", "hub", "local", "none")


@dataclass(frozen=True)
class Settings:
    """The parameters of the benchmark; its class uses them."""

    limit: int = hyperparameter(0, "score the first rows of each part; 0 scores all", low=0)
    max_new_tokens: int = hyperparameter(300, "cap on a continuation", low=1)
    released_tokens: int = hyperparameter(600, "as-released: tokens of prompt and continuation together", low=2)
    tasks: str = hyperparameter(
        "auto", "perplexity and accuracy by lm-eval's hub tasks, or local ones", choices=TASK_SETS
    )
    chunks: int = hyperparameter(400, "chunks of the book to forget, and of the other text to retain", low=1)
    chunk_tokens: int = hyperparameter(512, "tokens of a chunk at most", low=8)
    excerpts: int = hyperparameter(300, "excerpts of the forgotten chunks that are asked", low=1)
    prefix_words: int = hyperparameter(200, "words of an excerpt's prompt", low=1)
    response_words: int = hyperparameter(200, "words of its continuation", low=1)
