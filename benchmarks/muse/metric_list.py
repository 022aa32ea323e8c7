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
    )
