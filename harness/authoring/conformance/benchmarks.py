"""Conformance checks of benchmarks."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...contracts import Attackable, Context, Preparation
from ...data.sources import DataSource, read_tables
from ...domain import Measurement, Question, Score
from ...engine.engine import Engine
from ...plugin.parameters import parse_parameters
from ...plugin.registry import Component
from ...plugin.specs import BenchmarkSpec, resolve
from ...records.judging import is_judged, judged_rows
from ...records.record import score_entries
from ...results.verification import pins_of, unlike
from ...storage import read_rows, rows_as_bytes
from ...training import models
from .checks import Broken, Check, attempt
from .methods import GlobalState, method_spec, typed
from .trial import SEED, TINY, tiny_model

SMALL: Mapping[str, Any] = {"limit": 4, "max_new_tokens": 4}
MINE, RETAINED = 0, 1
"""Seeds of the tiny models that stand for the unlearned and the retained model."""


def check_benchmark(component: Component[BenchmarkSpec], data_dir: str = "") -> Iterator[Check]:
    """Run the checks of a benchmark on its generated tables or a folder's."""
    spec = component.spec
    yield attempt("the spec is that of its class", lambda: method_spec(component))
    yield attempt("parameters are typed, and their defaults are in range", lambda: typed(spec.parameters))
    yield attempt("metrics say what they are", lambda: _metrics(spec))
    trial = _Trial(component, data_dir)
    yield attempt("tables are read", trial.read)
    if trial.tables is None:
        return
    yield attempt("a task is prepared", trial.prepare)
    if trial.task is None:
        return
    yield attempt("reference models train on the declared tables alone", trial.trains_on)
    state = GlobalState()
    yield attempt("a model is measured", trial.measure)
    if len(trial.measured) < 2:
        return
    yield attempt("no global state is left changed", state.refuse_changes)
    unjudged = trial.measured[0]
    yield attempt("rows are JSON, with a part and an index", lambda: _json_rows(unjudged))
    yield attempt("measuring again gives the same rows", lambda: _same_rows(unjudged, trial.measured_by(MINE)))
    if is_judged(trial.benchmark):
        # A judge may fail, which leaves what was measured.
        yield attempt("scores that need no judge are there without one", lambda: _scored(trial, *trial.measured))
        yield attempt("the judge says one thing of each row", trial.judge)
    mine, retained = trial.measured
    yield attempt("every metric is scored in every edition", lambda: _scored(trial, mine, retained))
    yield attempt("the retained model is scored beside itself", lambda: _scored(trial, retained, retained))
    yield attempt("scores follow from the rows alone", lambda: _recomputes(trial, mine, retained))
    if isinstance(trial.benchmark, Attackable):
        yield attempt("attacks may ask its questions in other words", lambda: _attackable(trial, unjudged))
    if spec.questions:
        yield attempt("rows are the questions of the tables", lambda: _asked(trial, mine))


class _Trial:
    """One pass of a benchmark over small settings; each step fills the fields that the next one reads."""

    def __init__(self, component: Component[BenchmarkSpec], data_dir: str) -> None:
        self.component, self.data_dir = component, data_dir
        self.spec = component.spec
        self.given = {name: value for name, value in SMALL.items() if name in {p.name for p in self.spec.parameters}}
        self.context = Context("conformance", SEED, Engine(), lambda _: None)
        self.benchmark: Any = None
        self.tables: Any = None
        self.task: Any = None
        self.measured: list[Measurement] = []

    def read(self) -> str:
        source = DataSource("local", self.data_dir) if self.data_dir else DataSource("generated", scale="quick")
        self.tables = read_tables(self.spec.data, source)
        return f"{sum(len(rows) for rows in self.tables.values())} rows"

    def prepare(self) -> str:
        values = parse_parameters(self.spec.parameters, self.given, f"benchmarks.{self.spec.name}")
        self.benchmark = resolve(self.spec.target, self.component.qualified)(**values, **self.spec.fixed)
        ctx = Preparation(self.tables, lambda corpus: models.make_encoder(TINY, corpus), False, not self.data_dir)
        task = self.benchmark.prepare(ctx)
        if not task.forget:
            raise Broken("task.forget has no rows, so there is nothing to unlearn")
        for role in ("original", "retained"):
            if role not in task.training:
                raise Broken(f"task.training has no rows for the {role} model")
        self.task = task
        return f"{len(task.forget)} rows to forget, {len(task.retain)} to retain"

    def trains_on(self) -> str:
        """Edit the other tables, whose edits leave a prepared reference model's key as it is."""
        besides, known = self.spec.trained_besides, self.task.encoder
        for role in ("original", "retained"):
            named = self.spec.training.get(role, ())
            declared = {*((named,) if isinstance(named, str) else named), *besides}
            edited = {name: rows if name in declared else [*map(_edited, rows)] for name, rows in self.tables.items()}
            task = self.benchmark.prepare(Preparation(edited, lambda corpus: known, False, not self.data_dir))
            if task.training[role] != self.task.training[role]:
                raise Broken(
                    f"the {role} model trains on tables that the spec does not declare for it; declare them in "
                    "training, or in trained_besides"
                )
        return ""

    def measure(self) -> str:
        self.measured += [self.measured_by(seed) for seed in (MINE, RETAINED)]
        return f"{len(self.measured[0].rows)} rows"

    def judge(self) -> str:
        judged = [replace(each, rows=tuple(judged_rows(self.benchmark, each.rows))) for each in self.measured]
        self.measured = judged
        return f"{len(judged[0].rows)} rows"

    def measured_by(self, seed: int) -> Measurement:
        """The measurement of the tiny model made from a seed."""
        measured: Measurement = self.benchmark.measure(tiny_model(self.task.encoder, seed), self.task, self.context)
        return measured


def _edited(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with another text in every field that holds one."""
    return {key: f"{value} Edited." if isinstance(value, str) else value for key, value in row.items()}


def _metrics(spec: BenchmarkSpec) -> str:
    if not any(metric.headline for metric in spec.metrics):
        raise Broken("no metric is a headline, so tables would show none")
    for metric in spec.metrics:
        if not metric.definition or not metric.source:
            raise Broken(f"{metric.name} has no {'definition' if not metric.definition else 'source'}")
        if metric.better == "target" and metric.target is None:
            raise Broken(f"{metric.name} is better near its target, and has none")
    return ", ".join(metric.name for metric in spec.metrics)


def _json_rows(measured: Measurement) -> None:
    json.dumps([dict(row) for row in measured.rows], allow_nan=True)
    for number, row in enumerate(measured.rows):
        if not isinstance(row.get("part"), str) or type(row.get("index")) is not int:
            raise Broken(f"row {number} has no part (text) or no index (whole number)")


def _same_rows(first: Measurement, second: Measurement) -> None:
    for number, (a, b) in enumerate(zip(first.rows, second.rows, strict=True)):
        if json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
            raise Broken(f"row {number} differs between two measurements of one model")


def _scored(trial: _Trial, mine: Measurement, retained: Measurement) -> str:
    scores = list(trial.benchmark.score(mine, None if mine is retained else mine, retained))
    entries = score_entries(scores, trial.spec.metrics, "paper")
    for score in scores:
        low, high = score.interval or (score.value, score.value)
        if low > high:
            raise Broken(f"{score.metric}: the interval from {low} to {high} has its ends the wrong way round")
    for metric in trial.spec.metrics:
        lacking = sorted({*metric.editions} - entries[metric.name].editions.keys())
        if lacking:
            raise Broken(f"{metric.name} has no score of the edition {lacking[0]}, which it declares")
    missing = [f"{name} ({entry.reason})" for name, entry in entries.items() if math.isnan(entry.value)]
    return f"missing: {'; '.join(missing)}" if missing else f"{len(scores)} scores"


def _recomputes(trial: _Trial, mine: Measurement, retained: Measurement) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stored = []
        for name, measured in (("mine", mine), ("retained", retained)):
            (Path(folder) / name).write_bytes(rows_as_bytes(measured.rows))
            stored.append(Measurement(tuple(read_rows(Path(folder) / name))))
    tables = [list(trial.benchmark.score(own, own, other)) for own, other in ((mine, retained), tuple(stored))]

    def key(score: Score) -> tuple[Any, ...]:
        return score.metric, score.edition, repr(score.value), score.n, repr(score.interval)

    for before, after in zip(*tables, strict=True):
        if key(before) != key(after):
            raise Broken(f"{before.metric} is {before.value!r}, and {after.value!r} from the stored rows")


def _attackable(trial: _Trial, mine: Measurement) -> str:
    """Ask in the questions' own words, which gives the rows that are measured anyway, and in others."""
    questions = list(trial.benchmark.forget_questions(trial.task))
    if not questions:
        raise Broken("forget_questions has none")
    known = {(row["part"], row["index"]): row for row in mine.rows}
    asked = {(question.part, question.index) for question in questions}

    def measured(put: Sequence[Question]) -> list[Mapping[str, Any]]:
        model = tiny_model(trial.task.encoder, MINE)
        rows = trial.benchmark.measure(model, trial.benchmark.asking(trial.task, put), trial.context).rows
        return [row for row in rows if (row["part"], row["index"]) in asked]

    for row in measured(questions):
        # Other rows beside it round the last digits of a likelihood.
        if not _alike(row, known[row["part"], row["index"]]):
            raise Broken(f"row {row['index']} of {row['part']} is another when its own question is asked")
    other = [question if question.fixed else question.put(f"Now: {question.prompt}") for question in questions]
    for row, question in zip(measured(other), other, strict=True):
        if not question.fixed and row.get("asked") != question.prompt:
            raise Broken(f"row {row['index']} of {row['part']} does not say in which words it was asked (asked)")
        if row.get("prompt") != known[row["part"], row["index"]].get("prompt"):
            raise Broken(f"row {row['index']} of {row['part']} does not keep its own prompt")
    return f"{len(questions)} questions"


def _alike(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal, numbers up to rounding in single precision."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-6) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)


def _asked(trial: _Trial, mine: Measurement) -> None:
    pins = pins_of(trial.component, trial.tables)
    faults = list(unlike(mine.rows, pins, "the tables", int(trial.given.get("limit", 0))))
    if faults:
        raise Broken(faults[0])
