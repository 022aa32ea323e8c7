from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time

import pytest

METHODS = ("original", "retained", "ga", "gd", "kl", "po", "mismatch", "llmu", "dpo", "npo", "npo-rt",
           "task-vector", "whp", "flat-tv", "flat-js", "flat-pearson", "flat-kl")  # fmt: skip


def test_what_is_registered_is_listed(command):
    assert tuple(m["name"] for m in command("list", "methods", "--json").json["methods"]) == METHODS
    names = [b["name"] for b in command("list", "benchmarks", "--json").json["benchmarks"]]
    variants = [f"muse-news-{study}-{step}" for study in ("scal", "sust") for step in (2, 3, 4)]
    assert names == ["tofu-forget01", "tofu-forget05", "tofu-forget10", "muse-news", *variants, "hp"]
    assert {"tiny", "llama2-7b", "phi-1.5", "opt-2.7b"} <= {
        model["name"] for model in command("list", "models", "--json").json["models"]
    }
    assert "unlearnbench/methods" in command("list", "plugins").out
    assert "local" in command("list", "executors").out
    assert "html" in command("list", "reporters").out


def test_show_says_what_a_method_needs_and_takes(command):
    facts = command("show", "npo", "--json").json
    assert facts["needs"] == {"forget": True, "retain": False, "template": False, "original": "logprobs"}
    assert facts["citation"].endswith("arXiv:2404.05868")
    assert facts["editions"] == ["paper", "as-released", "as-released-muse"]
    assert {
        "name": "beta",
        "type": "float",
        "default": 0.1,
        "range": "above 0",
        "summary": "inverse temperature β",
    } in (facts["parameters"])
    text = command("show", "flat-kl").out
    assert "needs: forget yes, retain no, template yes, original model no" in text
    assert "model_utility" in command("show", "tofu-forget05").out
    assert "recipe" in command("show", "tiny").out
    unknown = command("show", "flat-tw")
    assert unknown.code == 4
    assert "did you mean 'flat-tv'" in unknown.err


def test_help_names_every_command_once_with_examples_and_colours_can_be_left_out(command):
    from unlearnbench.cli.main import HIDDEN, SECTIONS, cli

    told = [command for commands in SECTIONS.values() for command in commands]
    assert {*told, *HIDDEN} == set(cli.commands.values())
    text = command("-h").out
    for each in told:
        assert len(re.findall(rf"^  {each.name} ", text, re.M)) == 1, each.name
    assert "unlearnbench demo --quick" in text
    assert "_UNLEARNBENCH_COMPLETE" in text
    assert command("-V").out == command("--version").out
    assert command("--no-color", "list", "methods").out == command("list", "methods").out


@pytest.mark.parametrize("words", [("list", "methods"), ("--help",), ("show", "npo"), ("--version",)])
def test_looking_imports_no_torch_and_takes_no_time(words, tmp_path):
    code = (
        "import sys, unlearnbench.cli.main as c\n"
        f"c.run_command({list(words)!r})\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'datasets', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Half a second on an idle machine; several times that is allowed where other tests run beside.
    assert time.perf_counter() - begun < 2.5


def test_planning_imports_no_torch(tmp_path):
    code = (
        "import sys, unlearnbench.cli.main as c\n"
        "code = c.run_command(['plan', '-m', 'all', '-b', 'tofu-forget05', '--model', 'tiny', '--data', 'generated'])\n"
        "assert code == 0 and not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "17 cells, 19 of 19 nodes to run" in done.stdout


def test_a_plan_trains_the_original_model_once_for_three_splits(command):
    splits = [word for split in ("01", "05", "10") for word in ("-b", f"tofu-forget{split}")]
    plan = command("plan", "-m", "all", *splits, "--model", "tiny", "--data", "generated", "--json").json
    models = [node["title"] for node in plan["nodes"] if node["kind"] == "model"]
    assert models == [
        "original model tiny (full)", "retained model tiny (retain99)", "retained model tiny (retain95)",
        "retained model tiny (retain90)",
    ]  # fmt: skip
    assert sum(node["kind"] == "cell" for node in plan["nodes"]) == 51


def test_run_prints_json_alone_on_stdout_and_progress_on_stderr(small_run):
    _, done = small_run
    printed = json.loads(done.out)
    assert printed["exit_code"] == 0
    assert "[19/19]" in done.err
    assert tuple(sorted(cell["method"] for cell in printed["cells"])) == tuple(sorted(METHODS))
    scores = printed["records"][0]["scores"]
    assert set(scores) == {
        "forget_quality", "forget_quality_log10", "model_utility", "forget_rouge_l", "retain_rouge_l",
        *(f"{part}_{term}" for part in ("retain", "real_authors", "world_facts", "forget")
          for term in ("rouge", "probability", "truth_ratio")),
        *(f"{part}_{term}" for part in ("retain", "forget")
          for term in ("extraction_strength", "exact_memorisation", "repetition", "entropy")),
        "forget_paraphrase_probability", "forget_paraphrase_rouge", "forget_truth_preference", "forget_answer_kl",
    }  # fmt: skip
    utility = scores["model_utility"]
    assert set(utility) >= {"value", "n", "interval", "edition", "editions"}
    assert utility["edition"] == "paper"
    assert set(utility["editions"]) == {"paper", "as-released"}
    assert utility["value"] == utility["editions"]["paper"]["value"]


def test_results_show_either_edition_of_one_measurement(small_run, command):
    run, _ = small_run
    paper = command("results", str(run), "--json").json["records"]
    released = command("results", str(run), "--edition", "as-released", "--json").json["records"]
    for one, other in zip(paper, released, strict=True):
        assert (
            other["scores"]["model_utility"]["value"]
            == one["scores"]["model_utility"]["editions"]["as-released"]["value"]
        )
        assert other["comparability"]["key"]["edition"] == "as-released"
        assert other["comparability"]["sha256"] != one["comparability"]["sha256"]
    table = command("results", str(run)).out
    assert "tofu-forget10 · nano · generated data" in table
    assert "retained" in table


def test_the_schema_describes_a_record(small_run, command):
    run, _ = small_run
    schema = command("schema").json
    record = json.loads(next(run.glob("cells/npo--*/record.json")).read_text())
    assert set(record) == set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_the_cache_is_shown_and_cleared(command, tmp_path):
    folder = tmp_path / "models" / "original--x"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"0" * 2**20)
    shown = command("cache", UNLEARNBENCH_CACHE=str(tmp_path))
    assert "1.0 MiB" in shown.out
    cleared = command("cache", "--clear", "--json", UNLEARNBENCH_CACHE=str(tmp_path)).json
    assert cleared["cleared"] is True
    assert not folder.exists()


def test_an_internal_error_has_a_code_of_its_own(monkeypatch, capsys):
    from unlearnbench.cli import main, show

    monkeypatch.setattr(show, "registry_of", lambda plugins: 1 / 0)
    assert main.run_command(["list", "methods"]) == 3
    assert "internal error: ZeroDivisionError" in capsys.readouterr().err


def test_a_bare_command_prints_its_help_on_lines(command):
    for words in ((), ("new",)):
        done = command(*words)
        assert done.code == 0
        assert done.out.count("\n") > 4
        assert done.err == ""


def test_every_built_in_study_is_named_where_one_is_asked_for(command):
    from unlearnbench.planning.study import builtin_studies

    names = builtin_studies()
    assert "pre-merge" in names
    for text in (command("run", "--help").out, command("plan", "--help").out, command("run", "premerge").err):
        assert all(name in " ".join(text.split()) for name in names), text


def test_settings_of_methods_that_a_file_has_and_the_command_line_leaves_out(command):
    """A study with [methods.npo] runs with -m ga alone; a setting that nothing could use is still refused."""
    study = command.folder / "study.toml"
    study.write_text(
        '[study]\nmethods = ["ga", "npo"]\nbenchmarks = ["tofu-forget05"]\nmodels = ["tiny"]\n'
        '[data]\nsource = "generated"\n[methods.npo]\nbeta = 0.2\n'
    )
    done = command("plan", str(study), "-m", "ga")
    assert done.code == 0, done.err
    study.write_text(study.read_text().replace("methods.npo", "methods.npoo"))
    done = command("plan", str(study), "-m", "ga")
    assert done.code == 4
    assert "unknown method in [methods] 'npoo'" in done.err


def test_a_cell_to_run_again_is_named_by_its_beginning(small_run, command):
    done = command("verify", str(small_run[0]), "--rerun", "flat")
    assert done.code == 4
    assert len(done.err) < 600
    done = command("verify", str(small_run[0]), "--rerun", "npo--tofu-forget11")
    assert done.code == 4
    assert "did you mean 'npo--tofu-forget10--nano'" in done.err


def test_cells_that_are_not_run_yet_are_counted_in_one_line(small_run, command, tmp_path):
    cells = [path for path in (small_run[0] / "cells").iterdir() if path.is_dir()]
    partial = tmp_path / "partial"
    shutil.copytree(small_run[0], partial)
    for key in sorted(path.name for path in cells if path.name.startswith(("ga-", "flat-")))[:3]:
        shutil.rmtree(partial / "cells" / key)
    line = f"3 of {len(cells)} cells are not run yet; 'unlearnbench run' with their study goes on"
    shown = command("results", str(partial)).out
    assert shown.count("not run yet") == 1
    assert line in shown
    assert not re.search(r"^\S+ × ", shown, re.MULTILINE)
    checked = command("verify", str(partial), "--no-badge")
    assert checked.code == 0, checked.err
    notes = [note for note in checked.err.splitlines() + checked.out.splitlines() if note.startswith("note:")]
    assert notes[0] == f"note: partial: 3 of {len(cells)} cells were not run"
    assert not any("pending" in note for note in notes)
