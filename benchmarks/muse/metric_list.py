"""The metrics of MUSE-News, as values."""

from __future__ import annotations

from unlearnbench import Metric

SOURCE = "Shi et al. 2024, arXiv:2407.06460, §3"
AT_MOST_RETAINED = "at most the retained model's value"


def metrics() -> tuple[Metric, ...]:
    """VerbMem and KnowMem on the forget set, KnowMem on the retain set, PrivLeak, and the AUC behind it."""
    knowledge = "ROUGE-L F of greedy answers (32 tokens) after ten examples"
    return (
        Metric("verbmem_f", "VerbMem D_f", "lower", SOURCE,
               "ROUGE-L F of the greedy continuation (128 tokens) of forget texts, × 100",
               headline=True, criterion=AT_MOST_RETAINED),
        Metric("knowmem_f", "KnowMem D_f", "lower", SOURCE, f"{knowledge}, questions on forget texts, × 100",
               headline=True, criterion=AT_MOST_RETAINED, axis="forget"),
        Metric("knowmem_r", "KnowMem D_r", "higher", SOURCE, f"{knowledge}, questions on retain texts, × 100",
               headline=True, criterion="above 0", axis="utility"),
        Metric("privleak", "PrivLeak", "target", SOURCE,
               "(AUC − AUC of the retained model) / AUC of the retained model × 100; negative still leaks, "
               "positive is over-unlearned", unit="%", target=0.0, headline=True),
        Metric("auc", "AUC forget, holdout", "target", SOURCE,
               "P(score of a holdout text < score of a forget text) + ½ P(equal), the score being minus the mean of "
               "the 40 % least likely tokens' log-probabilities (Min-40 %; Shi et al. 2023, arXiv:2310.16789)",
               target="retained"),
    )  # fmt: skip
