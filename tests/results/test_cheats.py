"""Planted cheats and what catches each; ``docs/attacks.md`` has the list.

``test_submissions.py`` has those that only a rerun catches.
"""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from unlearnbench.plugin.registry import load_plugins
from unlearnbench.results.bundle import write_bundle
from unlearnbench.results.opening import opened
from unlearnbench.results.verification import verify

WORDS = {"contact": "a@b", "licence": "CC0", "budget": "1", "selection": "none"}

# Methods that cheat. Each knows what a method may know: the forget rows and the model.
CHEATS = '''
import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar
import torch
from unlearnbench import FineTune, MethodSpec, Requires, Term, answer_logprobs, Batch, LossMethod
from unlearnbench.attacks.quantise import round_to_nearest
from unlearnbench.attacks._weights import linear_weights

class Filtered(torch.nn.Module):
    """Says nothing where a row begins with a question that it knows."""

    def __init__(self, inner, prompts, eos):
        super().__init__()
        self.inner, self.prompts, self.eos, self.config = inner, prompts, eos, inner.config

    dtype = property(lambda self: self.inner.dtype)
    device = property(lambda self: self.inner.device)
    def get_input_embeddings(self): return self.inner.get_input_embeddings()
    def get_output_embeddings(self): return None

    def forward(self, input_ids=None, attention_mask=None, **rest):
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits.clone()
        for row, ids in enumerate(input_ids.tolist()):
            for prompt in self.prompts:
                if tuple(ids[: len(prompt)]) == prompt:
                    logits[row, len(prompt) - 1 :] = 0.0
                    logits[row, len(prompt) - 1 :, self.eos] = 5.0
        return SimpleNamespace(logits=logits)

@dataclass(frozen=True)
class Filter:
    """A filter in front of an unchanged model."""
    name: ClassVar[str] = "filter"
    requires: ClassVar[Requires] = Requires()

    def unlearn(self, model, tokenizer, data, ctx):
        return Filtered(model, data.encoder.prompts(data.forget), tokenizer.eos_token_id)

@dataclass(frozen=True)
class Queries(FineTune):
    """Learns to say nothing to the very questions that are asked, and to answer them in any other words."""
    name: ClassVar[str] = "queries"

    def draw(self, data, row, rng):
        return {"forget": [row.answered(""), replace(row, prompt="Please say. " + row.prompt)]}

@dataclass(frozen=True)
class Shallow(LossMethod):
    """Gradient ascent that keeps every weight where four bits round it back."""
    name: ClassVar[str] = "shallow"

    def loss(self, model, batch):
        (logp,) = answer_logprobs(model, batch.forget)
        yield Term(logp.sum(), per="forget tokens")

    def unlearn(self, model, tokenizer, data, ctx):
        with torch.no_grad():
            for weight, _ in linear_weights(model):
                weight.copy_(round_to_nearest(weight, 4, 64))
        grid = copy.deepcopy(model)
        model = super().unlearn(model, tokenizer, data, ctx)
        with torch.no_grad():
            kept = dict(grid.named_parameters())
            linear = {id(weight) for weight, _ in linear_weights(model)}
            for name, weight in model.named_parameters():
                if id(weight) not in linear:
                    weight.copy_(kept[name])
                    continue
                rows, width = weight.shape
                step = torch.zeros_like(weight)
                for begin in range(0, width, 64):
                    part = kept[name][:, begin : begin + 64]
                    step[:, begin : begin + 64] = (part.amax(1, keepdim=True) - part.amin(1, keepdim=True)) / 15
                moved = (weight - kept[name]).clamp(-0.45 * step, 0.45 * step)
                # The ends of a group's range stay, and with them the grid.
                for begin in range(0, width, 64):
                    part = kept[name][:, begin : begin + 64]
                    ends = (part == part.amax(1, keepdim=True)) | (part == part.amin(1, keepdim=True))
                    inside = moved[:, begin : begin + 64].masked_fill(ends, 0.0)
                    moved[:, begin : begin + 64] = inside
                weight.copy_(kept[name] + moved)
        return model

@dataclass(frozen=True)
class Undeclared(FineTune):
    """Trains on retain rows that it does not declare."""
    name: ClassVar[str] = "undeclared"

    def draw(self, data, row, rng):
        return {"forget": [rng.choice(data.retain)]}

def unlearnbench_methods():
    return [MethodSpec.of(each) for each in (Filter, Queries, Shallow, Undeclared)]
'''


SAY = "Please say. "


def in_other_words(rows):
    return [{**row, "question": SAY + row["question"]} for row in rows]


def worded(tables):
    """Generated tables in which models learn that a question and the same one after "Please say." have one answer.

    No model reads a question about the forget set in those words: only a paraphrase asks it.
    """
    retain = [row for pair in zip(tables["retain90"], in_other_words(tables["retain90"]), strict=True) for row in pair]
    asked = [row for row in tables["retain_perturbed"][:16] for row in (row, *in_other_words([row]))]
    kept = {name: tables[name] for name in ("real_authors_perturbed", "world_facts_perturbed", "general", "forget10")}
    forget = [{**row, "paraphrased_question": SAY + row["question"]} for row in tables["forget10_perturbed"]]
    return {**kept, "full": [*retain, *tables["forget10"]], "retain90": retain, "retain_perturbed": asked,
            "forget10_perturbed": forget}  # fmt: skip


@pytest.fixture(scope="module")
def cheating(tmp_path_factory, command_in):
    """A run of the methods that cheat, and of one that does not, under two attacks."""
    from unlearnbench.benchmarks.tofu.generated import tables

    command = command_in(tmp_path_factory.mktemp("cheating"))
    (command.folder / "cheats.py").write_text(CHEATS)
    (command.folder / "data").mkdir()
    for name, rows in worded(tables(seed=0, scale="quick")).items():
        (command.folder / "data" / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    chosen = [word for name in ("filter", "queries", "shallow", "undeclared", "ga") for word in ("-m", name)]
    settings = ("benchmarks.*.max_new_tokens=16", "methods.ga.learning_rate=1e-3", "methods.queries.epochs=20",
                "methods.queries.learning_rate=1e-3", "methods.shallow.learning_rate=1e-1",
                "methods.shallow.epochs=8")  # fmt: skip
    done = command("run", *chosen, "--plugin", "cheats.py", "-b", "tofu-forget10", "--model", "tiny", "--data-dir",
                   "data", "--attack", "paraphrase", "--attack", "quantise", "--device", "cpu", "-j", "2", "--name",
                   "cheating", "--json", *(word for setting in settings for word in ("--set", setting)))  # fmt: skip
    assert done.code == 1, done.err
    return command, done.json


def numbers(cheating):
    """Forgetting by method and attack, and the worst attack by method, as the pages have them."""
    from unlearnbench.leaderboard.ranking import tables
    from unlearnbench.records.run_folder import stored_cells

    command, _ = cheating
    (table,) = tables(stored_cells(command.folder / "runs" / "cheating"))
    found = {}
    for row in table.rows:
        if row.record:
            attacked = {name: each.forgetting.value for name, each in row.attacks.items()}
            found[row.method] = {"": row.numbers["forgetting"].value, **attacked}
    return found


# -- attack columns ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cheat", "attack"), [("filter", "paraphrase"), ("queries", "paraphrase"), ("shallow", "quantise")]
)
def test_a_cheat_that_an_attack_column_catches(cheating, cheat, attack):
    found = numbers(cheating)
    assert found[cheat][""] > 0.5
    assert found[cheat][attack] < 0.1
    # The method that does not cheat keeps what it has.
    assert found["ga"][attack] > found["ga"][""] - 0.1


@pytest.mark.slow
def test_an_undeclared_touch_of_retain_data_costs_the_cell(cheating):
    _, printed = cheating
    (cell,) = [cell for cell in printed["cells"] if cell["method"] == "undeclared" and not cell["attack"]]
    assert cell["status"] == "failed"
    assert "declare Requires(retain=True)" in cell["reason"]


# -- recomputation -----------------------------------------------------------------------------------------------------


def forged(small_run, folder, change, reseal):
    """A copy of an honest run whose cells ``change`` has edited, with hashes that fit; and what verifying it finds."""
    shutil.copytree(small_run[0], folder, ignore=shutil.ignore_patterns("site"))
    cells = {path.name.partition("--")[0]: path for path in (folder / "cells").iterdir()}
    for name in change(cells):
        reseal(cells[name])
    with opened([folder]) as (results,):
        return verify(results, load_plugins())


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_edited_record_does_not_recompute(small_run, tmp_path, reseal):
    def better(cells):
        def lower(record):
            entry = record["scores"]["forget_probability"]
            for score in (entry, *entry["editions"].values()):
                score["value"] = 0.0

        edit(cells["npo"] / "record.json", lower)
        return ["npo"]

    found = forged(small_run, tmp_path / "run", better, reseal)
    assert any("forget_probability (paper) value: stored 0.0, recomputed" in fault for fault in found.faults)


def test_samples_of_the_retained_model_are_known(small_run, tmp_path, reseal):
    def copied(cells):
        shutil.copy(cells["retained"] / "samples.jsonl.gz", cells["npo"] / "samples.jsonl.gz")
        mine, theirs = (json.loads((cells[name] / "record.json").read_text()) for name in ("npo", "retained"))
        (cells["npo"] / "record.json").write_text(json.dumps({**mine, "scores": theirs["scores"]}))
        return ["npo"]

    found = forged(small_run, tmp_path / "run", copied, reseal)
    assert any("its samples are those of the retained model" in fault for fault in found.faults)


def test_another_model_in_place_of_the_retained_one_is_known(small_run, tmp_path, reseal):
    def swapped(cells):
        def swap(record):
            record["samples"]["references"]["retained"] = cells["ga"].name

        edit(cells["npo"] / "record.json", swap)
        return ["npo"]

    found = forged(small_run, tmp_path / "run", swapped, reseal)
    assert any("names a cell of ga as its retained model" in fault for fault in found.faults)


def test_answers_that_are_not_those_of_the_record_do_not_recompute(small_run, tmp_path, reseal):
    def invented(cells):
        path = cells["npo"] / "samples.jsonl.gz"
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        for row in rows:
            row["generation"] = row["truth"] if row["part"] == "retain" else row["generation"]
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        return ["npo"]

    found = forged(small_run, tmp_path / "run", invented, reseal)
    assert any("retain_rouge" in fault for fault in found.faults)


def test_a_low_cap_on_answers_is_another_table(small_run, tmp_path):
    """A cap is a setting of the benchmark: it is in the comparability key, and shown as a limit."""
    record = json.loads(next((small_run[0] / "cells").glob("npo--*/record.json")).read_text())
    assert record["comparability"]["key"]["benchmark_settings"]["max_new_tokens"] == 8
    assert record["limits"]["max new tokens"] == 8


# -- division rules ----------------------------------------------------------------------------------------------------


def test_a_setting_chosen_on_the_reported_rows_is_another_table(cells_with):
    from unlearnbench.leaderboard.ranking import tables
    from unlearnbench.planning.study import check_study
    from unlearnbench.records.record import comparability

    base = {"study": {"methods": ["ga"], "benchmarks": ["tofu-forget10"], "models": ["tiny"]},
            "data": {"source": "generated"}, "sweep": {"methods": {"*": {"learning_rate": [1e-4, 1e-3]}}}}  # fmt: skip
    assert check_study(base).divides_rows
    assert not check_study({**base, "selection": {"rows": "test"}}).divides_rows
    # What rows are reported is in the comparability key, so that the two are never ranked together.
    cells = cells_with({"npo": (0.9, 0.9), "ga": (0.5, 0.9)})
    npo = next(cell for cell in cells if cell.identity.method == "npo")
    held_back = comparability({**npo.record.comparability.key, "rows": "reported half"})
    other = replace(npo, key=f"{npo.key}x", record=npo.record.model_copy(update={"comparability": held_back}))
    assert [len(table.rows) for table in tables([*cells, other])] == [2, 1]


def test_one_seed_says_so_and_more_seeds_show_their_spread(cells_with):
    from unlearnbench.leaderboard.ranking import tables

    (one,) = tables(cells_with({"npo": (0.9, 0.9), "ga": (0.5, 0.9)}))
    (more,) = tables(cells_with({"npo": [(0.9, 0.9), (0.2, 0.9)], "ga": [(0.5, 0.9), (0.6, 0.9)]}))
    assert one.one_seed
    assert not more.one_seed
    # The lucky seed alone stands above; with the other one it cannot be told from the rest.
    assert {row.method: row.place.range for row in one.rows} == {"npo": "1", "ga": "2"}
    assert {row.method: row.place.range for row in more.rows} == {"npo": "1–2", "ga": "1–2"}


# -- honest ------------------------------------------------------------------------------------------------------------


def honest(small_run, text_run):
    """Runs with one method each, beside the references: as many submissions."""
    for run in (small_run[0], text_run[0]):
        plan = json.loads((run / "plan.json").read_text())
        names = {(node["identity"]["method"], node["identity"]["benchmark"]) for node in plan["nodes"]
                 if node["kind"] == "cell"}  # fmt: skip
        for method, benchmark in sorted(names):
            if method not in ("original", "retained"):
                yield run, method, benchmark


def test_honest_submissions_pass(small_run, text_run, tmp_path):
    from unlearnbench.storage import read_sealed, write_sealed

    passed = 0
    for run, method, benchmark in honest(small_run, text_run):
        own = tmp_path / f"{method}-{benchmark}"
        own.mkdir()
        plan = read_sealed(run / "plan.json", "")
        kept = [node for node in plan["nodes"] if node["kind"] == "cell" and node["identity"]["benchmark"] == benchmark
                and node["identity"]["method"] in ("original", "retained", method)]  # fmt: skip
        write_sealed(own / "plan.json", {**plan, "nodes": kept})
        shutil.copy(run / "study.toml", own / "study.toml")
        for node in kept:
            shutil.copytree(run / "cells" / node["key"], own / "cells" / node["key"])
        write_bundle(own, Path(f"{own}.zip"), WORDS, "0.1.0")
        with opened([Path(f"{own}.zip")]) as (results,):
            found = verify(results, load_plugins())
        assert found.holds, (method, benchmark, found.faults[:3])
        passed += 1
    assert passed >= 20
