"""What every registered method and benchmark promises, held for all of them."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import pytest
import torch

from unlearnbench import Context, Example, UnlearningData
from unlearnbench.domain import Measurement, Requires
from unlearnbench.engine.engine import Engine
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.plugin.specs import resolve
from unlearnbench.records.record import score_entries
from unlearnbench.records.run_folder import stored_cells
from unlearnbench.storage import read_rows

REGISTRY = load_plugins()
METHODS = [component.spec for component in REGISTRY.of_kind("method")]
BENCHMARKS = [component.spec for component in REGISTRY.of_kind("benchmark")]
FORGET = [Example(i, f"Who is {i}?", "Ada " * (1 + i)) for i in range(3)]
RETAIN = [Example(i, f"What is {i}?", "a poem") for i in range(4)]


def built(spec, **values):
    return resolve(spec.target, spec.name)(**{**values, **spec.fixed})


@pytest.mark.parametrize("spec", BENCHMARKS, ids=lambda s: s.name)
def test_a_benchmark_s_spec_says_what_its_class_says(spec):
    benchmark = built(spec)
    for parameter in spec.parameters:
        assert getattr(benchmark, parameter.name) == parameter.default
    assert set(spec.evaluation_parameters) <= {parameter.name for parameter in spec.parameters}
    assert set(spec.training) == {"original", "retained"}
    for metric in spec.metrics:
        assert metric.better in ("higher", "lower", "target")
        assert metric.source
        assert metric.definition
    assert any(metric.headline for metric in spec.metrics)


@pytest.mark.parametrize("spec", METHODS, ids=lambda s: s.name)
def test_a_method_keeps_its_promises(spec, tiny_model, tiny_encoder):
    """Same seed same weights; finite; vocabulary kept; inputs untouched; nothing but what was declared."""
    method = built(spec, **({} if spec.reference else {"learning_rate": 1e-3, "epochs": 1, "batch_size": 2}))
    assert isinstance(spec.requires, Requires)
    templates = ("No idea.", "I don't know.")
    tokens = json.dumps(tiny_encoder.tokenizer.get_vocab(), sort_keys=True)
    found = []
    for _ in range(2):
        model = copy.deepcopy(tiny_model)
        original = copy.deepcopy(tiny_model) if spec.requires.original == "model" else None
        data = UnlearningData(spec.name, spec.requires, tiny_encoder, FORGET, RETAIN, templates)
        ctx = Context(spec.name, 5, Engine(), log=lambda line: None, original=original)
        state = torch.get_rng_state()
        unlearned = method.unlearn(model, tiny_encoder.tokenizer, data, ctx)
        assert torch.equal(state, torch.get_rng_state()), "a method must not draw from the global generator"
        assert all(torch.isfinite(weight).all() for weight in unlearned.parameters())
        assert unlearned.get_input_embeddings().num_embeddings == len(tiny_encoder.tokenizer)
        if original is not None:
            assert all(torch.equal(a, b) for a, b in zip(original.parameters(), tiny_model.parameters(), strict=True))
        assert data.forget == tuple(FORGET)
        found.append(torch.cat([weight.detach().flatten() for weight in unlearned.parameters()]))
    assert torch.equal(*found)
    before = torch.cat([weight.detach().flatten() for weight in tiny_model.parameters()])
    assert torch.equal(found[0], before) is spec.reference
    assert json.dumps(tiny_encoder.tokenizer.get_vocab(), sort_keys=True) == tokens


@pytest.mark.parametrize("spec", [s for s in METHODS if not s.reference], ids=lambda s: s.name)
def test_a_method_touches_exactly_what_it_declares(spec, tiny_model, tiny_encoder):
    """The columns of the leaderboard are facts: nothing undeclared is used, and what is declared is."""
    touched = set()

    class Watching(UnlearningData):
        @property
        def retain(self):
            touched.add("retain")
            return super().retain

        @property
        def templates(self):
            touched.add("template")
            return super().templates

    method = built(spec, learning_rate=1e-3, epochs=1, batch_size=2)
    options = [method]
    if spec.name == "llmu":
        options.append(built(spec, learning_rate=1e-3, epochs=1, random_answers="template"))
    for option in options:
        data = Watching(spec.name, spec.requires, tiny_encoder, FORGET, RETAIN, ("No idea.",))
        original = copy.deepcopy(tiny_model) if spec.requires.original == "model" else None
        ctx = Context(spec.name, 5, Engine(), log=lambda line: None, original=original)
        option.unlearn(copy.deepcopy(tiny_model), tiny_encoder.tokenizer, data, ctx)
    declared = {name for name in ("retain", "template") if getattr(spec.requires, name)}
    assert touched == declared


# -- a whole run ------------------------------------------------------------------------------------------------------


def rescored(run, cell):
    """The scores of a cell, from its sample file and the retained model's."""
    spec = next(spec for spec in BENCHMARKS if spec.name == cell.identity.benchmark)
    record = cell.record
    mine = Measurement(tuple(read_rows(cell.folder / record.samples.file)))
    others = {
        role: Measurement(tuple(read_rows(run / "cells" / key / record.samples.file)))
        for role, key in record.samples.references.items()
    }
    retained = mine if record.identity.method == "retained" else others["retained"]
    found = built(spec).score(mine, others.get("original"), retained)
    return score_entries(found, spec.metrics, record.edition)


def test_every_score_of_every_record_recomputes_from_its_samples(small_run, text_run):
    runs = (small_run[0], text_run[0])
    cells = [(run, cell) for run in runs for cell in stored_cells(run)]
    assert len(cells) == 17 + 12
    for run, cell in cells:
        entries = rescored(run, cell)
        assert set(entries) == set(cell.record.scores)
        for name, entry in entries.items():
            stored = cell.record.scores[name]
            for edition, value in entry.editions.items():
                kept = stored.editions[edition]
                assert kept.n == value.n
                assert (math.isnan(kept.value) and math.isnan(value.value)) or kept.value == value.value
                assert kept.interval == value.interval


def test_the_ends_of_the_scale(small_run):
    run, _ = small_run
    records = {cell.identity.method: cell.record for cell in stored_cells(run)}
    retained, original = records["retained"], records["original"]
    for edition in ("paper", "as-released"):
        assert retained.scores["forget_quality"].editions[edition].value == 1.0
        assert retained.scores["forget_quality_log10"].editions[edition].value == 0.0
    # The original model was trained on the forget rows and the retained model was not.
    assert original.scores["forget_probability"].value > retained.scores["forget_probability"].value
    # Gradient ascent forgets.
    assert records["ga"].scores["forget_probability"].value < original.scores["forget_probability"].value
    assert original.cost.optimiser_steps == 0 < records["ga"].cost.optimiser_steps


def test_a_record_says_where_it_came_from(small_run):
    run, _ = small_run
    record = next(cell.record for cell in stored_cells(run) if cell.identity.method == "npo")
    assert record.provenance["plugins"]["method"]["dist"] == "unlearnbench"
    assert record.provenance["packages"]["torch"]
    assert record.provenance["data"]["kind"] == "generated"
    assert record.limits["data"].startswith("generated")
    assert record.cost.seconds["unlearn"] > 0
    assert record.cost.peak_memory_bytes > 2**20
    assert record.comparability.key["data_source"] == "generated"
    assert record.identity.requires.original == "logprobs"
    assert record.identity.hyperparameters["dropout"] is False


def test_a_benchmark_must_score_what_it_declares_and_nothing_else():
    from unlearnbench.domain import Metric, Score
    from unlearnbench.errors import RecordError

    metric = Metric("a", "A", "higher", "here", "a thing")
    with pytest.raises(RecordError, match="'b', which the benchmark does not declare"):
        score_entries([Score("b", 1.0, 1)], [metric], "paper")
    with pytest.raises(RecordError, match="yields no score of a"):
        score_entries([], [metric], "paper")
    with pytest.raises(RecordError, match="NaN without a reason"):
        score_entries([Score("a", math.nan, 1)], [metric], "paper")
    kept = score_entries([Score.missing("a", "nothing to score")], [metric], "paper")
    assert kept["a"].reason == "nothing to score"


def test_scores_recompute_without_torch():
    """Looking at results must stay quick: what scores imports no torch."""
    code = (
        "import sys\n"
        "from unlearnbench.plugin.registry import load_plugins\n"
        "from unlearnbench.plugin.specs import resolve\n"
        "import unlearnbench.results.comparison, unlearnbench.results.verification\n"
        "for component in load_plugins().of_kind('benchmark'):\n"
        "    resolve(component.spec.target, component.qualified)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
