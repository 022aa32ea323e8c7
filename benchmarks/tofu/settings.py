"""Settings of TOFU. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench import hyperparameter


@dataclass(frozen=True)
class Settings:
    """The parameters of the benchmark; its class uses them."""

    limit: int = hyperparameter(0, "score the first rows of each part; 0 scores all", low=0)
    max_new_tokens: int = hyperparameter(200, "cap on a generated answer", low=1)
    retain_limit: int = hyperparameter(0, "train on the first retain rows only; 0 takes all", low=0)
