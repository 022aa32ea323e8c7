"""MUSE's metrics as pure functions of rows. Shi et al. 2024, arXiv:2407.06460, §3.

Rows of ``verbmem_f``, ``knowmem_f`` and ``knowmem_r`` hold ``prompt``, ``truth`` and ``generation``; rows of
``privleak_forget`` and ``privleak_holdout`` hold scores of a text for membership, None where it has too few tokens for
one (``min40``, ``min40pp``, ``loss``, ``zlib`` and, where asked for, ``gradient_norm``), and ``greedy``: how many
tokens are the model's first choice, how many of them stand at the end, and of how many tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlearnbench import (
    FLUENCY,
    NO_WORDS,
    DataError,
    Floats,
    Measurement,
    ReadText,
    Score,
    auc,
    bootstrap_draws,
    exact_memorisation,
    extraction_strength,
    mean,
    mean_score,
    min_k_plus_plus,
    percentile_interval,
    resampled_auc,
    rouge_l_f,
    speaks,
    zlib_ratio,
)

from .metric_list import MEMBERSHIP

Row = Mapping[str, Any]

OVERLAPS = ("verbmem_f", "knowmem_f", "knowmem_r")
"""The parts with generated texts. The place of a part is the seed of its resamples: its rows are no other part's."""
SHARE = 0.4
ENDS = ("\n\n", "\nQuestion", "Question:")


def min_k_score(logprobs: Sequence[float], share: float = SHARE) -> float | None:
    """Minus the mean of the ``share`` smallest log-probabilities (nats) of a text; None where the share is empty, NaN
    where a log-probability is NaN.

    Source: Min-K% (Shi et al. 2023, arXiv:2310.16789).
    """
    count = int(share * len(logprobs))
    if any(math.isnan(value) for value in logprobs):
        # Sorting puts NaN at an undefined position.
        return math.nan
    return -mean(sorted(logprobs)[:count]) if count else None


def membership(read: ReadText, text: str) -> dict[str, Any]:
    """The scores of a text for membership, larger for a text that was not seen, and its first choices."""
    count = len(read.logprobs)
    nll = -math.fsum(read.logprobs)
    suffix = sum(1 for _ in takewhile(bool, reversed(read.greedy)))
    return {
        "min40": min_k_score(read.logprobs),
        "min40pp": min_k_plus_plus(read.logprobs, read.means, read.variances, SHARE),
        "loss": nll / count if count else None,
        "zlib": zlib_ratio(nll, text) if count else None,
        "greedy": [sum(read.greedy), suffix, count],
    }


def first_answer(generation: str) -> str:
    """A few-shot answer up to the next question that the model writes."""
    return generation[: min([place for end in ENDS if (place := generation.find(end)) >= 0], default=None)]


def scores(unlearned: Measurement, original: Measurement | None, retained: Measurement | None) -> Iterator[Score]:
    """Every score. Criteria apply to unlearned models alone: not where ``original`` is None or is the model itself.

    Raises:
        DataError: the two models were scored on different rows.
    """
    if retained is not None:
        refuse_different_rows(unlearned, retained)
    judged = retained if original is not None and original is not unlearned else None
    for part in OVERLAPS:
        score = _overlap(part, unlearned)
        passes = None
        if judged is not None:
            passes = _passes(part, score.value, 0.0 if part == "knowmem_r" else _overlap(part, judged).value)
        yield replace(score, passes=passes)
    yield _auc(unlearned)
    yield _privleak(unlearned, retained)
    for field, *_ in MEMBERSHIP:
        yield _membership_auc(field, unlearned, retained)
    yield from _memorised(unlearned)
    yield from _fluency(unlearned)


def _passes(part: str, value: float, bound: float) -> bool | None:
    """Whether a value meets the paper's criterion; None where the value or the bound is unknown."""
    if math.isnan(value) or math.isnan(bound):
        return None
    return value > bound if part == "knowmem_r" else value <= bound


def refuse_different_rows(unlearned: Measurement, retained: Measurement) -> None:
    """Raise DataError unless both models answered the same rows in the same order."""
    for part in ("verbmem_f", "knowmem_f", "knowmem_r", "privleak_forget", "privleak_holdout"):
        mine, theirs = ([_asked(row) for row in model.part(part)] for model in (unlearned, retained))
        if mine != theirs:
            raise DataError(
                f"{part}: the unlearned model was scored on {len(mine)} rows and the retained model on {len(theirs)}, "
                f"of which {len(set(mine) & set(theirs))} are shared; score both on the same rows"
            )


def _asked(row: Row) -> tuple[Any, ...]:
    return row.get("prompt"), row.get("truth"), row.get("text_sha256")


def _overlap(part: str, measured: Measurement) -> Score:
    rows = measured.part(part)
    if not rows:
        return Score.missing(part, "no rows of this part were scored")
    answer = str if part == "verbmem_f" else first_answer
    values = tuple(100 * rouge_l_f(row["truth"], answer(row["generation"])) for row in rows)
    return mean_score(part, values, bounds=(0.0, 100.0), undefined=NO_WORDS, seed=OVERLAPS.index(part))


def _min_k(measured: Measurement, part: str) -> list[float]:
    return [float(row["min40"]) for row in measured.part(f"privleak_{part}") if row["min40"] is not None]


def _left_out(measured: Measurement) -> str:
    rows = [*measured.part("privleak_forget"), *measured.part("privleak_holdout")]
    short = sum(row["min40"] is None for row in rows)
    return f"{short} of {len(rows)} texts are too short for a Min-40 % score and are left out" if short else ""


def _undefined(measured: Measurement) -> str:
    """Why there is no AUC."""
    if any(math.isnan(score) for part in ("forget", "holdout") for score in _min_k(measured, part)):
        return "a text's Min-40 % score is not a number"
    return _left_out(measured) or "no texts were scored"


def _auc(measured: Measurement) -> Score:
    forget, holdout = _min_k(measured, "forget"), _min_k(measured, "holdout")
    return _area("auc", forget, holdout, _undefined(measured), _left_out(measured))


def _area(name: str, forget: Sequence[float], holdout: Sequence[float], undefined: str, reason: str = "") -> Score:
    """The AUC of scores of forget and holdout texts; missing, for the reason ``undefined``, where there is none."""
    value = auc(forget, holdout)
    if math.isnan(value):
        return Score.missing(name, undefined, len(forget))
    resampled = spread = None
    if len(forget) > 1 and len(holdout) > 1:
        resampled = resampled_auc(forget, holdout, *_draws(forget, holdout))
        spread = percentile_interval(_bounded_auc(forget, holdout))
    return Score(name, value, len(forget), tuple(forget), spread, reason=reason, resamples=resampled)


def _membership_auc(field: str, measured: Measurement, retained: Measurement | None) -> Score:
    """The AUC of one membership attack on forget and holdout texts."""
    name = f"auc_{field}"
    if field == "reference" and retained is None:
        return Score.missing(name, "needs the retained model's values")
    by_part = []
    for part in ("privleak_forget", "privleak_holdout"):
        rows = measured.part(part)
        if field == "reference" and retained is not None:
            pairs = zip(rows, retained.part(part), strict=True)
            values = [_difference(mine.get("loss"), other.get("loss")) for mine, other in pairs]
        else:
            values = [row.get(field) for row in rows]
        by_part.append([float(value) for value in values if value is not None])
    forget, holdout = by_part
    if not forget or not holdout:
        asked = (
            "gradient norms were not asked for (gradient_norms)" if field == "gradient_norm" else "no text has a score"
        )
        return Score.missing(name, asked)
    return _area(name, forget, holdout, "a text's score is not a number")


def _difference(mine: float | None, other: float | None) -> float | None:
    return None if mine is None or other is None else mine - other


def _memorised(measured: Measurement) -> Iterator[Score]:
    rows = [row for row in measured.part("privleak_forget") if row.get("greedy") and row["greedy"][2]]
    for name, measure, place in (
        ("forget_extraction_strength", extraction_strength, 1),
        ("forget_exact_memorisation", exact_memorisation, 0),
    ):
        values = [measure(row["greedy"][place], row["greedy"][2]) for row in rows]
        if values:
            yield mean_score(name, values, bounds=(0.0, 1.0), seed=len(OVERLAPS))
        else:
            yield Score.missing(name, "no texts were scored")


def _fluency(measured: Measurement) -> Iterator[Score]:
    spoken = [row["generation"] for row in measured.part("verbmem_f") if speaks(row["generation"])]
    for name, measure, bounds in FLUENCY:
        if spoken:
            values = [measure(text) for text in spoken]
            yield mean_score(f"verbmem_f_{name}", values, bounds=bounds, seed=OVERLAPS.index("verbmem_f"))
        else:
            yield Score.missing(f"verbmem_f_{name}", "no continuation has three words")


def _draws(forget: Sequence[float], holdout: Sequence[float]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Resampled forget and holdout texts, with seeds that no other part has."""
    first = len(OVERLAPS)
    return bootstrap_draws(len(forget), first), bootstrap_draws(len(holdout), first + 1)


def _bounded_auc(forget: Sequence[float], holdout: Sequence[float]) -> Floats:
    """(R,) resampled areas with two more forget texts: one above every holdout text and one below.

    See ``statistics.bounded_means``: near areas of 0 and 1, resampling the texts alone underestimates the spread.
    """
    further = [*forget, -math.inf, math.inf]
    return resampled_auc(further, holdout, bootstrap_draws(len(further), 0), bootstrap_draws(len(holdout), 1))


def _privleak(measured: Measurement, retained: Measurement | None) -> Score:
    forget, holdout = _min_k(measured, "forget"), _min_k(measured, "holdout")
    if retained is None:
        return Score.missing("privleak", "needs the retained model's values", len(forget))
    theirs = _min_k(retained, "forget"), _min_k(retained, "holdout")
    value, reference = auc(forget, holdout), auc(*theirs)
    if math.isnan(value):
        return Score.missing("privleak", _undefined(measured), len(forget))
    if math.isnan(reference):
        return Score.missing("privleak", f"the retained model's AUC: {_undefined(retained)}", len(forget))
    if reference == 0:
        return Score.missing("privleak", "the retained model's AUC is 0, which nothing can be divided by", len(forget))
    resampled = spread = None
    if len(forget) == len(theirs[0]) > 1 and len(holdout) == len(theirs[1]) > 1:
        # Both models read the same texts, so one draw resamples both.
        texts = _draws(forget, holdout)
        resampled = _relative(resampled_auc(forget, holdout, *texts), resampled_auc(*theirs, *texts))
        spread = percentile_interval(_relative(_bounded_auc(forget, holdout), _bounded_auc(*theirs)))
    relative = (value - reference) / reference * 100
    return Score("privleak", relative, len(forget), (), spread, reason=_left_out(measured), resamples=resampled)


def _relative(values: Floats, base: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        percent: Floats = (values - base) / base * 100
    return percent
