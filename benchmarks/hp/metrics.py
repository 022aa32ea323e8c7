"""Metrics of a forgotten book as pure functions of rows. Wang et al. 2025, arXiv:2410.11143, §4.1.

Rows of ``excerpts`` hold ``truth`` and ``generation``, and both again in the released evaluation's form (suffix
``_released``). Rows of an lm-eval task hold ``loglikelihoods`` of choices and the indices of ``right`` choices, or the
``loglikelihood`` of a text and its number of ``words``, in nats. A row with ``missing`` says why a task has no rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unlearnbench import (
    EDITIONS,
    FLUENCY,
    LEVEL,
    NO_WORDS,
    RESAMPLES,
    DataError,
    Floats,
    Measurement,
    Score,
    bleu,
    bootstrap,
    bootstrap_draws,
    bounded_means,
    expanded_interval,
    expanded_share,
    mean,
    mean_score,
    percentile_interval,
    resampled_means,
    rouge_l_recall,
    speaks,
)

Row = Mapping[str, Any]

PERPLEXITY = {"hub": "wikitext", "local": "local_prose"}
EIGHT = ("boolq", "rte", "hellaswag", "winogrande", "arc_challenge", "arc_easy", "openbookqa", "piqa")
# The only task whose accuracy is a share of probability, not of documents.
MC2 = "truthfulqa_mc2"
ACCURACY = {
    ("hub", "paper"): (*EIGHT, MC2),
    ("hub", "as-released"): (*EIGHT, "truthfulqa_mc1", MC2),
    ("local", "paper"): ("local_trades", "local_opposites"),
    ("local", "as-released"): ("local_trades", "local_opposites"),
}


def overlaps(rows: Sequence[Row], edition: str) -> tuple[list[float], list[float]]:
    """BLEU (0–100) and ROUGE-L recall (0–1), one value each for every excerpt."""
    suffix = "" if edition == "paper" else "_released"
    pairs = [(row[f"truth{suffix}"], row[f"generation{suffix}"]) for row in rows]
    return [bleu(*pair) for pair in pairs], [rouge_l_recall(*pair) for pair in pairs]


def accuracy(row: Row, task: str) -> float:
    """1 where the likeliest choice is right; for TruthfulQA mc2 the right choices' share of probability."""
    logprobs = [float(value) for value in row["loglikelihoods"]]
    if any(math.isnan(value) for value in logprobs):
        return math.nan
    if task != MC2:
        return float(int(np.argmax(logprobs)) in row["right"])
    weights = np.exp(np.asarray(logprobs) - max(logprobs))
    return float(weights[list(row["right"])].sum() / weights.sum())


def word_perplexity(loglikelihoods: Sequence[float], words: Sequence[int]) -> float:
    """exp(−Σ log-likelihood / Σ words); infinite where it overflows a float."""
    exponent = -math.fsum(loglikelihoods) / sum(words)
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf


def scores(unlearned: Measurement, retained: Measurement | None) -> Iterator[Score]:
    """Every score in every edition.

    Raises:
        DataError: the two models were asked different excerpts.
    """
    mine = unlearned.part("excerpts")
    theirs = None if retained is None else retained.part("excerpts")
    if theirs is not None and [r["prompt"] for r in mine] != [r["prompt"] for r in theirs]:
        raise DataError(
            f"the unlearned model was asked {len(mine)} excerpts and the retained model {len(theirs)}; FQ Gap compares "
            "the same ones: score both again with equal limits"
        )
    for edition in EDITIONS:
        own = overlaps(mine, edition)
        for name, values, most in zip(("bleu", "rouge_l"), own, (100.0, 1.0), strict=True):
            yield _mean(name, values, edition, most)
        yield _gap(own, None if theirs is None else overlaps(theirs, edition), edition)
    yield from _fluency(mine)
    kind = "hub" if any(row["part"] in ("wikitext", *EIGHT) for row in unlearned.rows) else "local"
    yield _perplexity(unlearned.part(PERPLEXITY[kind]), PERPLEXITY[kind])
    for edition in EDITIONS:
        yield _accuracy({task: unlearned.part(task) for task in ACCURACY[kind, edition]}, edition)


def _fluency(rows: Sequence[Row]) -> Iterator[Score]:
    spoken = [row["generation"] for row in rows if speaks(row["generation"])]
    for name, measure, bounds in FLUENCY:
        if spoken:
            yield mean_score(name, [measure(text) for text in spoken], bounds=bounds)
        else:
            yield Score.missing(name, "no continuation has three words")


def _mean(name: str, values: Sequence[float], edition: str | None, most: float) -> Score:
    if not values:
        return Score.missing(name, "no excerpts were scored", edition=edition)
    return mean_score(name, values, edition, (0.0, most), NO_WORDS)


def _gap(mine: tuple[list[float], list[float]], theirs: tuple[list[float], list[float]] | None, edition: str) -> Score:
    size = len(mine[0])
    if theirs is None or not size:
        reason = "needs the retained model's values" if theirs is None else "no excerpts were scored"
        return Score.missing("fq_gap", reason, size, edition)
    differences = [np.asarray(a) - np.asarray(b) for a, b in zip(mine, theirs, strict=True)]
    if any(np.isnan(difference).any() for difference in differences):
        return Score.missing("fq_gap", f"some {NO_WORDS}", size, edition)
    value = sum(abs(float(difference.mean())) for difference in differences)
    # Both models continued the same excerpts, so one draw resamples both.
    resampled = bootstrap(size, lambda rows: _gaps(differences, rows))
    spread = None if resampled is None else _gap_interval(differences, resampled, value)
    return Score("fq_gap", value, size, (), spread, edition, resamples=resampled)


def _gaps(differences: Sequence[Floats], rows: Any) -> Floats:
    gaps: Floats = sum(np.abs(difference[rows].mean(axis=1)) for difference in differences)
    return gaps


def _gap_interval(differences: Sequence[Floats], resampled: Floats, value: float) -> tuple[float, float] | None:
    """The interval of a gap, which can reach a true gap of 0; resampled gaps, sums of absolute values, never do.

    It joins the interval of resampled gaps and the value ± the distance of resampled means from the means.
    """
    size = len(differences[0])
    rows = bootstrap_draws(size)
    apart = sum(np.abs(difference[rows].mean(axis=1) - difference.mean()) for difference in differences)
    half = float(np.quantile(apart, 1 - 2 * expanded_share(size, (1 - LEVEL) / 2)))
    spread = expanded_interval(resampled, size)
    return spread and (max(0.0, min(spread[0], value - half)), max(spread[1], value + half))


def _absent(rows: Sequence[Row], task: str) -> str:
    if not rows:
        return f"the task {task} was not asked"
    return str(rows[0].get("missing", ""))


def _perplexity(rows: Sequence[Row], task: str) -> Score:
    reason = _absent(rows, task)
    if reason:
        return Score.missing("ppl", reason)
    logs = np.asarray([float(row["loglikelihood"]) for row in rows])
    words = np.asarray([int(row["words"]) for row in rows])
    if np.isnan(logs).any():
        return Score.missing("ppl", "the model's log-likelihood of a text is not a number", len(rows))
    value = word_perplexity(logs.tolist(), words.tolist())

    resampled = None
    if len(rows) > 1:
        chosen = bootstrap_draws(len(rows), 1)
        with np.errstate(over="ignore"):
            resampled = np.exp(-logs[chosen].sum(axis=1) / words[chosen].sum(axis=1))
    spread = None if resampled is None else _perplexity_interval(logs, words)
    return Score("ppl", value, len(rows), (), spread, resamples=resampled)


def _perplexity_interval(logs: Floats, words: Any) -> tuple[float, float]:
    """The union of the percentile and the bootstrap-t interval of nats per word (a ratio of sums), as perplexities."""
    chosen = bootstrap_draws(len(logs))
    rate = float(-logs.sum() / words.sum())
    rates = -logs[chosen].sum(axis=1) / words[chosen].sum(axis=1)

    def error(texts_logs: Floats, texts_words: Any, of: Any) -> Floats:
        standard_error: Floats = np.sqrt(((-texts_logs - of * texts_words) ** 2).mean(-1)) / texts_words.mean(-1)
        return standard_error

    errors = error(logs[chosen], words[chosen], rates[:, None])
    low, high = expanded_interval(rates, len(logs)) or (math.nan, math.nan)
    known = errors > 0
    if known.any():
        upper, lower = np.quantile((rates - rate)[known] / errors[known], [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
        own = float(error(logs, words, rate))
        low, high = min(low, rate - upper * own), max(high, rate - lower * own)
    with np.errstate(over="ignore"):
        low, high = np.exp([low, high]).tolist()
    return low, high


def _accuracy(tasks: Mapping[str, Sequence[Row]], edition: str) -> Score:
    reason = next((absent for task, rows in tasks.items() if (absent := _absent(rows, task))), "")
    n = sum(len(rows) for rows in tasks.values())
    if reason:
        return Score.missing("avg_acc", reason, n, edition)
    values = {task: np.asarray([accuracy(row, task) for row in rows]) for task, rows in tasks.items()}
    undefined = [task for task, each in values.items() if np.isnan(each).any()]
    if undefined:
        return Score.missing("avg_acc", f"{undefined[0]}: a log-likelihood is not a number", n, edition)
    means = [float(each.mean()) for each in values.values()]
    # Resample each task by itself, and average the resamples over tasks.
    resampled, bounded = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for seed, per_document in enumerate(values.values()):
        # Excerpts and the perplexity's texts have seeds 0 and 1.
        resampled += resampled_means(per_document, seed + 2) / len(values)
        bounded += bounded_means(per_document, (0.0, 1.0), seed) / len(values)
    return Score("avg_acc", mean(means), n, (), percentile_interval(bounded), edition, resamples=resampled)
