"""A benchmark with an outside scorer: judged from stored samples, so that judging again trains nothing."""

from __future__ import annotations

import gzip
import json

import pytest

from unlearnbench.errors import RecordError, UsageError
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.judging import judged_rows
from unlearnbench.records.run_folder import stored_cells
from unlearnbench.results.rescoring import rescore

PLUGIN = """
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from unlearnbench import Metric, Score
from unlearnbench.benchmarks.plugin import unlearnbench_benchmarks as theirs
from unlearnbench.benchmarks.tofu.benchmark import Tofu

@dataclass(frozen=True)
class JudgedTofu(Tofu):
    name: ClassVar[str] = "judged-tofu"

    def judge(self, rows):
        mood = Path(os.environ["JUDGE"]).read_text().strip()
        if mood == "wrong":
            return ["much" for row in rows]
        if mood == "away":
            raise ConnectionError("the judge is away")
        return [float(mood) if "generation" in row else None for row in rows]

    def score(self, unlearned, original, retained):
        yield from super().score(unlearned, original, retained)
        said = [row.get("judged") for row in unlearned.part("forget")]
        if None in said:
            yield Score("judge", float("nan"), len(said), reason="not judged")
        else:
            yield Score("judge", sum(said) / len(said), len(said))

def unlearnbench_benchmarks():
    (tofu,) = (spec for spec in theirs() if spec.name == "tofu-forget01")
    judge = Metric("judge", "Judge", "lower", source="here", definition="what the judge says")
    return [replace(tofu, name="judged-tofu", target="judged:JudgedTofu", metrics=(*tofu.metrics, judge), published="")]
"""


def samples(cell):
    rows = gzip.decompress((cell.folder / "samples.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(row) for row in rows]


@pytest.fixture
def study(command, monkeypatch):
    (command.folder / "judged.py").write_text(PLUGIN)
    mood = command.folder / "mood.txt"
    monkeypatch.setenv("JUDGE", str(mood))
    return mood, command.study("-m", "ga", "-b", "judged-tofu", "--plugin", "judged.py", "-o", "run")


def judged_scores(command):
    return {cell.identity.method: cell.record.scores["judge"] for cell in stored_cells(command.folder / "run")}


def test_judging_again_changes_scores_and_trains_and_measures_nothing(study, command):
    mood, words = study
    mood.write_text("0.25")
    assert command(*words).code == 0
    assert {score.value for score in judged_scores(command).values()} == {0.25}
    before = stored_cells(command.folder / "run")
    seconds = {cell.key: cell.record.cost for cell in before}
    plain = {cell.key: [{**row, "judged": None} for row in samples(cell)] for cell in before}

    mood.write_text("0.75")
    again = command("rescore", "run", "--judge", "--plugin", "judged.py", "--json")
    assert again.code == 0, again.err
    assert len(again.json["cells"]) == 3
    assert {score.value for score in judged_scores(command).values()} == {0.75}
    after = stored_cells(command.folder / "run")
    assert {cell.key: cell.record.cost for cell in after} == seconds
    assert {cell.key: [{**row, "judged": None} for row in samples(cell)] for cell in after} == plain
    kept = command(*words)
    assert kept.err.count("(kept)") == 5, "what was judged again is whole, and nothing runs again"
    verified = command("verify", "run", "--plugin", "judged.py")
    assert verified.code == 0, verified.out
    assert "what its judge said is taken as it stands" in verified.out


def test_a_judge_that_fails_loses_nothing_and_is_asked_again(study, command):
    mood, words = study
    mood.write_text("away")
    done = command(*words)
    assert done.code == 0, done.err
    assert {score.reason for score in judged_scores(command).values()} == {"not judged"}
    cells = stored_cells(command.folder / "run")
    assert all("ConnectionError: the judge is away" in cell.record.notes[-1] for cell in cells)
    assert all(cell.record.scores["forget_rouge"].n for cell in cells)
    files = {path: path.read_bytes() for path in (command.folder / "run" / "cells").rglob("*") if path.is_file()}
    with pytest.raises(ConnectionError):
        rescore(command.folder / "run", load_plugins([str(command.folder / "judged.py")]), judge=True)
    assert all(path.read_bytes() == content for path, content in files.items())
    mood.write_text("wrong")
    with pytest.raises(RecordError, match="the samples are not what judged-tofu measures"):
        rescore(command.folder / "run", load_plugins([str(command.folder / "judged.py")]), judge=True)
    assert all(path.read_bytes() == content for path, content in files.items()), "what it said could not be scored"
    mood.write_text("1.0")
    assert command("rescore", "run", "--judge", "--plugin", "judged.py").code == 0
    assert {score.value for score in judged_scores(command).values()} == {1.0}
    assert not any("not judged" in note for cell in stored_cells(command.folder / "run") for note in cell.record.notes)


def test_a_run_without_a_judge_says_so(small_run):
    with pytest.raises(UsageError, match="no cell is of a benchmark with a judge"):
        rescore(small_run[0], load_plugins(), judge=True)


class Scorer:
    def __init__(self, said):
        self.said = said

    def judge(self, rows):
        assert all("judged" not in row for row in rows)
        return self.said


def test_a_judge_says_one_thing_of_each_row_and_in_json():
    rows = [{"index": 0, "judged": "old"}, {"index": 1}]
    assert judged_rows(Scorer([1, None]), rows) == [{"index": 0, "judged": 1}, {"index": 1, "judged": None}]
    with pytest.raises(RecordError, match="returned 1 values for 2 rows"):
        judged_rows(Scorer([1]), rows)
    with pytest.raises(RecordError, match="no JSON"):
        judged_rows(Scorer([1, {1, 2}]), rows)
