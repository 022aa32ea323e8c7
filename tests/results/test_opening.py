"""Pages of results from several people: what does not recompute is shown apart, and what was withdrawn goes."""

from __future__ import annotations

import json
import shutil

import pytest
from made_bundles import changed, edited, of_cell

from unlearnbench.leaderboard.ranking import tables
from unlearnbench.leaderboard.render import render
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.results.bundle import read_badge, write_bundle
from unlearnbench.results.opening import opened
from unlearnbench.results.verification import held
from unlearnbench.storage import file_digest

WORDS = {"contact": "ada@example.org", "licence": "CC-BY-4.0", "budget": "one setting", "selection": "defaults"}


@pytest.fixture
def folder(small_run, tmp_path):
    """A folder of submissions with one that holds."""
    (tmp_path / "in").mkdir()
    write_bundle(small_run[0], tmp_path / "in" / "sound.zip", WORDS, "0.1.0")
    return tmp_path / "in"


def forged(sound, path, value=0.97123456):
    """A copy whose FQ of one method is another, with all hashes mended."""

    def forge(record):
        for entry in (record["scores"]["forget_quality"], record["scores"]["forget_quality"]["editions"]["paper"]):
            entry["value"] = value

    return changed(sound, path, lambda files: edited(files, of_cell(files, "npo", "record.json"), forge))


def test_sources_of_different_coverage_stand_on_one_site(small_run, text_run, tmp_path):
    """Somebody skips a benchmark on any leaderboard."""
    with opened([small_run[0], text_run[0]]) as found:
        render(found, tmp_path / "site", load_plugins())
    text = (tmp_path / "site" / "index.html").read_text()
    for name in ("tofu-forget10", "muse-news", "hp"):
        assert (tmp_path / "site" / "b" / f"{name}.html").is_file()
    assert "<td>–</td>" in text, "where a method has no cell"


def test_a_submission_that_does_not_recompute_is_shown_apart(folder, command):
    forged(folder / "sound.zip", folder / "forged.zip")
    done = command("render", str(folder), "-o", "site")
    assert done.code == 7
    assert "forged.zip: npo--" in done.err
    assert done.out.strip().endswith("index.html"), "the site is there all the same"
    site = command.folder / "site"
    page = (site / "b" / "tofu-forget10.html").read_text()
    assert "refuted: npo--tofu-forget10" in page
    assert 'data-value="0.97123456"' not in page
    assert page.count("<bdi>npo</bdi>") == 2, "the sound one has its place"
    assert page.count("<bdi>sound.zip</bdi>") == 17, "what both hold alike is from the one without a fault"
    records = json.loads((site / "data" / "records.json").read_text())["records"]
    assert all(record["scores"]["forget_quality"]["value"] != 0.97123456 for record in records)
    index = (site / "index.html").read_text()
    assert '<strong class="partial">1 fault</strong>' in index
    assert "Every score shown was recomputed" in index, "of those that are shown"
    refused = command("render", str(folder), "-o", "strict", "--strict")
    assert refused.code == 7
    assert not (command.folder / "strict").exists()


def test_a_failed_verification_leaves_a_badge_too(folder, command):
    path = forged(folder / "sound.zip", folder / "forged.zip")
    assert command("verify", str(path)).code == 7
    badge = read_badge(path)
    (key,) = badge.refuted
    assert key.startswith("npo--")
    assert key not in badge.cells
    assert len(badge.cells) == 16
    with opened([path]) as (results,):
        shown = held(results, load_plugins())
    assert {cell.status for cell in shown.cells} == {"done", "refuted"}
    assert next(cell for cell in shown.cells if cell.status == "refuted").record is None


def test_every_score_recomputes_is_said_where_it_is_true(small_run, tmp_path):
    with opened([small_run[0]]) as found:
        render(found, tmp_path / "site", load_plugins())
    assert "recomputed" not in (tmp_path / "site" / "index.html").read_text()


def test_one_broken_file_of_a_folder_is_named_and_skipped(folder, command):
    whole = (folder / "sound.zip").read_bytes()
    (folder / "cut.zip").write_bytes(whole[: len(whole) // 2])
    done = command("render", str(folder), "-o", "site")
    assert done.code == 7
    assert "cut.zip is not a readable bundle" in done.err
    index = (command.folder / "site" / "index.html").read_text()
    assert "cut.zip" in index
    assert "not read" in index
    assert "sound.zip" in index
    assert command("render", str(folder), "-o", "other", "--strict").code == 7
    # One that is named by itself is not passed over.
    assert command("render", str(folder / "cut.zip"), "-o", "other").code == 7
    assert not (command.folder / "other").exists()


def test_what_was_withdrawn_goes_and_what_is_others_stays(folder, small_run, text_run, command):
    write_bundle(text_run[0], folder / "withdrawn.zip", WORDS, "0.1.0")
    assert command("render", str(folder), "-o", "site").code == 0
    site = command.folder / "site"
    mine, edited = site / "b" / "notes.html", site / "b" / "hp.html"
    mine.write_text("my own")
    edited.write_text("somebody changed this")
    assert (site / "b" / "muse-news.html").is_file()
    assert command("publish", "site", "--to", "dir:www").code == 0
    (folder / "withdrawn.zip").unlink()
    assert command("render", str(folder), "-o", "site").code == 0
    assert not (site / "b" / "muse-news.html").exists()
    assert not list((site / "cells").glob("*muse-news*"))
    assert mine.read_text() == "my own"
    assert edited.read_text() == "somebody changed this"
    done = command("publish", "site", "--to", "dir:www", "--dry-run")
    assert done.code == 0, done.err
    assert "0 removed" not in done.out
    assert "- b/muse-news.html" in done.out
    assert not (command.folder / "www" / ".unlearnbench-pages.json").exists(), "a list of this folder's own"


def test_a_hostile_list_of_pages_removes_nothing_else(small_run, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    names = ("../kept.txt", str(kept), "b/../../kept.txt", "a/b/c/d")
    (site / ".unlearnbench-pages.json").write_text(json.dumps({name: file_digest(kept) for name in names}))
    with opened([small_run[0]]) as found:
        render(found, site, load_plugins())
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("words", [("render", "RUN", "-o", "no/site"), ("new", "method", "m", "-o", "no/new")])
def test_a_place_that_cannot_be_written_is_one_line(words, small_run, command):
    (command.folder / "no").write_text("a file where a folder should be")
    done = command(*(str(small_run[0]) if word == "RUN" else word for word in words))
    assert done.code == 4, done.err
    assert done.err.count("\n") == 1
    assert "choose another place" in done.err


def test_a_space_that_cannot_be_reached_is_one_line(small_run, command):
    assert command("render", str(small_run[0]), "-o", "site").code == 0
    done = command(
        "publish", "site", "--to", "hf-space:acme/board", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0"
    )
    assert done.code == 4, done.err
    assert "Space acme/board cannot be reached" in done.err.strip().splitlines()[-1]
    assert "Traceback" not in done.err


# -- gates that are found, or missed aloud ---------------------------------------------------------------------------


def test_printed_records_bring_their_gates_and_none_found_is_an_error(small_run, command):
    run = command.folder / "run"
    shutil.copytree(small_run[0], run, ignore=shutil.ignore_patterns("site"))
    printed = command("results", str(run), "--json")
    (command.folder / "plain.json").write_text(printed.out)
    none = command("compare", "plain.json", "plain.json")
    assert none.code == 4
    assert "no gate was judged: plain.json has no [[gates]]" in none.err
    assert command("compare", "plain.json", "plain.json", "--no-gates").code == 0
    content = json.loads(printed.out) | {"gates": [{"metric": "model_utility", "max_drop": 0.0}]}
    (command.folder / "gated.json").write_text(json.dumps(content))
    assert command("compare", "plain.json", "gated.json").code == 0
    for record in content["records"]:
        record["scores"]["model_utility"]["value"] -= 0.1
    (command.folder / "worse.json").write_text(json.dumps(content))
    assert command("compare", "plain.json", "worse.json").code == 6


def test_a_gate_over_a_mistyped_metric_is_refused_before_anything_runs(command):
    study = command.folder / "study.toml"
    study.write_text(
        '[study]\nmethods = ["ga"]\nbenchmarks = ["tofu-forget05"]\nmodels = ["tiny"]\n[data]\nsource = "generated"\n'
        '[[gates]]\nmetric = "model_utilty"\nmax_drop = 0.1\n'
    )
    done = command("plan", str(study))
    assert done.code == 4
    assert "unknown metric in [[gates]] 'model_utilty'; did you mean 'model_utility'?" in done.err


# -- rows over seeds --------------------------------------------------------------------------------------------------


def cells_of(small_run, changes):
    """The run's npo and ga as rows of several seeds, with values by method, metric and seed."""
    from dataclasses import replace

    with opened([small_run[0]]) as (results,):
        base = {cell.identity.method: cell for cell in results.cells}
    made = []
    for method, metrics in changes.items():
        for seed in range(len(next(iter(metrics.values())))):
            cell = base[method]
            record = cell.record
            scores = {
                name: entry.model_copy(update={"value": metrics[name][seed], "interval": None, **extra})
                if name in metrics else entry
                for name, entry in record.scores.items()
                for extra in [{"better": "target", "target": 0.0} if name == "forget_rouge_l" else {}]
            }  # fmt: skip
            identity = record.identity.model_copy(update={"seed": seed})
            record = record.model_copy(update={"scores": scores, "identity": identity, "cell": f"{method}-{seed}"})
            made.append(
                replace(cell, key=f"{method}-{seed}", identity=replace(cell.identity, seed=seed), record=record)
            )
    return made


def test_seeds_on_either_side_of_a_target_are_as_far_from_it_as_they_are(small_run):
    """−99.8 and 99.8 are not 0, which would be best."""
    cells = cells_of(small_run, {"npo": {"forget_rouge_l": [-99.8, 99.8]}, "ga": {"forget_rouge_l": [3.0, 5.0]}})
    (table,) = tables(cells)
    values = {row.method: row.values["forget_rouge_l"] for row in table.rows}
    assert abs(values["npo"].value) == pytest.approx(99.8)
    assert "both sides of 0" in values["npo"].reason
    assert values["ga"].value == pytest.approx(4.0)


def test_p_values_over_seeds_are_averaged_by_their_power_of_ten(small_run):
    cells = cells_of(small_run, {"npo": {"forget_quality": [1e-2, 1e-8]}, "ga": {"forget_quality": [0.0, 1e-3]}})
    (table,) = tables(cells)
    values = {row.method: row.values["forget_quality"] for row in table.rows}
    assert values["npo"].value == pytest.approx(1e-5)
    low, high = values["npo"].interval
    assert low * high == pytest.approx(1e-10)
    assert 0 < low < 1e-8
    assert values["npo"].spread is None
    assert values["ga"].value == 0.0


def test_another_word_in_a_metric_s_description_asks_for_no_training(small_run, command, monkeypatch):
    """`rescore` scores again from the samples, and the next run takes up from there."""
    from unlearnbench.planning.plan import make_plan
    from unlearnbench.planning.study import check_study
    from unlearnbench.records.code_digest import source_digest
    from unlearnbench.records.run_folder import read_own_study
    from unlearnbench.running.run_store import finished

    run = command.folder / "run"
    shutil.copytree(small_run[0], run, ignore=shutil.ignore_patterns("site"))
    registry = load_plugins([str(command.nano)])

    def states():
        plan = make_plan(check_study(read_own_study(run), [str(command.nano)]), registry)
        return {node.key: finished(run, node, command.cache) is not None for node in plan.cells}

    before = states()
    assert all(before.values())
    monkeypatch.setattr("unlearnbench.planning.plan.modules_digest", lambda names: "edited" if names else "")
    assert not any(states().values()), "scores of other code are not kept in silence"
    assert states().keys() == before.keys(), "and what was measured is the same"
    monkeypatch.setattr("unlearnbench.results.rescoring.modules_digest", lambda names: "edited" if names else "")
    from unlearnbench.results.rescoring import rescore

    made = rescore(run, registry)
    assert len(made) == 17
    assert all(cell.changes == () for cell in made)
    assert all(states().values())
    target = "unlearnbench.benchmarks.tofu.benchmark:Tofu"
    scoring = registry.find("benchmark", "tofu-forget10").spec.scoring
    assert source_digest(target, scoring) != source_digest(target)
    done = command("rescore", str(run), "--plugin", str(command.nano))
    assert done.code == 0, done.err
    assert "17 cells scored again, 0 of them with other scores or words" in done.out
