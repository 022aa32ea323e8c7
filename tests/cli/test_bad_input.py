"""Requests that cannot be met: one line that names the value and the remedy, exit code 4, nothing written."""

from __future__ import annotations

import json

import pytest

from unlearnbench.benchmarks.tofu import generated

STUDY = ("--name", "x", "-b", "tofu-forget05")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("-m", "npoo", *STUDY), "unknown method 'npoo'; did you mean 'npo'"),
        (("-m", "npo", "--name", "x", "-b", "tofu-forget5"), "unknown benchmark 'tofu-forget5'; did you mean"),
        (("-m", "npo", *STUDY, "--set", "methods.npo.betta=1"), "unknown key of methods.npo 'betta'; did you mean"),
        (("-m", "npo", *STUDY, "--set", "methods.npo.beta=low"), "methods.npo.beta = 'low': expected float"),
        (("-m", "npo", *STUDY, "--set", "methods.npo.beta=0.0"), "methods.npo.beta = 0.0: must be above 0"),
        (("-m", "npo", *STUDY, "--set", "methods.npo.edition=old"), "must be one of 'paper', 'as-released'"),
        (("-m", "npo", *STUDY, "--set", "methods.ga.epochs=1"), "its settings would change nothing"),
        (("-m", "npo", *STUDY, "--set", "methods.*.epoch=1"), "unknown key of methods.* 'epoch'; did you mean"),
        (("-m", "npo", *STUDY, "--set", "recipe.epochs=-1"), "recipe.epochs = -1: must be at least 0"),
        (("-m", "npo", *STUDY, "--set", "studdy.name=3"), "unknown section 'studdy'; did you mean 'study'"),
        (("-m", "npo", *STUDY, "--limit", "-3"), "benchmarks.tofu-forget05.limit = -3: must be at least 0"),
        (("-m", "npo", *STUDY, "--data-dir", "nowhere"), "does not exist; give --data-dir a folder"),
        (("-m", "npo", *STUDY, "--data", "local"), "needs data.dir"),
        (("-m", "npo", *STUDY, "--set", "data.templates=none.txt"), "data.templates"),
        (("-m", "npo", *STUDY, "--jobs", "0"), "run.jobs = 0: must be at least 1"),
        (("-m", "npo", *STUDY, "--jobs", "two"), "'two' is not a valid integer"),
        (("-m", "npo", *STUDY, "--job", "2"), "No such option"),
        (("-m", "npo", *STUDY, "--set", "run.executor=slurrm"), "unknown executor 'slurrm'"),
        (("study.toml",), "study file 'study.toml' does not exist; built-in studies: demo, paper-hp"),
        (("-m", "npo", *STUDY, "--set", "recipe.muse-news.epochs=1"), "unknown benchmark in [recipe] 'muse-news'"),
        (("-m", "npo", *STUDY, "--set", "data.files.bok=x.txt"), "unknown table 'bok'"),
        (("-m", "npo", *STUDY, "--allow-missing", "full"), "unknown table that may be missing 'full'"),
        (("-m", "npo", *STUDY, "--stand-in", "full"), "--stand-in 'full': expected TABLE=TABLE"),
        (("-m", "npo", "--name", "x", "-b", "hp", "--book", "no.txt", "--data", "local"), "no such file"),
        (("-m", "npo", "--name", "x", "-b", "hp", "--data", "hub"), "name a book: --book FILE"),
        (("-m", "npo", *STUDY, "--model", "tinny"), "unknown model 'tinny'; did you mean 'tiny'"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line(command, words, complaint):
    base = ("run", "--data", "generated") if "--data" not in words and "--data-dir" not in words else ("run",)
    model = () if "--model" in words or words == ("study.toml",) else ("--model", "tiny")
    done = command(*base, *words, *model)
    assert done.code == 4, done.err
    assert done.out == ""
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert complaint in lines[0]
    assert not (command.folder / "runs").exists()


def test_a_run_folder_that_is_a_file_is_refused(command):
    (command.folder / "taken").write_text("mine")
    done = command("run", "--data", "generated", "-m", "npo", *STUDY, "--model", "tiny", "--out", "taken")
    assert done.code == 4
    assert "cannot use taken as a run folder" in done.err
    assert (command.folder / "taken").read_text() == "mine"


def test_nothing_selected_is_exit_5(command):
    done = command("run", "--data", "generated", "--name", "x", "-b", "tofu-forget05", "--model", "tiny")
    assert done.code == 5
    assert "the study selects no method" in done.err


def folder_with(tmp_path, changes):
    found = generated.tables(0, "quick")
    names = ("full", "forget05", "retain95", "forget05_perturbed", "retain_perturbed", "real_authors_perturbed",
             "world_facts_perturbed")  # fmt: skip
    found = {name: [dict(row) for row in found[name]] for name in names}
    changes(found)
    for name, rows in found.items():
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (lambda found: found.pop("retain_perturbed"), "retain_perturbed.json is missing"),
        (lambda found: found["forget05"][1].pop("answer"), "table forget05, row 1: field 'answer' is missing"),
        (lambda found: found["retain95"].append(found["forget05"][0]), "forget05 and retain95 overlap in 1 rows"),
    ],
)
def test_a_data_folder_that_cannot_be_used(command, tmp_path, changes, complaint):
    data = tmp_path / "data"
    data.mkdir()
    folder = folder_with(data, changes)
    done = command("run", "-m", "ga", *STUDY, "--model", "tiny", "--data-dir", folder)
    assert done.code == 4
    assert complaint in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (command.folder / "runs").exists()


def test_data_that_is_not_json_lines(command, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    folder = folder_with(data, lambda found: None)
    (data / "full.json").write_text('{"question": ')
    done = command("run", "-m", "ga", *STUDY, "--model", "tiny", "--data-dir", folder)
    assert (done.code, "not JSON lines" in done.err) == (4, True)
