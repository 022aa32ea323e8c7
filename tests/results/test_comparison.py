"""Two runs side by side: paired differences, gates and what trips them, rows that may not be compared."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from unlearnbench.authoring.scaffold import write_package
from unlearnbench.benchmarks.tofu.metric_list import PARTS
from unlearnbench.domain import NUMBERS, CellId
from unlearnbench.errors import NothingSelected, UsageError
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.gates import Gate, read_gates
from unlearnbench.records.results import Results
from unlearnbench.results.comparison import compare, judged
from unlearnbench.results.opening import opened

GATES = """
[[gates]]
metric = "forget_loss"
max_change = 0.05
[[gates]]
metric = "retain_loss"
max_drop = 0.5
[[gates]]
metric = "cost.fastest_step_cpu_seconds"
method = "my-method"
relative_to = "ga"
max_ratio = 3.0
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    write_package("method", "my-method", folder)
    write_package("benchmark", "my-bench", folder)
    return folder / "my-method" / "my_method.py", folder / "my-bench" / "my_bench.py"


@pytest.fixture(scope="module")
def runs(plugins, tmp_path_factory, command_in, nano_plugin):
    """Makes runs of the two plugins, each source edited as a change to it would."""
    folder = tmp_path_factory.mktemp("runs")
    command = command_in(folder)
    (folder / "gates.toml").write_text(GATES)
    method, bench = plugins

    def run(name, *words, method_edit=("", ""), bench_edit=("", "")):
        before = method.read_text(), bench.read_text()
        for path, text, (old, new) in ((method, before[0], method_edit), (bench, before[1], bench_edit)):
            assert old in text
            path.write_text(text.replace(old, new, 1))
        loaded = [word for path in (nano_plugin, method, bench) for word in ("--plugin", str(path))]
        study = ("run", *loaded, "--model", "nano", "--data", "generated", "-m", "ga", "-m", "my-method",
                 "-b", "my-bench", "--device", "cpu", "--set", "methods.*.epochs=20", "--set", "run.threads=1",
                 "-o", name, "--name", "pm", *words)  # fmt: skip
        done = command(*study)
        method.write_text(before[0])
        bench.write_text(before[1])
        assert done.code == 0, done.err
        return folder / name

    run("base")
    return run, command, folder, ("--plugin", str(bench), "--gates", "gates.toml")


def test_an_unchanged_run_passes(runs):
    run, command, _, words = runs
    run("same")
    done = command("compare", "base", "same", *words, "--json")
    assert done.code == 0, done.out
    for pair in done.json["pairs"]:
        for found in pair["metrics"].values():
            assert found["difference"] == 0
            assert found["interval"] == [0, 0]
            assert found["paired"]
        assert pair["costs"]["training_tokens"]["baseline"] == pair["costs"]["training_tokens"]["candidate"]
    assert "all 5 metrics as before" in command("compare", "base", "same", *words).out


HEAD = "    def loss(self, model: Any, batch: Batch) -> Iterator[Term]:\n"
SLOW = (
    HEAD
    + """        for _ in range(9):
            answer_logprobs(model, batch.forget, batch.retain)[0].sum().backward()
        model.zero_grad()
"""
)


@pytest.mark.parametrize(
    ("name", "words", "edits", "tripped"),
    [("sign", (), {"method_edit": ("Term(forget.sum()", "Term(-forget.sum()")}, "my-method × my-bench"),
     pytest.param("rate", ("--set", "methods.my-method.learning_rate=1e-2"), {}, "my-method × my-bench",
                  marks=pytest.mark.slow),
     pytest.param("metric", (), {"bench_edit": ('float(row["loss"])', '2 * float(row["loss"])')}, "ga × my-bench",
                  marks=pytest.mark.slow),
     pytest.param("slow", (), {"method_edit": (HEAD, SLOW)}, "fastest_step_cpu_seconds", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_gate_catches(runs, name, words, edits, tripped):
    run, command, folder, options = runs
    run(name, *words, **edits)
    done = command("compare", "base", name, *options, "--markdown", f"{name}.md", "--junit", f"{name}.xml")
    assert done.code == 6, done.out
    lines = [line for line in done.out.splitlines() if line.startswith("TRIPPED")]
    assert any(tripped in line for line in lines), lines
    assert tripped in (folder / f"{name}.md").read_text()
    suite = ElementTree.parse(folder / f"{name}.xml").getroot()[0]
    assert suite.get("failures") == str(len(lines)) == str(len(suite.findall("testcase/failure")))


def test_rows_that_may_not_be_compared_are_exit_4_with_the_field(runs):
    run, command, _, words = runs
    run("other", "--set", "benchmarks.my-bench.limit=1")
    done = command("compare", "base", "other", *words)
    assert done.code == 4
    assert "may not be compared: benchmark_settings is {'limit': 0} in the baseline and {'limit': 1}" in done.err


def test_records_alone_and_bundles_are_compared(runs):
    _, command, folder, words = runs
    (folder / "base.json").write_text(command("results", "base", "--json").out)
    done = command("compare", "base.json", "base", *words, "--json")
    assert done.code == 0, done.err
    # Records hold the resamples of score, forgetting and utility.
    paired = {name for pair in done.json["pairs"] for name, found in pair["metrics"].items() if found["paired"]}
    assert paired <= NUMBERS.keys()
    assert "intervals are not paired" in done.json["notes"][0]
    given = ("--contact", "a", "--licence", "b", "--budget", "c", "--selection", "d")
    assert command("bundle", "base", "-o", "base.zip", *given).code == 0
    assert command("compare", "base.zip", "base", *words).code == 0
    assert command("results", "base.zip").out == command("results", "base").out
    (folder / "no.json").write_text("{}")
    done = command("compare", "no.json", "base")
    assert done.code == 4
    assert "holds no records" in done.err


def test_what_the_candidate_lacks_trips(runs):
    _, _, folder, words = runs
    registry = load_plugins([words[1]])
    with opened([folder / "base", folder / "base"]) as (base, candidate):
        fewer = Results("fewer", tuple(c for c in candidate.cells if c.identity.method != "my-method"), {}, None,
                        candidate.folder)  # fmt: skip
        comparison = compare(base, fewer, registry)
        findings = judged(comparison, [Gate(metric="forget_loss", max_change=1.0)])
        assert [f.title for f in findings if f.tripped] == ["my-method × my-bench"]
        with pytest.raises(NothingSelected, match="no finished pairing"):
            compare(base, replace(fewer, cells=()), registry)
        with pytest.raises(UsageError, match="no such metric there"):
            judged(comparison, [Gate(metric="nonsense", max_drop=0.1)])
        with pytest.raises(UsageError, match="no pairing of the baseline"):
            judged(comparison, [Gate(metric="forget_loss", method="nobody", max_drop=0.1)])


def test_a_benchmark_that_the_baseline_lacks_is_named_and_trips_nothing(runs):
    _, _, folder, words = runs
    registry = load_plugins([words[1]])
    with opened([folder / "base"]) as (base,):
        cells = tuple(replace(cell, identity=replace(cell.identity, benchmark="new-bench")) for cell in base.cells)
        comparison = compare(base, replace(base, cells=(*base.cells, *cells)), registry)
        assert {cell.identity.benchmark for cell in comparison.only_candidate} == {"new-bench"}
        assert not any(f.tripped for f in judged(comparison, [Gate(metric="forget_loss", max_change=1.0)]))
        with pytest.raises(UsageError, match="no pairing of the baseline is \\* on new-bench"):
            judged(comparison, [Gate(metric="forget_loss", benchmark="new-bench", max_change=1.0)])


def test_paired_intervals_leave_out_what_the_rows_have_in_common(small_run):
    with opened([small_run[0]]) as (results,):
        cells = {cell.identity.method: cell for cell in results.cells}
        npo, ga = cells["npo"], cells["ga"]
        renamed = replace(ga, identity=npo.identity)
        sides = [Results(name, (cells["retained"], cell), {}, None, results.folder)
                 for name, cell in (("npo", npo), ("ga", renamed))]  # fmt: skip
        comparison = compare(*sides, load_plugins())
        pair = next(pair for pair in comparison.pairs if pair.identity.method == "npo")
        found = next(each for each in pair.metrics if each.metric == "forget_probability")
        rows = [results.samples_of(cell.key) for cell in (npo, ga)]
    losses = [np.array([row["answer"][0] for row in side if row["part"] == "forget"]) for side in rows]
    each = np.exp(-losses[1]) - np.exp(-losses[0])
    assert found.difference == pytest.approx(each.mean())
    draws = np.random.default_rng(PARTS.index("forget")).integers(0, len(each), (1000, len(each)))
    # As wide as Student's t with so many rows.
    share = stats.norm.cdf(np.sqrt(len(each) / (len(each) - 1)) * stats.t.ppf(0.025, len(each) - 1))
    expected = np.quantile(each[draws].mean(axis=1), [share, 1 - share])
    assert found.interval == pytest.approx(tuple(expected), rel=1e-9)


def test_confidence_asks_for_more_than_the_values(small_run):
    """A drop that the interval does not exclude trips at the value, and not with confidence."""
    from unlearnbench.records.comparison import Comparison, Difference, Pair

    identity = CellId("m", "b", "x", 0)
    worse = np.linspace(-0.1, 0.3, 1000)
    difference = Difference("mu", "MU", "paper", 0.6, 0.5, -0.1, (-0.3, 0.1), 0.1, True, 400, resampled_worsening=worse)
    comparison = Comparison("a", "b", (Pair(identity, (difference,), {}),), (), ())

    def trips(**limits):
        return judged(comparison, [Gate(metric="mu", **limits)])[0].tripped

    assert trips(max_drop=0.05)
    assert not trips(max_drop=0.05, confidence=0.95)
    assert trips(max_drop=0.05, confidence=0.55)
    assert not trips(max_drop=0.1)
    missing = replace(difference, candidate=math.nan, reason="gone")
    assert judged(replace(comparison, pairs=(Pair(identity, (missing,), {}),)), [Gate(metric="mu", max_drop=9.0)])[
        0
    ].tripped


@pytest.mark.parametrize(
    ("gate", "message"),
    [({"metric": "x"}, "needs max_drop or max_change"), ({"max_drop": 0.1}, "names a metric"),
     ({"metric": "cost.unlearn_seconds", "max_ratio": 2.0}, "needs relative_to"),
     ({"metric": "cost.nothing", "max_ratio": 2.0}, "costs are"),
     ({"metric": "cost.training_tokens", "max_drop": 1.0}, "bounded by max_ratio"),
     ({"metric": "x", "max_dorp": 1.0}, "did you mean 'max_drop'"),
     ({"metric": "x", "max_drop": -1.0}, "must be at least 0"),
     ({"metric": "x", "max_drop": 1.0, "confidence": 1.5}, "confidence = 1.5: must be at most 0.999")],
)  # fmt: skip
def test_a_gate_that_cannot_be_judged_is_refused(gate, message):
    with pytest.raises(UsageError, match=message):
        read_gates({"gates": [gate]})


def test_the_pre_merge_study_has_gates(command):
    done = command("plan", "pre-merge", "--json")
    assert done.code == 0, done.err
    assert len([node for node in done.json["nodes"] if node["kind"] == "cell"]) == 17
    assert not os.path.exists(command.folder / "runs")


def side(cells):
    return Results("made", tuple(cells))


def change_in(pairs, method, metric):
    pair = next(pair for pair in pairs if pair.identity.method == method)
    return next(change for change in pair.metrics if change.metric == metric)


def test_score_forgetting_and_utility_are_compared(cells_with):
    before, after = (side(cells_with({"npo": (forgetting, 0.9)})) for forgetting in (0.8, 0.3))
    comparison = compare(before, after, load_plugins())
    score = change_in(comparison.pairs, "npo", "score")
    assert score.paired
    assert score.interval[1] < 0 < score.worsening
    assert change_in(comparison.pairs, "npo", "forgetting").difference == pytest.approx(-0.5)
    assert change_in(comparison.pairs, "npo", "utility").difference == pytest.approx(0)
    (found,) = judged(comparison, [Gate(metric="score", method="npo", max_drop=0.1, confidence=0.95)])
    assert found.tripped


def test_several_runs_are_compared_by_their_mean_and_what_they_vary(cells_with):
    """The drop of 0.2 is sure for rows; runs that vary as much make it unsure."""
    steady = [side(cells_with({"npo": [(level, 0.9)] * 3})) for level in (0.7, 0.5)]
    shaky = [
        side(cells_with({"npo": [(level - step, 0.9), (level, 0.9), (level + step, 0.9)]}))
        for level, step in ((0.7, 0.2), (0.5, -0.2))
    ]
    gate = [Gate(metric="score", method="npo", max_drop=0.0, confidence=0.95)]
    for sides, sure in ((steady, True), (shaky, False)):
        comparison = compare(*sides, load_plugins())
        assert len(comparison.pairs) == 5  # two references, three runs
        (mean,) = comparison.means
        assert (mean.identity.method, mean.runs) == ("npo", 3)
        score = change_in(comparison.means, "npo", "score")
        assert (score.interval[1] < 0) == sure
        (found,) = judged(comparison, gate)
        assert "mean over 3 runs" in found.title
        assert found.tripped == sure
