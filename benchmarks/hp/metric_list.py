"""The metrics of forgetting a book, as values."""

from __future__ import annotations

from unlearnbench import EDITIONS, Metric

SOURCE = "Wang et al. 2025, arXiv:2410.11143, §4.1"


def metrics() -> tuple[Metric, ...]:
    """FQ Gap with its two overlaps, perplexity, and zero-shot accuracy."""
    return (
        Metric(
            name="fq_gap",
            label="FQ Gap",
            better="lower",
            source=SOURCE,
            definition=(
                "|BLEU − BLEU of the retained model| + |ROUGE-L − ROUGE-L of the retained model|, on 0–100 and 0–1"
            ),
            headline=True,
            editions=EDITIONS,
        ),
        Metric(
            name="ppl",
            label="PPL",
            better="lower",
            source=SOURCE,
            definition=(
                "word perplexity of the perplexity task (Wikitext-2 test; local_prose with generated data), lm-eval"
            ),
            headline=True,
            part_of="utility",
        ),
        Metric(
            name="avg_acc",
            label="Avg. Acc.",
            better="higher",
            source=SOURCE,
            definition=(
                "mean zero-shot accuracy over lm-eval tasks: the nine of the paper with TruthfulQA as mc2; "
                "as released ten, mc1 and mc2 apart; local tasks with generated data"
            ),
            headline=True,
            editions=EDITIONS,
            part_of="utility",
        ),
        Metric(
            name="bleu",
            label="BLEU",
            better="target",
            source=SOURCE,
            definition="BLEU (13a tokens, smoothing exp) of the greedy continuation of an excerpt, mean, 0–100",
            target="retained",
            editions=EDITIONS,
            part_of="forgetting",
            span=100.0,
            two_sided=True,
        ),
        Metric(
            name="rouge_l",
            label="ROUGE-L",
            better="target",
            source=SOURCE,
            definition="ROUGE-L recall of the same continuation, stemmed, mean, 0–1",
            target="retained",
            editions=EDITIONS,
            part_of="forgetting",
            two_sided=True,
        ),
        Metric(
            name="repetition",
            label="Repetition",
            better="lower",
            source="Li et al. 2016, arXiv:1510.03055",
            definition="mean of 1 − distinct word trigrams / word trigrams of the continuation of an excerpt",
        ),
        Metric(
            name="entropy",
            label="Entropy",
            better="higher",
            source="Zhang et al. 2018, arXiv:1809.05972; Meng et al. 2022, arXiv:2202.05262",
            definition="mean of the entropies of word bigrams and trigrams of the continuations, weighted 2 : 4",
            unit="bits",
        ),
    )
