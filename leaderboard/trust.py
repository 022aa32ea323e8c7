"""Which metrics can be trusted: a meta-evaluation as tables."""

from __future__ import annotations

import math

from unlearnbench.records.meta_evaluation import MetaEvaluation, MetricTrust


def by_benchmark(found: MetaEvaluation) -> dict[tuple[str, str], list[MetricTrust]]:
    """The metrics of each benchmark and model, the most trusted first; those that were not measured come last."""
    tables: dict[tuple[str, str], list[MetricTrust]] = {}
    for metric in found.metrics:
        tables.setdefault((metric.benchmark, metric.model), []).append(metric)
    return {
        place: sorted(metrics, key=lambda metric: math.inf if math.isnan(metric.trust) else -metric.trust)
        for place, metrics in tables.items()
    }
