"""The paper's tables as data, its studies as presets, and what they are estimated to cost."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from unlearnbench.data.sources import DataSource
from unlearnbench.domain import Requires
from unlearnbench.leaderboard.published import published_for, published_tables
from unlearnbench.planning.estimates import estimated
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.plugin.specs import ModelSpec
from unlearnbench.records.node_spec import (
    CellSpec,
    PlannedBenchmark,
    PlannedMethod,
    PlannedModel,
    ReferenceSpec,
    RunSettings,
)
from unlearnbench.training.footprint import GIB

REGISTRY = load_plugins()


def test_the_published_tables_are_whole():
    tables = published_tables()
    assert [(table.number, table.benchmark, table.model, len(table.rows)) for table in tables] == [
        ("Table 3", "hp", "opt-2.7b", 14), ("Table 4", "tofu-forget01", "llama2-7b", 14),
        ("Table 4", "tofu-forget01", "phi-1.5", 14), ("Table 4", "tofu-forget01", "opt-2.7b", 14),
        ("Table 5", "muse-news", "llama2-7b", 14),
    ]  # fmt: skip
    methods = {component.spec.name for component in REGISTRY.of_kind("method")}
    for table in tables:
        metrics = {metric.name for metric in REGISTRY.find("benchmark", table.benchmark).spec.metrics}
        assert set(table.metrics) <= metrics
        assert set(table.rows) <= methods
        assert REGISTRY.find("model", table.model)
        assert all(len(values) == len(table.metrics) for values in table.rows.values())
    assert tables[0].rows["ga"] == (2.7301, 1.0984e71, 0.3667)


def test_the_doubtful_entries_are_named():
    doubtful = {(table.model, *entry) for table in published_tables() for entry in table.doubtful}
    assert doubtful == {
        ("llama2-7b", "original", "forget_quality"), ("phi-1.5", "dpo", "forget_quality"),
        ("phi-1.5", "dpo", "model_utility"),
    }  # fmt: skip


def test_published_numbers_are_shown_as_printed():
    """15.5512, 15.5311 and 15.5499 are three numbers, and 0.4690 has four decimals."""
    (table,) = (table for table in published_tables() if table.benchmark == "hp")
    place = table.metrics.index("ppl")
    assert [table.printed[f"flat-{name}"][place] for name in ("tv", "kl", "js")] == ["15.5512", "15.5311", "15.5499"]
    assert table.printed["ga"] == ("2.7301", "1.0984e71", "0.3667")
    assert table.printed["gd"][table.metrics.index("avg_acc")] == "0.4690"


def test_a_table_of_the_same_model_is_preferred():
    assert [table.model for table in published_for("tofu-forget01", "phi-1.5")] == ["phi-1.5"]
    assert len(published_for("tofu-forget01", "tiny")) == 3
    assert published_for("tofu-forget05", "tiny") == ()


def test_show_paper_prints_the_tables(command):
    text = command("show", "paper").out
    for word in ("Table 3", "Table 4", "Table 5", "1.0984e71", "† original, forget_quality: is the KS p-value", "✗"):
        assert word in text
    assert len(command("show", "paper", "--json").json["tables"]) == 5


@pytest.mark.parametrize(
    ("study", "cells", "checkpoints"),
    [
        ("paper-tofu", 42, ["locuslab/tofu_ft_llama2-7b", "open-unlearning/tofu_Llama-2-7b-chat-hf_retain99",
                            "locuslab/tofu_ft_phi-1.5", "trained here from facebook/opt-2.7b"]),
        ("paper-muse", 14, ["muse-bench/MUSE-News_target", "muse-bench/MUSE-News_retrain"]),
        ("paper-hp", 14, ["trained here from facebook/opt-2.7b", "facebook/opt-2.7b as it is"]),
    ],
)  # fmt: skip
def test_a_preset_plans_the_rows_of_its_table(command, study, cells, checkpoints):
    (command.folder / "book.txt").write_text("Once upon a time. " * 50)
    book = ("--book", "book.txt") if study == "paper-hp" else ()
    done = command("plan", study, *book, "--json")
    assert done.code == 0, done.err
    nodes = [node for node in done.json["nodes"] if node["kind"] == "cell"]
    assert len(nodes) == cells
    planned = {tuple(node["title"].split(" × ")[:2]) for node in nodes}
    for table in published_tables():
        if study.removeprefix("paper-") in table.benchmark:
            assert {(method, table.benchmark) for method in table.rows} <= planned
    for checkpoint in checkpoints:
        assert any(checkpoint in line for line in done.json["reference_models"]), done.json["reference_models"]
    for node in done.json["nodes"]:
        assert math.isfinite(node["estimate"]["seconds"])
        assert 0 < node["estimate"]["device_memory_bytes"] < 140 * GIB
    text = command("plan", study, *book).out
    assert "estimate for one H100-class GPU" in text


WORKLOAD = {"forget": 1e5, "row": 100, "scored": 1e6, "prompts": 0, "generated": 0, "questions": 0, "original": 1e6,
            "retained": 0}  # fmt: skip


def planned(workload=WORKLOAD, requires=None, models=1, reference=False, role=""):
    """The estimate of a cell of gradient ascent for a model of 10⁹ weights, or of one of its reference models."""
    shape = {"parameters": 1e9, "layers": 10, "width": 1000}
    benchmark = PlannedBenchmark.model_construct(workload=workload)
    model = PlannedModel(spec=ModelSpec("large", "of 10⁹ weights"), shape=shape, fingerprint="")
    shared = {"benchmark": benchmark, "model": model, "source": DataSource("hub"), "recipe": {}, "run": RunSettings()}
    if role:
        return estimated(ReferenceSpec.model_construct(**shared, role=role, published=""))
    values = {"epochs": 5, "batch_size": 4, "gradient_checkpointing": True}
    method = PlannedMethod.model_construct(values=values, requires=requires or Requires(), models=models,
                                           reference=reference)  # fmt: skip
    return estimated(CellSpec.model_construct(**shared, method=method))


def test_an_estimate_is_the_arithmetic_of_the_work():
    plain = planned()
    # 8 operations a weight and token in training, 2 in scoring, at 250 TFLOP/s.
    assert plain.seconds == pytest.approx((8e9 * 5e5 + 2e9 * 1e6) / 250e12)
    # Weights, gradients and moments in float32, which are more than weights in two precisions and activations.
    assert plain.memory == 16e9
    frozen = planned(requires=Requires(retain=True, original="model"))
    assert frozen.memory - plain.memory == 2e9
    assert frozen.seconds > 2 * (plain.seconds - 2e9 * 1e6 / 250e12)
    # 64 rows of 100 tokens, with two states of 1000 numbers of 2 bytes in each of 10 layers, in each of two models.
    asked = {"forget": 0, "row": 100, "scored": 0, "prompts": 5e3, "generated": 5e3, "questions": 100, "original": 0,
             "retained": 0}  # fmt: skip
    answering = planned(models=2, reference=True, workload=asked)
    assert answering.memory == pytest.approx(2 * (2.5e9 + 64 * 100 * 2 * 1000 * 2 * 10))
    assert planned(reference=True).memory == 4e9, "weights are loaded in float32"
    assert planned(workload={"forget": 1e5}) is None
    assert planned(role="retained").memory == 4e9, "nothing is trained"
    unknown = PlannedModel(spec=ModelSpec("unknown", "of no known size"), shape={}, fingerprint="")
    benchmark = PlannedBenchmark.model_construct(workload=WORKLOAD)
    assert estimated(CellSpec.model_construct(model=unknown, benchmark=benchmark)) is None


def test_running_text_goes_from_data_to_pages(text_run):
    run, printed = text_run
    records = {(r["identity"]["benchmark"], r["identity"]["method"]): r for r in printed["records"]}
    assert len(records) == 12
    for benchmark, headline in (("muse-news", ("verbmem_f", "knowmem_f", "knowmem_r", "privleak")),
                                ("hp", ("fq_gap", "ppl", "avg_acc"))):  # fmt: skip
        for method in ("original", "retained", "npo-rt", "task-vector", "whp", "flat-kl"):
            for name in headline:
                score = records[benchmark, method]["scores"][name]
                assert isinstance(score["value"], float), score
    assert records["muse-news", "retained"]["scores"]["privleak"]["value"] == 0.0
    assert records["hp", "retained"]["scores"]["fq_gap"]["value"] == 0.0
    assert records["muse-news", "whp"]["scores"]["verbmem_f"]["passes"] in (True, False)
    assert records["muse-news", "original"]["scores"]["verbmem_f"]["passes"] is None
    page = (run / "site" / "b" / "muse-news.html").read_text()
    assert "Published: Table 5, llama2-7b" in page
    assert "no row above is ranked with them" in page
    assert "1.0984e71" in (run / "site" / "b" / "hp.html").read_text()


def redone(cells, **changes):
    return [replace(cell, record=cell.record.model_copy(update=changes)) if cell.record else cell for cell in cells]


def rendered(run, cells, out):
    from unlearnbench.leaderboard.render import render
    from unlearnbench.records.results import Results

    render([Results(str(run), tuple(cells), folder=run)], out, load_plugins())
    return out


def test_rows_on_other_data_than_the_benchmark_s_are_shown_and_not_ranked(text_run, tmp_path):
    from unlearnbench.leaderboard.ranking import tables
    from unlearnbench.records.run_folder import stored_cells

    cells = redone(stored_cells(text_run[0]), unranked=["raw/retain2 is missing"])
    found = tables(cells)
    assert found
    assert all(row.place is None for table in found for row in table.rows)
    text = (rendered(text_run[0], cells, tmp_path) / "b" / "muse-news.html").read_text()
    assert "<b>Not ranked</b>: raw/retain2 is missing" in text
    assert 'title="best"' not in text


def test_redacted_texts_are_counted_and_not_shown(text_run, tmp_path):
    from unlearnbench.records.run_folder import stored_cells
    from unlearnbench.storage import read_rows

    cells = stored_cells(text_run[0])
    first = next(cell for cell in cells if cell.identity.benchmark == "muse-news")
    words = read_rows(first.folder / first.record.samples.file)[0]["prompt"]
    for shown, there in (("public", True), ("redacted", False), ("none", False)):
        samples = first.record.samples.model_copy(update={"shown": shown})
        out = tmp_path / shown
        rendered(text_run[0], redone([first], samples=samples), out)
        page = (out / "cells" / f"{first.key}.html").read_text()
        assert (words[:40] in page) is there
        assert ("row of 12 words" in page) is (shown == "redacted")


@pytest.mark.slow
def test_a_method_without_its_data_is_not_applicable_and_the_rest_stands(command):
    """News without retain texts: what needs none of them runs, and no row is ranked."""
    from unlearnbench.benchmarks.muse import generated

    data = command.folder / "news"
    for name, rows in generated.tables(0, "quick").items():
        if not name.startswith(("scal", "sust")) and name not in ("raw/retain1", "raw/holdout"):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / f"{name}.json").write_text(json.dumps(rows))
    words = ("run", "--plugin", str(command.nano), "--model", "nano", "--device", "cpu", "--data-dir", "news",
             "-b", "muse-news", "-m", "ga", "-m", "gd", "--limit", "2", "--set", "benchmarks.*.chunk_tokens=64",
             "--set", "benchmarks.*.verbatim_tokens=4", "--set", "benchmarks.*.answer_tokens=2", "--json")  # fmt: skip
    refused = command(*words)
    assert refused.code == 4
    assert "--allow-missing raw/retain1" in refused.err
    done = command(*words, "--allow-missing", "raw/retain1", "--allow-missing", "raw/holdout")
    assert done.code == 0, done.err
    cells = {cell["method"]: cell for cell in done.json["cells"]}
    assert cells["ga"]["status"] == "done"
    assert cells["gd"]["status"] == "not-applicable"
    assert cells["gd"]["reason"] == "gd needs a retain set, and muse-news has none here"
    record = next(r for r in done.json["records"] if r["identity"]["method"] == "ga")
    assert record["unranked"] == ["raw/retain1 is missing", "raw/holdout is missing"]
    assert record["samples"]["shown"] == "redacted"
