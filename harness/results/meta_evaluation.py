"""Rates metrics: do they tell models that have read the forget set from models that have not, and under attack too?

Faithfulness of a metric is the area under the ROC curve between the two kinds, in the metric's own direction; its
robustness is the least such area when both kinds are attacked. A metric that compares with a retained model compares
with that of another seed, so that no model is its own measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..domain import Measurement, Metric
from ..metrics.statistics import auc, bootstrap_draws, percentile_interval, resampled_auc
from ..plugin.registry import Registry
from ..records.meta_evaluation import Area, MetricTrust
from ..records.recomputation import benchmark_of
from ..records.record import score_entries
from ..records.results import Results
from ..records.run_folder import FinishedCell
from ..records.tries import worst_tries

Place = tuple[int, int]
"""Which recipe, and which seed."""
KINDS = ("original", "retained")
"""Models that have read the forget set, and models that have not."""


@dataclass(frozen=True)
class _Values:
    """A metric's values by recipe and seed, of models with and without the forget set."""

    known: Mapping[Place, float]
    unknown: Mapping[Place, float]


def rated_metrics(recipes: Sequence[Results], registry: Registry, edition: str) -> list[MetricTrust]:
    """Every metric that is measured under attack, for each benchmark and model.

    Args:
        recipes: a run of reference models for each recipe, all with the same seeds and attacks.
    """
    rated = []
    for benchmark, model in dict.fromkeys(
        (cell.identity.benchmark, cell.identity.model) for run in recipes for cell in run.finished
    ):
        by_attack = _measured(recipes, registry, edition, benchmark, model)
        rated += [*_rated(by_attack, benchmark, model, edition)]
    return rated


Found = dict[str, tuple[Metric, _Values]]


def _measured(
    recipes: Sequence[Results], registry: Registry, edition: str, benchmark: str, model: str
) -> dict[str, Found]:
    """Values of every metric, by attack (empty for none) and by metric."""
    by_attack: dict[str, dict[str, tuple[Metric, dict[str, dict[Place, float]]]]] = {}
    for recipe, run in enumerate(recipes):
        cells = {
            (cell.identity.attack, cell.identity.method, cell.identity.seed): cell
            for cell in run.finished
            if (cell.identity.benchmark, cell.identity.model) == (benchmark, model) and cell.record.identity.reference
        }
        seeds = sorted({seed for _, _, seed in cells})
        for (attack, kind, seed), cell in cells.items():
            other = cells.get((attack, "retained", seeds[(seeds.index(seed) + 1) % len(seeds)]))
            if other is None:
                continue
            for metric, value in _scores(cell, other, run, registry, edition):
                _, kinds = by_attack.setdefault(attack, {}).setdefault(
                    metric.name, (metric, {known: {} for known in KINDS})
                )
                kinds[kind][recipe, seed] = value
    return {
        attack: {
            name: (metric, _Values(kinds["original"], kinds["retained"])) for name, (metric, kinds) in found.items()
        }
        for attack, found in by_attack.items()
    }


def _scores(
    cell: FinishedCell, retained: FinishedCell, run: Results, registry: Registry, edition: str
) -> Iterator[tuple[Metric, float]]:
    """Scores of a cell against another retained model, on the rows that both were asked."""
    component, benchmark = benchmark_of(cell.record, registry)
    mine, theirs = (worst_tries(Measurement(tuple(run.samples_of(key)))) for key in (cell.key, retained.key))
    shared = {_place(row) for row in mine.rows} & {_place(row) for row in theirs.rows}
    mine, theirs = (Measurement(tuple(r for r in some.rows if _place(r) in shared)) for some in (mine, theirs))
    entries = score_entries(benchmark.score(mine, None, theirs), component.spec.metrics, edition)
    for metric in component.spec.metrics:
        yield metric, entries[metric.name].value


def _place(row: Mapping[str, object]) -> tuple[object, object]:
    return row.get("part"), row.get("index")


def _rated(by_attack: Mapping[str, Found], benchmark: str, model: str, edition: str) -> Iterator[MetricTrust]:
    plain = by_attack.get("", {})
    for name, (metric, values) in plain.items():
        attacked = {attack: found[name] for attack, found in by_attack.items() if attack and name in found}
        under = {attack: area for attack, (_, some) in attacked.items() if (area := _area(metric, some))}
        if attacked and not under:
            # It concerns what an attack does not measure: utility.
            continue
        area = _area(metric, values)
        yield MetricTrust(
            benchmark=benchmark,
            model=model,
            metric=name,
            label=metric.label,
            edition=edition,
            pairs=len(values.known),
            faithfulness=area,
            under=under,
            reason="" if area else "the metric is missing for some models",
        )


def _area(metric: Metric, values: _Values) -> Area | None:
    """The area between the two kinds; None where a value is missing."""
    known, unknown = _oriented(metric, values)
    if len(known) < 2 or len(unknown) < 2 or any(map(math.isnan, (*known, *unknown))):
        return None
    # As for MUSE's AUC: with one value above all others and one below, an area of 1 is not taken for certain.
    further = [*known, -math.inf, math.inf]
    drawn = resampled_auc(further, unknown, bootstrap_draws(len(further), 0), bootstrap_draws(len(unknown), 1))
    low, high = percentile_interval(drawn) or (math.nan, math.nan)
    return Area(value=auc(known, unknown), low=low, high=high)


def _oriented(metric: Metric, values: _Values) -> tuple[list[float], list[float]]:
    """Values of both kinds, turned so that more means that the model knows more.

    A metric that is best near a target does not say in which direction knowledge lies. That is read off the models of
    the other recipes, so that no value has a part in how it is turned.
    """
    recipes = sorted({recipe for recipe, _ in values.known})
    signs = {recipe: -1.0 if metric.better == "higher" else 1.0 for recipe in recipes}
    if metric.better == "target":
        for recipe in recipes:
            known, unknown = (
                [value for (other, _), value in of_kind.items() if other != recipe or len(recipes) == 1]
                for of_kind in (values.known, values.unknown)
            )
            signs[recipe] = 1.0 if np.median(known) >= np.median(unknown) else -1.0
    return (
        [signs[recipe] * value for (recipe, _), value in values.known.items()],
        [signs[recipe] * value for (recipe, _), value in values.unknown.items()],
    )
