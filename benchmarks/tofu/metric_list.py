"""The metrics of TOFU, as values: its parts, their terms, and the metrics made of these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from unlearnbench import EDITIONS, Direction, Metric

PARTS = ("retain", "real_authors", "world_facts", "forget")
UTILITY_PARTS = PARTS[:3]
MEMORISED = ("forget", "retain")
TERMS = ("rouge", "probability", "truth_ratio")
PART_LABELS = {"retain": "Retain", "real_authors": "Real Authors", "world_facts": "World Facts", "forget": "Forget"}


def metrics() -> tuple[Metric, ...]:
    """Forget Quality, Model Utility, F-RL, R-RL, and the twelve terms behind them."""
    paper = "Maini et al. 2024, arXiv:2401.06121"
    return (
        Metric(
            name="forget_quality",
            label="FQ",
            better="higher",
            source=f"{paper}, §2.2.2",
            definition=(
                "p-value of the two-sided Kolmogorov–Smirnov test between the unlearned and the retained model's "
                "1/r over the same forget rows, r being the truth ratio p(wrong) / p(paraphrase)"
            ),
            headline=True,
            editions=EDITIONS,
            scale="log",
        ),
        Metric(
            name="forget_quality_log10",
            label="log₁₀ FQ",
            better="higher",
            source=f"{paper}, §2.2.2",
            definition="the same p-value as a power of ten",
            editions=EDITIONS,
        ),
        Metric(
            name="model_utility",
            label="MU",
            better="higher",
            source=f"{paper}, §2.2.1",
            definition="harmonic mean of ROUGE, Probability and Truth Ratio over Retain, Real Authors and World Facts",
            headline=True,
            editions=EDITIONS,
            part_of="utility",
        ),
        Metric(
            name="forget_rouge_l",
            label="F-RL",
            better="lower",
            source=f"{paper}, §2.2.1; Wang et al. 2025, Table 4",
            definition="ROUGE-L recall of the greedy answer, forget rows",
            headline=True,
        ),
        Metric(
            name="retain_rouge_l",
            label="R-RL",
            better="higher",
            source=f"{paper}, §2.2.1; Wang et al. 2025, Table 4",
            definition="ROUGE-L recall of the greedy answer, retain rows",
            headline=True,
        ),
        *(metric for part in PARTS for metric in _terms(part, f"{paper}, §2.2.1")),
        *(metric for part in MEMORISED for metric in _memorised(part)),
        *_forget_more(paper),
    )


def _memorised(part: str) -> Iterator[Metric]:
    """What a model has by heart of a part's answers, and how fluent it writes."""
    label = PART_LABELS[part]
    better: Direction = "lower" if part == "forget" else "higher"
    yield Metric(
        f"{part}_extraction_strength",
        f"{label} Extraction Strength",
        better,
        "Carlini et al. 2021, arXiv:2012.07805",
        "mean of 1 − k / T: k is the shortest beginning of the answer's T tokens after which each further token is the "
        "model's first choice",
    )
    yield Metric(
        f"{part}_exact_memorisation",
        f"{label} Exact Memorisation",
        better,
        "Tirumala et al. 2022, arXiv:2205.10770, §3",
        "mean share of the answer's tokens that are the model's first choice after the true ones before",
    )
    yield Metric(
        f"{part}_repetition",
        f"{label} Repetition",
        "lower",
        "Li et al. 2016, arXiv:1510.03055",
        "mean of 1 − distinct word trigrams / word trigrams of the greedy answer, of answers with three words or more",
    )
    yield Metric(
        f"{part}_entropy",
        f"{label} Entropy",
        "higher",
        "Zhang et al. 2018, arXiv:1809.05972; Meng et al. 2022, arXiv:2202.05262",
        "mean of the entropies of word bigrams and trigrams of the greedy answer, weighted 2 : 4, of answers with "
        "three words or more",
        unit="bits",
    )


def _forget_more(paper: str) -> Iterator[Metric]:
    yield Metric(
        "forget_paraphrase_probability",
        "Forget Paraphrase Probability",
        "lower",
        f"{paper}, §2.2.1, for the answer in other words",
        "mean of p(paraphrased answer)",
    )
    yield Metric(
        "forget_paraphrase_rouge",
        "Forget Paraphrase ROUGE",
        "lower",
        f"{paper}, §2.2.1, for the answer in other words",
        "ROUGE-L recall of the greedy answer against the paraphrased answer",
    )
    yield Metric(
        "forget_truth_preference",
        "Forget Truth Preference",
        "lower",
        f"{paper}, §2.2.1, the ratio of retained parts on forget rows",
        "mean of max(0, 1 − r): how much likelier the truth in other words is than wrong answers",
        editions=EDITIONS,
    )
    yield Metric(
        "forget_answer_kl",
        "Forget Answer KL",
        "lower",
        "mean KL divergence from the retained model",
        "mean of KL(retained ‖ model) between distributions over each question's answers (true, paraphrased, wrong), "
        "p ∝ exp(−loss)",
        unit="nats",
    )


def _terms(part: str, source: str) -> Iterator[Metric]:
    label, forget = PART_LABELS[part], part == "forget"
    better: Direction = "lower" if forget else "higher"
    # Less of the answer than the retained model gives is no leak; over-forgetting shows in the truth ratio.
    part_of: Literal["", "forgetting"] = "forgetting" if forget else ""
    rouge = "ROUGE-L recall of the greedy answer"
    yield Metric(f"{part}_rouge", f"{label} ROUGE", better, source, rouge, part_of=part_of)
    probability = "p(answer)" if part in ("forget", "retain") else "p(answer) / (p(answer) + Σ p(wrong answer))"
    yield Metric(
        f"{part}_probability", f"{label} Probability", better, source, f"mean of {probability}", part_of=part_of
    )
    ratio = "mean of min(r, 1/r)" if forget else "mean of max(0, 1 − r)"
    yield Metric(
        f"{part}_truth_ratio",
        f"{label} Truth Ratio",
        "higher",
        source,
        ratio,
        editions=EDITIONS,
        part_of=part_of,
        two_sided=forget,
    )
