"""Overlap of texts: ROUGE-L on the tokens of Google's rouge-score, and sacrebleu's BLEU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache

from rouge_score import tokenizers
from sacrebleu.metrics.bleu import BLEU

_tokenizer = cache(tokenizers.DefaultTokenizer)


@lru_cache(maxsize=65536)
def _words(text: str, stemmed: bool) -> tuple[str, ...]:
    """A text in the tokens of rouge-score; the same ground truths come back for every model."""
    return tuple(_tokenizer(stemmed).tokenize(text))


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, in memory of one row: a bit for every word of ``one``.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited". The table of rouge-score itself takes 4 GiB for
    two texts of 24,000 words.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(one)) - 1
    row = whole
    for word in other:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & whole
    return len(one) - row.bit_count()


def rouge_l_recall(truth: str, generation: str) -> float:
    """Longest common subsequence over the truth's length, Porter-stemmed.

    NaN where the truth has no word of [a-z0-9], the only ones that ROUGE knows; 0 where the generation has none.

    Source: Lin 2004; as in TOFU (arXiv:2401.06121, §2.2.1), ``rouge_score`` with ``use_stemmer=True``.
    """
    words = _words(truth, True)
    return common_subsequence(words, _words(generation, True)) / len(words) if words else math.nan


def rouge_l_f(truth: str, generation: str) -> float:
    """Harmonic mean of precision and recall of the longest common subsequence, without stemming.

    NaN where the truth has no word of [a-z0-9], 0 where the generation has none.

    Source: Lin 2004; as in MUSE (arXiv:2407.06460, §3), ``rouge_score`` with ``use_stemmer=False``.
    """
    words, written = _words(truth, False), _words(generation, False)
    if not words or not written:
        return 0.0 if words else math.nan
    common = common_subsequence(words, written)
    precision, recall = common / len(written), common / len(words)
    return 2 * precision * recall / (precision + recall) if common else 0.0


NO_WORDS = "truths have no word of [a-z0-9], and ROUGE compares no others"
"""Why overlap with some truths is not defined."""


# Forced: sacrebleu does not warn of texts that look as if they were in tokens already.
_BLEU = BLEU(tokenize="13a", smooth_method="exp", max_ngram_order=4, force=True)


def bleu(truth: str, generation: str) -> float:
    """BLEU of one text against one reference, 0 to 100, as ``sacrebleu.corpus_bleu`` with one sentence.

    Orders 1 to 4 on mteval-13a tokens; the k-th order without a match counts as 1 / (2^k × n-grams). A generation of
    fewer than four tokens, or without any matching word, scores 0; a truth without any token has no score (NaN).

    Source: Papineni et al. 2002; smoothing "exp" (Chen and Cherry 2014, method 3).
    """
    if not _BLEU.tokenizer(truth.rstrip()):
        return math.nan
    # sacrebleu rounds equal texts to a little above 100.
    return min(float(_BLEU.corpus_score([generation], [[truth]]).score), 100.0)
