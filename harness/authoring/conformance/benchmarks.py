"""What a benchmark must keep to."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...contracts import Context, Preparation
from ...data.sources import DataSource, read_tables
from ...domain import Measurement, Score
from ...engine.engine import Engine
from ...plugin.parameters import parse_parameters
from ...plugin.registry import Component
from ...plugin.specs import BenchmarkSpec, resolve
from ...records.record import score_entries
from ...results.verification import pins_of, unlike
from ...storage import read_rows, rows_as_bytes
from ...training import models
from .checks import Broken, Check, attempt
from .methods import GlobalState, method_spec, typed
from .trial import SEED, TINY, tiny_model

SMALL: Mapping[str, Any] = {"limit": 4, "max_new_tokens": 4}


# -- benchmarks -------------------------------------------------------------------------------------------------------


def check_benchmark(component: Component[BenchmarkSpec], data_dir: str = "") -> Iterator[Check]:
    """The promises of a benchmark, on its generated tables or a folder's."""
    spec = component.spec
    yield attempt("the spec is that of its class", lambda: method_spec(component))
    yield attempt("parameters are typed, and their defaults are in range", lambda: typed(spec.parameters))
    yield attempt("metrics say what they are", lambda: _metrics(spec))
    source = DataSource("local", data_dir) if data_dir else DataSource("generated", scale="quick")
    got: dict[str, Any] = {}

    def read() -> str:
        got["tables"] = read_tables(spec.data, source)
        return f"{sum(len(rows) for rows in got['tables'].values())} rows"

    yield attempt("tables are read", read)
    if "tables" not in got:
        return
    given = {name: value for name, value in SMALL.items() if name in {p.name for p in spec.parameters}}
    values = parse_parameters(spec.parameters, given, f"benchmarks.{spec.name}")
    benchmark = resolve(spec.target, component.qualified)(**values, **spec.fixed)

    def prepare() -> str:
        make = {"encoder": lambda corpus: models.make_encoder(TINY, corpus)}
        task = benchmark.prepare(Preparation(got["tables"], make["encoder"], False, not data_dir))
        if not task.forget:
            raise Broken("task.forget has no rows, so there is nothing to unlearn")
        for role in ("original", "retained"):
            if role not in task.training:
                raise Broken(f"task.training has no rows for the {role} model")
        got["task"] = task
        return f"{len(task.forget)} rows to forget, {len(task.retain)} to retain"

    yield attempt("a task is prepared", prepare)
    if "task" not in got:
        return
    task, ctx = got["task"], Context("conformance", SEED, Engine(), lambda _: None)
    state = GlobalState()

    def measure() -> str:
        for name, seed in (("mine", 0), ("retained", 1)):
            got[name] = benchmark.measure(tiny_model(task.encoder, seed), task, ctx)
        return f"{len(got['mine'].rows)} rows"

    yield attempt("a model is measured", measure)
    if "retained" not in got:
        return
    yield attempt("no global state is left changed", state.refuse_changes)
    mine, retained = got["mine"], got["retained"]
    yield attempt("rows are JSON, with a part and an index", lambda: _json_rows(mine))
    yield attempt("measuring again gives the same rows",
                   lambda: _same_rows(mine, benchmark.measure(tiny_model(task.encoder, 0), task, ctx)))  # fmt: skip
    yield attempt("every metric is scored in every edition", lambda: _scored(spec, benchmark, mine, retained))
    yield attempt("the retained model is scored beside itself", lambda: _scored(spec, benchmark, retained, retained))
    yield attempt("scores follow from the rows alone", lambda: _recomputes(spec, benchmark, mine, retained))
    if spec.questions:
        yield attempt("rows are the questions of the tables", lambda: _asked(component, got["tables"], mine, given))


def _metrics(spec: BenchmarkSpec) -> str:
    if not any(metric.headline for metric in spec.metrics):
        raise Broken("no metric is a headline, so tables would show none")
    for metric in spec.metrics:
        if not metric.definition or not metric.source:
            raise Broken(f"{metric.name} has no {'definition' if not metric.definition else 'source'}")
        if metric.better == "target" and metric.target is None:
            raise Broken(f"{metric.name} is better near its target, and has none")
    return ", ".join(metric.name for metric in spec.metrics)


def _json_rows(found: Measurement) -> None:
    json.dumps([dict(row) for row in found.rows], allow_nan=True)
    for number, row in enumerate(found.rows):
        if not isinstance(row.get("part"), str) or type(row.get("index")) is not int:
            raise Broken(f"row {number} has no part (text) or no index (whole number)")


def _same_rows(first: Measurement, second: Measurement) -> None:
    for number, (a, b) in enumerate(zip(first.rows, second.rows, strict=True)):
        if json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
            raise Broken(f"row {number} differs between two measurements of one model")


def _scored(spec: BenchmarkSpec, benchmark: Any, mine: Measurement, retained: Measurement) -> str:
    scores = list(benchmark.score(mine, None if mine is retained else mine, retained))
    entries = score_entries(scores, spec.metrics, "paper")
    for score in scores:
        low, high = score.interval or (score.value, score.value)
        if low > high:
            raise Broken(f"{score.metric}: the interval from {low} to {high} has its ends the wrong way round")
    missing = [f"{name} ({entry.reason})" for name, entry in entries.items() if math.isnan(entry.value)]
    return f"missing: {'; '.join(missing)}" if missing else f"{len(scores)} scores"


def _recomputes(spec: BenchmarkSpec, benchmark: Any, mine: Measurement, retained: Measurement) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stored = []
        for name, found in (("mine", mine), ("retained", retained)):
            (Path(folder) / name).write_bytes(rows_as_bytes(found.rows))
            stored.append(Measurement(tuple(read_rows(Path(folder) / name))))
    tables = [list(benchmark.score(own, own, other)) for own, other in ((mine, retained), tuple(stored))]

    def key(score: Score) -> tuple[Any, ...]:
        return score.metric, score.edition, repr(score.value), score.n, repr(score.interval)

    for before, after in zip(*tables, strict=True):
        if key(before) != key(after):
            raise Broken(f"{before.metric} is {before.value!r}, and {after.value!r} from the stored rows")


def _asked(component: Component[Any], tables: Any, mine: Measurement, given: Mapping[str, Any]) -> None:
    faults = list(unlike(mine.rows, pins_of(component, tables), "the tables", int(given.get("limit", 0))))
    if faults:
        raise Broken(faults[0])
