"""A study with attacks from the command line: run, resumed, added to, handed in, checked, compared and shown."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil

import pytest

LONGER = ("--set", "recipe.epochs=16")
ATTACKS = ("--attack", "quantise", "--attack", "relearn", "--attack", "sample", "--set", "attacks.sample.samples=3",
           "--set", "attacks.relearn.learning_rate=3e-3")  # fmt: skip
STUDY = ("-m", "ga", "-m", "npo", "-b", "tofu-forget10", *LONGER)

BAD_ATTACKS = """
import time
from dataclasses import dataclass
from typing import ClassVar
import torch
from unlearnbench import Attack, AttackSpec, Touches

def attack(name, **members):
    kinds = {"name": ClassVar[str], "requires": ClassVar[Touches]}
    told = {"name": name, "__module__": __name__, "__doc__": name, "__annotations__": kinds}
    made = dataclass(frozen=True)(type(name.title(), (Attack,), {**told, **members}))
    globals()[name.title()] = made
    return AttackSpec.of(made)

def raising(self, model, data, ctx): raise RuntimeError("I refuse")
def nothing(self, model, data, ctx): return None
def notfinite(self, model, data, ctx):
    next(model.parameters()).data.fill_(float("nan"))
    return model
def greedy(self, model, data, ctx):
    data.draw_retain(1)
    return model
def larger(self, model, data, ctx):
    model.resize_token_embeddings(model.config.vocab_size + 8)
    return model
def hanging(self, model, data, ctx): time.sleep(600)
def silent(self, question, data, ctx): return []
def wordy(self, question, data, ctx): return question.prompt
def fine(self, question, data, ctx): return (question.prompt, "Please: " + question.prompt)
def shows(self, question, data, ctx):
    return [row.prompt + row.answer + question.prompt for row in data.draw_forget(2)]

CHANGES = dict(raising=raising, nothing=nothing, notfinite=notfinite, greedy=greedy, larger=larger, hanging=hanging)
SPECS = [*(attack(name, change=verb) for name, verb in CHANGES.items()), attack("silent", put=silent),
         attack("wordy", put=wordy), attack("fine", put=fine),
         attack("shows", put=shows, requires=Touches(forget=True))]

def unlearnbench_attacks():
    return SPECS
"""


@pytest.fixture(scope="module")
def attacked(tmp_path_factory, command_in):
    """A finished study of two methods under three attacks, and what its run printed."""
    command = command_in(tmp_path_factory.mktemp("attacked"))
    words = command.study(*STUDY, *ATTACKS, "--name", "attacked")
    done = command(*words, "--json")
    assert done.code == 0, done.err
    return command, words, done.json


def under(printed, method, attack):
    return next(record for record in printed["records"]
                if (record["identity"]["method"], record["identity"]["attack"]) == (method, attack))  # fmt: skip


def rows_of(command, record):
    path = command.folder / "runs" / "attacked" / "cells" / record["cell"] / "samples.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_every_model_is_attacked_and_compares_with_references_under_the_same_attack(attacked):
    _, _, printed = attacked
    cells = {(cell["method"], cell["attack"]): cell for cell in printed["cells"]}
    assert len(cells) == 4 * (1 + 3)
    record = under(printed, "npo", "relearn")
    expected = {role: under(printed, role, "relearn")["cell"] for role in ("original", "retained")}
    assert record["samples"]["references"] == expected
    assert record["comparability"]["key"]["attack"][0] == "unlearnbench/relearn"
    assert "attack" not in under(printed, "npo", "")["comparability"]["key"]


def test_a_record_says_what_the_attack_was_given_and_what_it_cost(attacked):
    command, _, printed = attacked
    facts = under(printed, "npo", "relearn")["attack"]
    assert facts["given"]["forget"] == 8
    assert facts["requires"] == {"forget": True, "retain": False, "text": False}
    assert facts["hyperparameters"]["learning_rate"] == 3e-3
    assert under(printed, "npo", "relearn")["cost"]["seconds"].keys() >= {"attack", "measure"}
    assert under(printed, "npo", "relearn")["cost"]["optimiser_steps"] == facts["hyperparameters"]["steps"]
    asked = {row["index"] for row in rows_of(command, under(printed, "npo", "relearn"))}
    assert facts["questions"] == len(asked) <= 32 - 8
    assert asked == {row["index"] for row in rows_of(command, under(printed, "ga", "relearn"))}
    assert asked == {row["index"] for row in rows_of(command, under(printed, "retained", "relearn"))}


def test_of_several_answers_the_one_with_most_of_the_truth_is_scored(attacked):
    from unlearnbench import rouge_l_recall

    command, _, printed = attacked
    record = under(printed, "original", "sample")
    rows = rows_of(command, record)
    assert record["attack"]["tries"] == 3
    assert {row["try"] for row in rows} == {0, 1, 2}
    most = {}
    for row in rows:
        most[row["index"]] = max(most.get(row["index"], 0.0), rouge_l_recall(row["truth"], row["generation"]))
    assert record["scores"]["forget_rouge"]["value"] == pytest.approx(sum(most.values()) / len(most))
    leaks = [rouge_l_recall(row["truth"], row["generation"]) >= 0.5 for row in rows]
    assert record["attack"]["leaking"] == pytest.approx(sum(leaks) / len(leaks))


def test_only_the_forget_part_is_measured_under_attack(attacked):
    command, _, printed = attacked
    record = under(printed, "npo", "quantise")
    assert {row["part"] for row in rows_of(command, record)} == {"forget"}
    assert record["scores"]["model_utility"]["reason"] == "a part has no rows"


def test_no_weights_are_left_behind(attacked):
    command, _, _ = attacked
    assert not list((command.folder / "runs" / "attacked" / "cells").glob("*/left"))


def test_an_attacked_study_resumes_and_another_attack_runs_alone(attacked):
    command, words, printed = attacked
    again = command(*words, "--json")
    assert again.code == 0
    assert again.err.count("done (kept)") == 2 + 4 * 4
    more = command(*words, "--attack", "prune", "--json")
    assert more.code == 0
    assert more.err.count("done (kept)") == 2 + 4 * 4
    # The weights were gone: unlearning ran again, and gave the same model.
    plain, pruned = under(printed, "npo", ""), under(more.json, "npo", "prune")
    assert pruned["cost"]["optimiser_steps"] == 0
    assert pruned["cost"]["seconds"]["unlearn"] > 0
    assert pruned["scores"]["forget_rouge"]["value"] == pytest.approx(plain["scores"]["forget_rouge"]["value"], abs=0.2)
    assert command(*words, "--json").code == 0


@pytest.mark.slow
def test_weights_left_and_weights_made_again_give_the_same_record(attacked, command_in, tmp_path):
    _, _, printed = attacked
    other = command_in(tmp_path)
    assert other(*other.study(*STUDY, "--name", "plain")).code == 0
    later = other(*other.study(*STUDY, *ATTACKS, "--name", "plain"), "--json")
    assert later.code == 0, later.err
    for attack in ("quantise", "relearn", "sample"):
        for method in ("ga", "npo"):
            assert under(later.json, method, attack)["scores"] == under(printed, method, attack)["scores"]


def test_the_pages_show_robust_scores_and_what_each_attack_brings_back(attacked):
    command, _, printed = attacked
    assert command("render", "runs/attacked", "-o", "site").code == 0
    page = (command.folder / "site" / "b" / "tofu-forget10.html").read_text()
    assert "each attack" in page
    assert 'class="fall"' in page
    for attack in ("quantise", "relearn", "sample"):
        assert f"{under(printed, 'npo', attack)['cell']}.html" in page
    lines = csv.DictReader(io.StringIO((command.folder / "site/data/tofu-forget10-places.csv").read_text()))
    by_method = {line["method"]: line for line in lines}
    assert all(float(line["robust"]) <= float(line["score"]) for line in by_method.values())
    assert {line["worst_attack"] for line in by_method.values()} <= {"", "quantise", "relearn", "sample"}
    every = list(csv.DictReader(io.StringIO((command.folder / "site/data/tofu-forget10.csv").read_text())))
    assert {line["attack"] for line in every} == {"", "quantise", "relearn", "sample"}
    cell = (command.folder / "site" / "cells" / f"{under(printed, 'npo', 'sample')['cell']}.html").read_text()
    assert "3 tries of each" in cell
    overview = (command.folder / "site" / "index.html").read_text()
    assert "Cells without a score" not in overview
    assert "Robust" in (command.folder / "site/data/tofu-forget10.tex").read_text()


def test_attacked_cells_are_handed_in_recomputed_and_compared(attacked, reseal, tmp_path):
    command, _, printed = attacked
    told = ("--contact", "a@b", "--licence", "CC0", "--budget", "1", "--selection", "none")
    assert command("bundle", "runs/attacked", "-o", "it.zip", *told).code == 0
    checked = command("verify", "it.zip", "--json")
    assert checked.code == 0, checked.out + checked.err
    assert len(checked.json["cells"]) >= 16
    same = command("compare", "runs/attacked", "it.zip", "--no-gates")
    assert same.code == 0
    assert "ga × tofu-forget10 × nano seed 0 under sample" in same.out
    # An answer that is not the model's own leaves other scores than those of the record.
    shutil.copytree(command.folder / "runs" / "attacked", tmp_path / "forged")
    cell = tmp_path / "forged" / "cells" / under(printed, "npo", "sample")["cell"]
    rows = [json.loads(line) for line in gzip.decompress((cell / "samples.jsonl.gz").read_bytes()).splitlines()]
    for row in rows:
        row["generation"] = "Nothing is known."
    (cell / "samples.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    reseal(cell)
    forged = command("verify", str(tmp_path / "forged"))
    assert forged.code == 7
    assert "forget_rouge" in forged.out
    assert "the share of answers that leak is stored as" in forged.out


def test_a_gate_judges_rows_without_an_attack_unless_it_names_one(attacked):
    from unlearnbench import Gate, compare
    from unlearnbench.results.comparison import judged

    command, _, _ = attacked
    run = command.folder / "runs" / "attacked"
    found = compare(run, run)
    titles = {}
    for attack in ("", "sample", "*"):
        gate = Gate(metric="forgetting", max_drop=0.1, attack=attack)
        titles[attack] = {finding.title.partition(" seed")[2] for finding in judged(found, [gate])}
    assert all("under" not in title for title in titles[""])
    assert all("under sample" in title for title in titles["sample"])
    assert {title.partition("under ")[2].partition(":")[0] for title in titles["*"]} >= {
        "quantise",
        "relearn",
        "sample",
    }


def test_an_attack_that_breaks_its_promise_fails_alone(command):
    path = command.folder / "bad_attacks.py"
    path.write_text(BAD_ATTACKS)
    names = "raising nothing notfinite greedy larger hanging silent wordy fine shows".split()
    chosen = [word for name in names for word in ("--attack", name)]
    done = command(*command.study("-m", "ga", *chosen, "--plugin", str(path), "-b", "tofu-forget10", "--timeout", "12",
                                  "-j", "2", "--name", "bad", "--json"))  # fmt: skip
    assert done.code == 1, done.err
    cells = {(cell["method"], cell["attack"]): (cell["status"], cell["reason"]) for cell in done.json["cells"]}
    expected = {
        "raising": ("failed", "RuntimeError: I refuse"),
        "nothing": ("failed", "change returned None"),
        "notfinite": ("diverged", "are not finite"),
        "greedy": ("failed", "touched data.draw_retain; declare Touches(retain=True)"),
        "larger": ("failed", "change changed the size of the vocabulary"),
        "hanging": ("timed-out", "longer than --timeout 12 s"),
        "silent": ("failed", "put returned []"),
        "wordy": ("failed", "return a list of prompts"),
    }
    for name, (status, reason) in expected.items():
        found = cells["retained", name]
        assert found[0] == status
        assert reason in found[1]
    assert {status for (_, attack), (status, _) in cells.items() if attack in ("", "fine", "shows")} == {"done"}
    # What is shown beside a question is not asked either.
    shown = under(done.json, "ga", "shows")["attack"]
    assert shown["given"]["forget"] == 2
    assert shown["questions"] <= 32 - 2


@pytest.mark.slow
def test_a_benchmark_that_offers_no_questions_is_not_attacked(command):
    from unlearnbench.authoring.scaffold import write_package

    write_package("benchmark", "my-bench", command.folder)
    plugins = ("--plugin", str(command.nano), "--plugin", "my-bench/my_bench.py")
    done = command("run", *plugins, "-m", "ga", "-b", "my-bench", "--model", "nano", "--data", "generated", "--attack",
                   "quantise", "--device", "cpu", "--name", "closed", "--json")  # fmt: skip
    assert done.code == 0, done.err
    cells = {(cell["method"], cell["attack"]): cell for cell in done.json["cells"]}
    assert cells["ga", ""]["status"] == "done"
    assert {cells[method, "quantise"]["status"] for method in ("original", "retained", "ga")} == {"not-applicable"}
    assert cells["retained", "quantise"]["reason"] == (
        "my-bench offers no questions to attack (forget_questions, asking)"
    )


@pytest.mark.slow
def test_in_a_sweep_the_setting_that_the_rule_chooses_is_attacked(command):
    done = command(*command.study("-m", "ga", "-b", "tofu-forget10", *LONGER, "--attack", "quantise", "--name", "swept",
                                  "--set", "sweep.methods.*.learning_rate=[1e-3, 3e-3, 1e-2]", "--json"))  # fmt: skip
    assert done.code == 0, done.err
    attacked = [cell for cell in done.json["cells"] if cell["attack"] and cell["method"] == "ga"]
    by_status = {}
    for cell in attacked:
        by_status.setdefault(cell["status"], []).append(cell)
    (chosen,) = by_status["done"]
    assert len(by_status["not-applicable"]) == 2
    assert all(cell["reason"] == f"the sweep chooses {chosen['setting']}" for cell in by_status["not-applicable"])
    lines = csv.DictReader(io.StringIO((command.folder / "runs/swept/site/data/tofu-forget10-places.csv").read_text()))
    assert {line["method"]: line["setting"] for line in lines}["ga"] == chosen["setting"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--attack", "quantize"), "unknown attack 'quantize'; did you mean 'quantise'?"),
        (("--attack", "relearn", "--set", "attacks.relearn.steps=0"), "attacks.relearn.steps = 0: must be at least 1"),
        (("--attack", "sample", "--set", "attacks.sample.samples=0"), "attacks.sample.samples = 0: must be at least 1"),
        (("--attack", "prune", "--set", "attacks.prune.share=2"), "attacks.prune.share = 2"),
        (("--attack", "prune", "--set", "attacks.prune.portion=1"), "unknown key of attacks.prune 'portion'"),
        (("--set", "attacks.pruning.share=0.1"), "unknown attack"),
    ],
)
def test_an_attack_that_cannot_be_is_refused_in_one_line(command, words, complaint):
    study = ("-m", "ga", "-b", "tofu-forget10", "--model", "tiny", "--data", "generated")
    done = command("plan", *study, *words)
    assert done.code == 4
    (line,) = done.err.strip().splitlines()
    assert complaint in line


def test_an_attack_without_its_package_is_refused_by_name_and_left_out_of_all(monkeypatch):
    from unlearnbench.errors import UsageError
    from unlearnbench.planning import selection
    from unlearnbench.planning.plan import make_plan
    from unlearnbench.planning.study import check_study
    from unlearnbench.plugin.registry import load_plugins

    monkeypatch.setattr(selection, "find_spec", lambda name: None)
    head = {"methods": ["ga"], "benchmarks": ["tofu-forget10"], "models": ["tiny"]}
    study = {"study": {**head, "attacks": ["quantise-nf4"]}, "data": {"source": "generated"}}
    with pytest.raises(UsageError, match=r"needs bitsandbytes: pip install 'unlearnbench\[quantise\]'"):
        make_plan(check_study(study), load_plugins())
    every = make_plan(check_study({**study, "study": {**head, "attacks": ["all"]}}), load_plugins())
    named = {node.id.attack for node in every.cells}
    assert "quantise" in named
    assert "quantise-nf4" not in named
