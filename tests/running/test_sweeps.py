"""A study with a sweep from the command line: run, resumed, handed in, made again, and shown."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest

from unlearnbench import load_study, plan
from unlearnbench.records.record import read_record
from unlearnbench.running.node_pool import NodePool
from unlearnbench.running.run_store import kept
from unlearnbench.running.works import WORKER
from unlearnbench.storage import read_sealed, write_sealed

# Long enough for the retained model to be told from the original.
LONGER = ("--set", "recipe.epochs=16")
SWEEP = ("--set", "sweep.methods.*.learning_rate=[1e-3, 3e-3]")


@pytest.fixture(scope="module")
def swept(tmp_path_factory, command_in):
    """A finished sweep of two methods with unlearning repeated, and what its run printed."""
    command = command_in(tmp_path_factory.mktemp("swept"))
    words = command.study("-m", "ga", "-m", "npo", "-b", "tofu-forget10", *SWEEP, "--name", "swept", *LONGER,
                          "--set", "study.seeds={reference = 1, unlearning = 2}")  # fmt: skip
    done = command(*words, "--json")
    assert done.code == 0, done.err
    return command, words, done.json


def test_every_setting_has_its_cells_and_all_share_the_references(swept):
    _, _, printed = swept
    cells = [(c["method"], c["setting"], c["repeat"]) for c in printed["cells"]]
    assert len(cells) == len(set(cells)) == 2 + 2 * 2 * 2
    references = {json.dumps(record["samples"]["references"], sort_keys=True) for record in printed["records"]
                  if record["identity"]["method"] in ("ga", "npo")}  # fmt: skip
    assert len(references) == 1
    rates = {record["identity"]["hyperparameters"].get("learning_rate") for record in printed["records"]}
    assert {1e-3, 3e-3} <= rates
    assert {(record["selection"], record["settings_tried"]) for record in printed["records"]} == {("", 0), ("score", 2)}


def test_a_sweep_resumes(swept):
    command, words, _ = swept
    again = command(*words, "--json")
    assert again.code == 0
    assert again.err.count("done (kept)") == 2 + 2 + 8  # models, references, methods


def test_the_page_shows_one_row_for_each_method_and_what_was_tried(swept):
    command, _, _ = swept
    assert command("render", "runs/swept", "-o", "site").code == 0
    page = (command.folder / "site" / "b" / "tofu-forget10.html").read_text()
    assert "Closed division" in page
    assert "chose by score on validation rows, which the rows of this table do not contain" in page
    assert "on its test rows" not in page
    assert "What varies between runs" in page
    lines = list(csv.DictReader(io.StringIO((command.folder / "site/data/tofu-forget10-places.csv").read_text())))
    methods = [line for line in lines if line["method"] in ("ga", "npo")]
    assert [line["settings_tried"] for line in methods] == ["2", "2"]


@pytest.mark.slow
def test_a_setting_is_made_again_by_itself(swept):
    """A cell's rerun has its seed, its repetition, its hyperparameters and its rows."""
    command, _, printed = swept
    given = ("--contact", "a", "--licence", "b", "--budget", "c", "--selection", "d")
    assert command("bundle", "runs/swept", "-o", "swept.zip", *given).code == 0
    assert command("verify", "swept.zip", "--plugin", str(command.nano)).code == 0
    key = next(c["key"] for c in printed["cells"] if c["method"] == "npo" and c["repeat"] == 1)
    done = command("verify", "swept.zip", "--rerun", key, "-o", "again", "--device", "cpu", "--json",
                   "--plugin", str(command.nano))  # fmt: skip
    assert done.code == 0, done.err
    assert all(distance["stored"] == distance["rerun"] for distance in done.json["distances"]
               if distance["stored"] == distance["stored"])  # fmt: skip


def test_a_sweep_is_compared_setting_by_setting_and_by_the_mean_of_its_runs(swept):
    command, _, _ = swept
    done = command("compare", "runs/swept", "runs/swept", "--no-gates", "--json")
    assert done.code == 0, done.err
    assert len(done.json["pairs"]) == 2 + 8
    assert sorted((mean["method"], mean["setting"], mean["runs"]) for mean in done.json["means"]) == [
        (method, f"learning_rate={rate}", 2) for method in ("ga", "npo") for rate in (0.001, 0.003)
    ]
    assert all(mean["metrics"]["score"]["difference"] in (0, None) for mean in done.json["means"])


@pytest.fixture(scope="module")
def tried_first(tmp_path_factory, command_in):
    """A study whose settings are tried in the first run: the command, its words and what it printed."""
    command = command_in(tmp_path_factory.mktemp("first"))
    words = command.study("-m", "ga", "-b", "tofu-forget10", *LONGER, "--attack", "quantise", "--name", "first",
                          "--set", "sweep.methods.*.learning_rate=[1e-3, 3e-3, 1e-2]", "--set", "sweep.runs=first",
                          "--set", "study.seeds={reference = 2, unlearning = 2}")  # fmt: skip
    done = command(*words, "--json")
    assert done.code == 0, done.err
    return command, words, done


def endings(done):
    return [(cell["key"], cell["status"], cell["reason"]) for cell in done.json["cells"]]


def test_settings_tried_in_the_first_run_alone_choose_for_the_others(tried_first):
    """Other settings have no cells in later runs, which is no failure; attacks are run on the chosen one alone."""
    command, words, done = tried_first
    runs = {}
    for cell in done.json["cells"]:
        if cell["method"] == "ga":
            runs.setdefault((cell["seed"], cell["repeat"], cell["attack"]), []).append(cell)
    assert {cell["status"] for cell in runs.pop((0, 0, ""))} == {"done"}
    assert len(runs) == 3 + 4
    chosen = {cell["setting"] for cells in runs.values() for cell in cells if cell["status"] == "done"}
    assert len(chosen) == 1
    for cells in runs.values():
        assert sorted(cell["status"] for cell in cells) == ["done", "not-applicable", "not-applicable"]
        assert {cell["reason"] for cell in cells} == {"", f"the sweep chooses {next(iter(chosen))}"}
    site = command.folder / "runs/first/site"
    page = (site / "b" / "tofu-forget10.html").read_text()
    assert "settings were tried in the first run, and the chosen one alone in the others" in page
    assert "failed</small>" not in page
    assert "not-applicable" not in page
    (line,) = [line for line in csv.DictReader(io.StringIO((site / "data/tofu-forget10-places.csv").read_text()))
               if line["method"] == "ga"]  # fmt: skip
    assert {line["setting"]} == chosen
    assert (line["settings_tried"], line["settings_failed"]) == ("3", "0")
    again = command(*words, "--json")
    assert again.err.count("done (kept)") == 2 * 2 + 2 * 2 + 3 + 3 + 2 * 2 + 4, "models, cells, and attacks"


def test_a_study_with_a_choice_goes_on_from_its_bundle(tried_first, command):
    first, words, done = tried_first
    given = ("--contact", "a", "--licence", "b", "--budget", "c", "--selection", "d")
    bundle = str(command.folder / "first.zip")
    assert first("bundle", "runs/first", "-o", bundle, *given).code == 0
    verified = first("verify", bundle, "--plugin", str(command.nano), "--json")
    assert verified.code == 0, verified.err
    command.cache = command.folder / "empty"
    elsewhere = command(*words, "--from", bundle, "--json")
    assert elsewhere.code == 0, elsewhere.err
    assert not (command.cache / "models").exists(), "no model is made to find that a cell is left out"
    assert endings(elsewhere) == endings(done)


@pytest.fixture
def copied(tried_first, command):
    """A copy of the run folder, to be changed."""
    run = command.folder / "runs/first"
    shutil.copytree(tried_first[0].folder / "runs/first", run)
    return run


def cells_of(done, method, **which):
    return [
        cell for cell in done.json["cells"]
        if cell["method"] == method and all(cell[name] == value for name, value in which.items())
    ]  # fmt: skip


def test_what_was_not_run_for_a_reason_that_holds_no_more_is_run(tried_first, command, copied):
    """Whoever failed has been measured since, or scores anew: what was noted of others then binds nobody."""
    _, words, done = tried_first
    one, other = cells_of(done, "ga", seed=1, attack="", status="done")
    (retained,) = cells_of(done, "retained", seed=1, attack="quantise")
    (original,) = cells_of(done, "original", seed=1, attack="quantise")
    for cell, note in (
        (one, "no setting of the sweep was measured"),
        (other, "the sweep chooses learning_rate=0.02"),
        (retained, "the cell without the attack ended as timed-out"),
        (original, "needs retained under quantise, which ended as not-applicable: the cell without the attack ended"),
    ):
        settle(copied / "cells" / cell["key"], status="not-applicable", reason=note)
    again = command(*words, "--json")
    assert again.code == 0, again.err
    assert endings(again) == endings(done)


@pytest.mark.parametrize(("status", "holds"), [("diverged", True), ("timed-out", False), ("failed", False)])
def test_a_choice_waits_for_a_setting_that_may_be_measured_yet(tried_first, copied, status, holds):
    """One that diverged will again; of the others one may be the best."""
    first, _, done = tried_first
    left_out = {cell["key"] for cell in cells_of(done, "ga", status="not-applicable")}
    setting = next(cell["setting"] for cell in cells_of(done, "ga", seed=1, status="not-applicable"))
    (rival,) = cells_of(done, "ga", seed=0, repeat=0, attack="", setting=setting)
    settle(copied / "cells" / rival["key"], status=status, reason="")
    made = plan(load_study(copied / "study.toml", plugins=[str(first.nano)]))
    found = kept(copied, made.nodes, first.cache)
    assert rival["key"] not in found
    assert left_out & found.keys() == (left_out if holds else set())


def test_a_choice_is_made_once_while_a_cell_waits_for_a_slot(tried_first, copied, monkeypatch):
    """A pool looks fifty times a second."""
    first, _, done = tried_first
    made = plan(load_study(copied / "study.toml", plugins=[str(first.nano)]))
    attacked = cells_of(done, "ga", seed=0, repeat=0, attack="quantise", status="done")
    (node,) = [node for node in made.cells if node.key == attacked[0]["key"]]
    shutil.rmtree(copied / "cells" / node.key)
    read = []
    monkeypatch.setattr("unlearnbench.records.chosen.read_record", lambda path: read.append(path) or read_record(path))
    with NodePool(copied, first.cache, made.study.run, [], WORKER) as pool:
        pool.add([node])
        for _ in range(5):
            assert pool.step(0) == []
    assert len(read) == len(set(read)) == 3 + 2, "three settings, and both reference models"


def settle(cell, **how):
    """A planned cell was not run, or stopped: this is noted of it."""
    hashes = ("record_sha256", "samples_sha256", "spec_sha256")
    status = read_sealed(cell / "status.json", "")
    for name in ("record.json", "samples.jsonl.gz"):
        (cell / name).unlink()
    write_sealed(cell / "status.json", status | dict.fromkeys(hashes, "") | how)


def test_settings_that_diverge_are_counted_and_another_stands_for_the_method(command):
    words = command.study("-m", "ga", "-b", "tofu-forget05", "--name", "far",
                          "--set", "sweep.methods.*.learning_rate=[1e-3, 1e30]")  # fmt: skip
    done = command(*words, "--json")
    states = {cell["setting"]: cell["status"] for cell in done.json["cells"] if cell["method"] == "ga"}
    assert states["learning_rate=0.001"] == "done"
    assert states["learning_rate=1e+30"] != "done"
    assert command("render", "runs/far", "-o", "site").code == 0
    page = (command.folder / "site" / "b" / "tofu-forget05.html").read_text()
    assert "1 failed" in page
    assert page.count("on its test rows") == 1
    assert "learning_rate=0.001" in page
