"""How much of a text a model has by heart, how it scores texts for membership, and how fluent it writes.

Pure functions of what one scoring pass gives of each token, and of texts.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from .statistics import mean


def extraction_strength(suffix: int, tokens: int) -> float:
    """The share of an answer that the model writes itself once it is given the rest; NaN without tokens.

    1 − k / T, where k is the shortest beginning after which every further token is the model's own first choice
    (Carlini et al. 2021, arXiv:2012.07805, as a share of the answer). Nothing written gives 0, its last token 1 / T.

    Args:
        suffix: tokens at the end each of which is the first choice after those before it, T − k.
    """
    return suffix / tokens if tokens else math.nan


def exact_memorisation(greedy: int, tokens: int) -> float:
    """The share of tokens that are the model's first choice after the true ones before; NaN without tokens.

    Source: Tirumala et al. 2022, arXiv:2205.10770, §3.
    """
    return greedy / tokens if tokens else math.nan


def min_k_plus_plus(
    logprobs: Sequence[float], means: Sequence[float], variances: Sequence[float], share: float
) -> float | None:
    """Minus the mean of the ``share`` smallest (log p − μ) / σ of a text's tokens; None where the share is empty.

    μ and σ are of log-probabilities over the vocabulary, by the model's own probabilities (Zhang et al. 2024,
    arXiv:2404.02936, eq. 3). A position whose distribution has no spread counts 0.
    """
    count = int(share * len(logprobs))
    if not count:
        return None
    standard = [
        (logp - middle) / math.sqrt(variance) if variance > 0 else 0.0
        for logp, middle, variance in zip(logprobs, means, variances, strict=True)
    ]
    return math.nan if any(map(math.isnan, standard)) else -mean(sorted(standard)[:count])


def zlib_ratio(nll: float, text: str) -> float:
    """A text's negative log-likelihood in nats for each byte that zlib makes of it (Carlini et al. 2021, §5.2)."""
    return nll / len(zlib.compress(text.encode("utf-8")))


def repetition(text: str, size: int = 3) -> float:
    """The share of word n-grams that an earlier one of the text repeats; NaN for fewer than ``size`` words.

    1 − distinct-n (Li et al. 2016, arXiv:1510.03055).
    """
    grams = _grams(text, size)
    return 1 - len(set(grams)) / len(grams) if grams else math.nan


def ngram_entropy(text: str) -> float:
    """The mean of the entropies of a text's word bigrams and trigrams, in bits, weighted 2 : 4; NaN for fewer words.

    Source: Zhang et al. 2018, arXiv:1809.05972, with the weights of Meng et al. 2022, arXiv:2202.05262, appendix.
    """
    entropies = []
    for size, weight in ((2, 2 / 3), (3, 4 / 3)):
        counts = np.asarray(list(Counter(_grams(text, size)).values()), dtype=float)
        if not len(counts):
            return math.nan
        chances = counts / counts.sum()
        entropies.append(weight * float(-(chances * np.log2(chances)).sum()))
    return sum(entropies) / len(entropies)


FLUENCY: tuple[tuple[str, Callable[[str], float], tuple[float, float] | None], ...] = (
    ("repetition", repetition, (0.0, 1.0)),
    ("entropy", ngram_entropy, None),
)
"""How repetitive, and how varied, generated texts are: name, measure of one that ``speaks``, and bounds."""


def speaks(text: str) -> bool:
    """Whether a text is long enough for what ``FLUENCY`` measures: three words."""
    return len(text.split()) >= 3


def answer_divergence(losses: Sequence[float], reference: Sequence[float]) -> float:
    """KL(reference ‖ model) in nats between distributions over the same answers, p ∝ exp(−loss); NaN for a NaN loss.

    Args:
        losses, reference: nats per token of each answer, by the model and by the reference model.
    """
    mine, theirs = (_normalised(values) for values in (losses, reference))
    return float(sum(math.exp(p) * (p - q) for p, q in zip(theirs, mine, strict=True) if p > -math.inf))


def _normalised(losses: Sequence[float]) -> list[float]:
    values = -np.asarray(losses, dtype=float)
    top = values.max()
    return list(values - (top + np.log(np.exp(values - top).sum())))


def _grams(text: str, size: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]
