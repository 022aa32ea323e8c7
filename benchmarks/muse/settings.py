"""Settings of MUSE-News. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench import hyperparameter


@dataclass(frozen=True)
class Settings:
    """The parameters of the benchmark; its class uses them."""

    limit: int = hyperparameter(0, "score the first rows of each part; 0 scores all", low=0)
    verbatim_tokens: int = hyperparameter(128, "new tokens of a continuation, and tokens of its truth", low=1)
    answer_tokens: int = hyperparameter(32, "new tokens of an answer", low=1)
    chunk_tokens: int = hyperparameter(2048, "tokens of a training chunk, BOS included", low=8)
    train_limit: int = hyperparameter(0, "train on the first texts of each table only; 0 takes all", low=0)
    gradient_norms: bool = hyperparameter(False, "also read the gradient norm of every text, by a backward pass each")
