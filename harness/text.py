"""Overlap of texts. ROUGE comes from Google's rouge-score; this adds only its tokenizer's memory."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from rouge_score import rouge_scorer, tokenizers


class _CachingTokenizer(tokenizers.Tokenizer):  # type: ignore[misc]
    """rouge-score's own tokenizer; the same ground truths come back for every model."""

    def __init__(self, use_stemmer: bool) -> None:
        self._remembered = lru_cache(maxsize=65536)(tokenizers.DefaultTokenizer(use_stemmer).tokenize)

    def tokenize(self, text: str) -> list[str]:
        found: list[str] = self._remembered(text)
        return found


@cache
def _scorer(use_stemmer: bool) -> Any:
    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_CachingTokenizer(use_stemmer))


def rouge_l_recall(truth: str, generation: str) -> float:
    """Longest common subsequence over the truth's length, Porter-stemmed; 0 where the truth has no [a-z0-9].

    Source: Lin 2004; as in TOFU (arXiv:2401.06121, §2.2.1), ``rouge_score`` with ``use_stemmer=True``.
    """
    return float(_scorer(True).score(truth, generation)["rougeL"].recall)


def rouge_l_f(truth: str, generation: str) -> float:
    """Harmonic mean of precision and recall of the longest common subsequence, without stemming.

    Source: Lin 2004; as in MUSE (arXiv:2407.06460, §3), ``rouge_score`` with ``use_stemmer=False``. A text without
    [a-z0-9] scores 0.
    """
    return float(_scorer(False).score(truth, generation)["rougeL"].fmeasure)
