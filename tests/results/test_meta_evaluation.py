"""The board rates its metrics: areas between models with and without the forget set, and under attack."""

from __future__ import annotations

import json
import math

import pytest

from unlearnbench.domain import Metric
from unlearnbench.errors import RecordError
from unlearnbench.metrics.statistics import auc
from unlearnbench.records.meta_evaluation import Area, MetaEvaluation, MetricTrust, read_meta_evaluation
from unlearnbench.results.meta_evaluation import _area, _Values


def metric(better, target=None):
    return Metric("some", "Some", better, "source", "definition", target=target)


def values(known, unknown):
    """Values of three recipes with four seeds each."""
    places = [(recipe, seed) for recipe in range(3) for seed in range(4)]
    return _Values(dict(zip(places, known, strict=True)), dict(zip(places, unknown, strict=True)))


HIGH, LOW = [0.5 + 0.01 * n for n in range(12)], [0.1 + 0.01 * n for n in range(12)]


@pytest.mark.parametrize(
    ("better", "known", "unknown", "area"),
    [("lower", HIGH, LOW, 1.0), ("lower", LOW, HIGH, 0.0), ("higher", LOW, HIGH, 1.0), ("lower", HIGH, HIGH, 0.5),
     ("target", HIGH, LOW, 1.0), ("target", LOW, HIGH, 1.0)],
)  # fmt: skip
def test_an_area_is_in_the_metric_s_own_direction(better, known, unknown, area):
    found = _area(metric(better, 0.0 if better == "target" else None), values(known, unknown))
    assert found.value == area
    assert found.low <= area <= found.high
    # Twelve models of each kind do not make anything certain.
    assert 0.05 < found.high - found.low < 0.6


def test_an_area_is_the_share_of_pairs_in_order():
    known, unknown = [0.1, 0.5, 0.3, 0.9] * 3, [0.2, 0.3, 0.0, 0.4] * 3
    found = _area(metric("lower"), values(known, unknown))
    pairs = [(a > b) + 0.5 * (a == b) for a in known for b in unknown]
    assert found.value == pytest.approx(sum(pairs) / len(pairs)) == auc(known, unknown)


def test_no_value_has_a_part_in_how_it_is_turned():
    # In every recipe knowledge lies the other way than in the two others: turned by these, no pair is in order.
    known = [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    turned = _area(metric("target", 0.0), values([0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9], known))
    assert turned.value < 1.0


@pytest.mark.parametrize("broken", [math.nan])
def test_a_metric_that_is_missing_for_a_model_is_not_rated(broken):
    assert _area(metric("lower"), values([broken, *HIGH[1:]], LOW)) is None


def test_trust_is_the_least_of_all_areas():
    one, half = Area(value=1.0, low=0.9, high=1.0), Area(value=0.5, low=0.3, high=0.7)
    common = {"benchmark": "b", "model": "m", "metric": "x", "label": "X", "edition": "paper", "pairs": 3}
    rated = MetricTrust(**common, faithfulness=one, under={"quantise": one, "relearn": half})
    assert rated.trust == 0.5
    assert rated.robustness == ("relearn", half)
    assert math.isnan(MetricTrust(**common, reason="missing").trust)


def test_a_damaged_or_newer_record_is_refused(tmp_path):
    with pytest.raises(RecordError, match="meta-evaluate again"):
        read_meta_evaluation(tmp_path)
    (tmp_path / "meta-evaluation.json").write_text("{}")
    with pytest.raises(RecordError):
        read_meta_evaluation(tmp_path)


@pytest.mark.slow
def test_metrics_are_rated_from_the_command_line(command):
    words = ("meta-evaluate", "--plugin", str(command.nano), "-b", "tofu-forget10", "--model", "nano", "--data",
             "generated", "--set", "data.scale=quick", "--set", "benchmarks.*.max_new_tokens=8", "--set",
             "recipe.epochs=24", "--device", "cpu", "-j", "2", "--quick", "--name", "rated")  # fmt: skip
    done = command(*words, "--json", timeout=600)
    assert done.code == 0, done.err
    found = MetaEvaluation.model_validate({name: value for name, value in done.json.items() if name != "page"})
    rated = {rated.metric: rated for rated in found.metrics}
    assert {rated.pairs for rated in found.metrics} == {9}
    assert found.attacks == ["quantise", "relearn"]
    # A model that has read the answers gives them more probability than one that has not.
    assert rated["forget_probability"].faithfulness.value > 0.9
    assert rated["forget_probability"].under.keys() == {"quantise", "relearn"}
    # Utility is not a matter of the forget set, and no attack measures it.
    assert "model_utility" not in rated
    site = command.folder / "runs" / "rated-meta" / "site"
    assert "Which metrics can be trusted" in (site / "trust.html").read_text()
    assert 'href="trust.html"' in (site / "metrics.html").read_text()
    assert "Forget Probability" in command("results", "runs/rated-meta").out
    again = command(*words)
    assert again.code == 0
    assert again.err.count("done (kept)") == again.err.count("[") == 3 * len(json.loads(
        (command.folder / "runs/rated-meta/recipe-0/plan.json").read_text())["nodes"])  # fmt: skip
    assert "Forget Probability" in again.out
