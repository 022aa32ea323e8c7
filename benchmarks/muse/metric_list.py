"""The metrics of MUSE-News, as values."""

from __future__ import annotations

from unlearnbench import Metric

SOURCE = "Shi et al. 2024, arXiv:2407.06460, §3"
AT_MOST_RETAINED = "at most the retained model's value"


def metrics() -> tuple[Metric, ...]:
    """VerbMem and KnowMem on the forget set, KnowMem on the retain set, PrivLeak, and the AUC behind it."""
    knowledge = "ROUGE-L F of greedy answers (32 tokens) after ten examples"
    return (
        Metric(
            name="verbmem_f",
            label="VerbMem D_f",
            better="lower",
            source=SOURCE,
            definition="ROUGE-L F of the greedy continuation (128 tokens) of forget texts, × 100",
            headline=True,
            criterion=AT_MOST_RETAINED,
            part_of="forgetting",
            span=100.0,
        ),
        Metric(
            name="knowmem_f",
            label="KnowMem D_f",
            better="lower",
            source=SOURCE,
            definition=f"{knowledge}, questions on forget texts, × 100",
            headline=True,
            criterion=AT_MOST_RETAINED,
            part_of="forgetting",
            span=100.0,
        ),
        Metric(
            name="knowmem_r",
            label="KnowMem D_r",
            better="higher",
            source=SOURCE,
            definition=f"{knowledge}, questions on retain texts, × 100",
            headline=True,
            criterion="above 0",
            part_of="utility",
        ),
        Metric(
            name="privleak",
            label="PrivLeak",
            better="target",
            source=SOURCE,
            definition=(
                "(AUC − AUC of the retained model) / AUC of the retained model × 100; negative still leaks, "
                "positive is over-unlearned"
            ),
            unit="%",
            target=0.0,
            headline=True,
        ),
        Metric(
            name="auc",
            label="AUC forget, holdout",
            better="target",
            source=SOURCE,
            definition=(
                "P(score of a holdout text < score of a forget text) + ½ P(equal), the score being minus the mean "
                "of the 40 % least likely tokens' log-probabilities (Min-40 %; Shi et al. 2023, arXiv:2310.16789)"
            ),
            target="retained",
            part_of="forgetting",
            two_sided=True,
        ),
        *(_attack(*attack) for attack in MEMBERSHIP),
        Metric(
            name="forget_extraction_strength",
            label="Forget Extraction Strength",
            better="lower",
            source="Carlini et al. 2021, arXiv:2012.07805",
            definition=(
                "mean over forget texts of 1 − k / T: k is the shortest beginning of a text's T tokens after which "
                "each further token is the model's first choice"
            ),
        ),
        Metric(
            name="forget_exact_memorisation",
            label="Forget Exact Memorisation",
            better="lower",
            source="Tirumala et al. 2022, arXiv:2205.10770, §3",
            definition="mean share of forget texts' tokens that are the model's first choice after those before",
        ),
        Metric(
            name="verbmem_f_repetition",
            label="VerbMem Repetition",
            better="lower",
            source="Li et al. 2016, arXiv:1510.03055",
            definition="mean of 1 − distinct word trigrams / word trigrams of the continuation of forget texts",
        ),
        Metric(
            name="verbmem_f_entropy",
            label="VerbMem Entropy",
            better="higher",
            source="Zhang et al. 2018, arXiv:1809.05972; Meng et al. 2022, arXiv:2202.05262",
            definition="mean of the entropies of word bigrams and trigrams of the continuations, weighted 2 : 4",
            unit="bits",
        ),
    )


# The field of a text's row, the attack's name, its source, and its score, larger for texts that were not seen.
MEMBERSHIP = (
    ("loss", "loss", "Yeom et al. 2018, arXiv:1709.01604", "the loss in nats per token"),
    ("zlib", "zlib", "Carlini et al. 2021, arXiv:2012.07805, §5.2", "nats of the text per byte of its zlib"),
    (
        "min40pp",
        "Min-K++",
        "Zhang et al. 2024, arXiv:2404.02936, eq. 3",
        "minus the mean of the 40 % least (log p − μ) / σ, μ and σ over the vocabulary by the model's probabilities",
    ),
    (
        "gradient_norm",
        "gradient norm",
        "Wang et al. 2024, arXiv:2402.17012, for a member's small gradient",
        "the norm of the gradient of the loss by all weights",
    ),
    (
        "reference",
        "reference",
        "Carlini et al. 2021, arXiv:2012.07805, §5.2, with the retained model as the reference",
        "the loss minus the retained model's loss",
    ),
)


def _attack(field: str, label: str, source: str, score: str) -> Metric:
    return Metric(
        name=f"auc_{field}",
        label=f"AUC {label}",
        better="target",
        source=source,
        definition=f"P(score of a holdout text < score of a forget text) + ½ P(equal), the score being {score}",
        target="retained",
    )
