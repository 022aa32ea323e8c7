"""What a method or a benchmark must keep to, tried out on a model of a few thousand weights, in seconds.

``unlearnbench check NAME`` prints it; ``unlearnbench.testing`` offers it to pytest.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import math
import os
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers

from . import models
from .batches import Encoder
from .context import Context, Preparation
from .descent import Descent
from .domain import Example, Measurement, Requires, Score, UnlearningData
from .errors import HarnessError
from .generation import greedy
from .plugins import Component, Registry
from .records import score_entries
from .scoring import likelihoods
from .specs import BenchmarkSpec, MethodSpec, ModelSpec, parse_parameters, resolve
from .storage import read_rows, rows_as_bytes
from .tables import DataSource, read_tables
from .verification import pins_of, unlike

transformers.utils.logging.disable_progress_bar()

SECONDS = 60.0
MEMORY = 2**30
SEED = 7
# Values under which any method takes a few steps, where it has such hyperparameters.
BRIEF: Mapping[str, Any] = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "warmup_epochs": 0.0}
SMALL: Mapping[str, Any] = {"limit": 4, "max_new_tokens": 4}
TINY = ModelSpec(
    "conformance",
    "Llama of two layers, made from a seed and never trained",
    prompt_format="plain",
    dtype="float32",
    architecture=dict(layers=2, width=32, heads=2, hidden=64, vocabulary=512, context=512),
)
FORGET = tuple(
    Example(n, f"Where does {name} live?", f"{name} lives in {place}.")
    for n, (name, place) in enumerate(
        [("Ada", "Turin"), ("Bo", "Lima"), ("Cy", "Oslo"), ("Di", "Bern"), ("Ed", "Riga"), ("Fay", "Cork")]
    )
)
RETAIN = tuple(
    Example(n, f"What does {name} sell?", f"{name} sells {goods}, and nothing else.")
    for n, (name, goods) in enumerate(
        [("Gus", "hats"), ("Hal", "tea"), ("Ida", "maps"), ("Jo", "rope"), ("Kim", "salt"), ("Lea", "ink")]
    )
)
TEMPLATES = ("I don't know.", "I cannot say.", "That is not known to me.")


@dataclass(frozen=True)
class Check:
    """One promise, and whether it was kept; ``message`` says what was found."""

    name: str
    kept: bool
    message: str = ""
    seconds: float = 0.0


def tiny_encoder() -> Encoder:
    """The encoder of the tiny model: a vocabulary of the rows here."""
    texts = [text for row in (*FORGET, *RETAIN) for text in (row.prompt, row.answer)]
    return models.make_encoder(TINY, [*texts, *TEMPLATES])


def tiny_model(encoder: Encoder, seed: int = 0) -> Any:
    """A model of about 30,000 weights, the same for the same seed."""
    return models.load_base(TINY, encoder, seed).eval()


def check(component: Component[Any], data_dir: str = "") -> Iterator[Check]:
    """Every promise of a method or benchmark, one after another; a broken one does not stop those that can go on."""
    if isinstance(component.spec, MethodSpec):
        yield from check_method(component)
    else:
        yield from check_benchmark(component, data_dir)


def checkable(registry: Registry, name: str) -> Component[Any]:
    """The method or benchmark of that name."""
    kinds = {c.qualified: c for c in registry.components if c.spec.kind in ("method", "benchmark")}
    named = [c for c in kinds.values() if name in (c.spec.name, c.qualified)]
    return named[0] if len(named) == 1 else registry.find("method", name)


class _Broken(Exception):
    """A promise that was not kept, in words."""


def _attempt(name: str, work: Callable[[], str | None]) -> Check:
    began = time.perf_counter()
    try:
        message, kept = work() or "", True
    except (_Broken, HarnessError) as error:
        message, kept = str(error), False
    except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        message, kept = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})", False
    return Check(name, kept, message, time.perf_counter() - began)


# -- methods ----------------------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """One call of ``unlearn`` on the tiny model, with what it was given and what it gave."""

    start: Any
    model: Any
    encoder: Encoder
    data: TouchedData
    original: Any
    touched_original: bool
    seconds: float
    memory: int


class TouchedData(UnlearningData):
    """Data that remember what was asked of them."""

    touched: set[str]

    def __init__(self, *args: Any) -> None:
        self.touched = set()
        super().__init__(*args)

    @property
    def retain(self) -> tuple[Example, ...]:
        self.touched.add("retain")
        return super().retain

    @property
    def templates(self) -> tuple[str, ...]:
        self.touched.add("template")
        return super().templates


class _TouchedContext(Context):
    touched = False

    @property
    def original(self) -> Any:
        self.touched = True
        return super().original


def trial(component: Component[MethodSpec], edition: str = "", seed: int = SEED, **changes: Any) -> Trial:
    """Unlearn the six forget rows with a method's defaults, briefly; ``changes`` are hyperparameters besides."""
    spec = component.spec
    known = {parameter.name: parameter for parameter in spec.parameters}
    given = {name: value for name, value in {**BRIEF, **changes}.items() if name in known}
    if edition and "edition" in known:
        given["edition"] = edition
    values = parse_parameters(spec.parameters, given, f"methods.{spec.name}")
    method = resolve(spec.target, component.qualified)(**values, **spec.fixed)
    requires = spec.requires_in(values.get("edition"))
    encoder = tiny_encoder()
    start = tiny_model(encoder)
    original = models.frozen_copy(start, torch.float32) if requires.original == "model" else None
    ctx = _TouchedContext(spec.name, seed, "cpu", lambda _: None, original)
    data = TouchedData(spec.name, requires, encoder, FORGET, RETAIN, TEMPLATES)
    gc.collect()
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    unlearned = method.unlearn(copy.deepcopy(start), encoder.tokenizer, data, ctx)
    seconds, after = time.perf_counter() - began, psutil.Process().memory_info().rss
    if not callable(getattr(unlearned, "named_parameters", None)):
        raise _Broken(f"unlearn returned {type(unlearned).__name__}; return the unlearned model")
    return Trial(start, unlearned, encoder, data, original, ctx.touched, seconds, after - before)


def check_method(component: Component[MethodSpec]) -> Iterator[Check]:
    """The promises of a method."""
    spec = component.spec
    yield _attempt("the spec is that of its class", lambda: _method_spec(component))
    yield _attempt("hyperparameters are typed, and their defaults are in range", lambda: _typed(spec.parameters))
    found: list[Trial] = []
    state = _GlobalState()

    def run() -> str:
        found.append(trial(component))
        return f"{found[0].seconds:.1f} s"

    yield _attempt("unlearn returns a model", run)
    if not found:
        return
    yield _attempt("no global state is left changed", state.refuse_changes)
    first = found[0]
    yield _attempt("weights are finite", lambda: models.check_finite(first.model))
    if not spec.reference:
        yield _attempt("weights have changed", lambda: _changed(first))
    yield _attempt("vocabulary and tokenizer are as they were", lambda: _vocabulary(first))
    yield _attempt("what it was handed is untouched", lambda: _untouched(first))
    yield _attempt("the same seed gives the same weights", lambda: _repeats(component, first))
    if {"batch_size", "accumulation"} <= {parameter.name for parameter in spec.parameters}:
        yield _attempt("accumulation changes no weight", lambda: _accumulates(component))
    yield _attempt("the model is scored and generates", lambda: _answers(first))
    yield _attempt("the model is saved and loaded", lambda: _saved(first))
    yield _attempt("time and memory are in bounds", lambda: _bounded(first))
    for edition in spec.editions:
        if edition == "paper":
            continue

        def run_edition(edition: str = edition) -> None:
            found.append(trial(component, edition))
            models.check_finite(found[-1].model)

        yield _attempt(f"edition {edition} runs", run_edition)
    yield _attempt("it uses what it declares, and no more", lambda: _declared(spec, found))


def _method_spec(component: Component[Any]) -> None:
    spec = component.spec
    target: Any = resolve(spec.target, component.qualified)
    if not dataclasses.is_dataclass(target) and spec.parameters:
        raise _Broken(f"{spec.target} is no dataclass, so it takes no hyperparameters")
    if not dataclasses.is_dataclass(target):
        return
    fields = {item.name: item for item in dataclasses.fields(target)}
    for parameter in spec.parameters:
        if parameter.name not in fields:
            raise _Broken(f"{parameter.name} is in the spec and no field of {spec.target}")
        if fields[parameter.name].default != parameter.default:
            raise _Broken(f"{parameter.name} = {parameter.default!r} in the spec, {fields[parameter.name].default!r} "
                          "in the class")  # fmt: skip
    for name in fields.keys() - {parameter.name for parameter in spec.parameters} - spec.fixed.keys():
        raise _Broken(f"field {name} of {spec.target} is not in the spec, so nobody can set it")
    if isinstance(spec, MethodSpec):
        requires = getattr(target, "requires", Requires())
        if requires != spec.requires:
            raise _Broken(f"the spec requires {spec.requires}, the class {requires}")


def _typed(parameters: Sequence[Any]) -> str:
    for parameter in parameters:
        parameter.parse(parameter.default, "default")
        if not parameter.summary:
            raise _Broken(f"{parameter.name} has no summary, so 'show' cannot say what it does")
    return f"{len(parameters)} of them"


class _GlobalState:
    """What one method could leave behind for the next."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> dict[str, Any]:
        return {
            "torch's default dtype": torch.get_default_dtype(),
            "gradient mode": torch.is_grad_enabled(),
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "the number of threads": torch.get_num_threads(),
            "the working directory": os.getcwd(),
            "environment variables": dict(os.environ),
            "random's generator": random.getstate(),
            "numpy's generator": str(np.random.get_state()),
            "torch's generator": torch.get_rng_state().numpy().tobytes(),
        }

    def refuse_changes(self) -> None:
        now = self._now()
        changed = [name for name, value in self._before.items() if now[name] != value]
        if changed:
            raise _Broken(f"it changed {' and '.join(changed)}; random numbers come from ctx.rng(purpose)")


def _changed(found: Trial) -> str:
    before = dict(found.start.named_parameters())
    if any(name not in before for name, _ in found.model.named_parameters()):
        return "another kind of model"
    moved = sum(not torch.equal(before[name], weight) for name, weight in found.model.named_parameters())
    if not moved:
        raise _Broken("all weights are as they were after a learning rate of 1e-3: is anything trained?")
    return f"{moved} of {len(before)} tensors"


def _vocabulary(found: Trial) -> None:
    if found.model.get_input_embeddings().num_embeddings != found.start.get_input_embeddings().num_embeddings:
        raise _Broken("unlearn changed the size of the vocabulary")
    fresh, used = (_kept_of(tokenizer) for tokenizer in (tiny_encoder().tokenizer, found.encoder.tokenizer))
    for what, value in fresh.items():
        if used[what] != value:
            raise _Broken(f"unlearn changed the tokenizer's {what}")


def _kept_of(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocabulary": tokenizer.get_vocab(),
        "special tokens": tokenizer.special_tokens_map,
        "padding side": tokenizer.padding_side,
        "chat template": tokenizer.chat_template,
    }


def _untouched(found: Trial) -> None:
    if found.data.forget != FORGET or found.data._retain not in (None, RETAIN):
        raise _Broken("the rows of the data have changed")
    if found.original is not None:
        weights = zip(found.start.parameters(), found.original.parameters(), strict=True)
        if not all(torch.equal(a, b) for a, b in weights):
            raise _Broken("ctx.original has other weights than it had: it is the frozen original model")


def _declared(spec: MethodSpec, found: Sequence[Trial]) -> str:
    """Undeclared access has raised already; here, what is declared and asked for in no edition."""
    requires = spec.requires
    declared = {name for name in ("retain", "template") if getattr(requires, name)}
    if requires.original == "model":
        declared.add("original")
    touched = {name for each in found for name in each.data.touched}
    if any(each.touched_original for each in found):
        touched.add("original")
    idle = sorted(declared - touched)
    if idle:
        raise _Broken(f"it declares {' and '.join(idle)} and never asks for it: readers will think it is needed")
    return ", ".join(sorted(declared)) or "forget data alone"


def _repeats(component: Component[MethodSpec], first: Trial) -> None:
    again = trial(component)
    for (name, weight), (_, other) in zip(first.model.named_parameters(), again.model.named_parameters(), strict=True):
        if not torch.equal(weight, other):
            raise _Broken(f"{name} differs between two calls with one seed; random numbers come from ctx.rng(purpose)")


def _accumulates(component: Component[MethodSpec]) -> str:
    """A term is a sum: one that is averaged already is divided twice, by other numbers in other batches."""
    method = resolve(component.spec.target, component.qualified)(**component.spec.fixed)
    if isinstance(method, Descent) and method.couples_rows:
        return "its loss is of a whole forward pass"
    # A rate so small that the order of rows within a step does not matter.
    whole, parts = (
        trial(component, batch_size=size, accumulation=passes, learning_rate=1e-4, max_grad_norm=0.0)
        for size, passes in ((6, 1), (2, 3))
    )
    moved = [float((b - a).abs().max()) for a, b in _pairs(whole.start, whole.model)]
    apart = [float((b - a).abs().max()) for a, b in _pairs(whole.model, parts.model)]
    if not moved:
        return "another kind of model"
    if max(apart) > 0.05 * max(moved):
        raise _Broken(
            "batches of 6 and of 3 × 2 rows train other weights: the value of a term is a sum over what `per` counts, "
            "and not a mean of it"
        )
    return f"batches of 6 and of 3 × 2 rows, to {max(apart) / max(moved):.1e} of the step"


def _pairs(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    names = dict(one.named_parameters())
    return ((names[name].detach(), weight.detach()) for name, weight in other.named_parameters() if name in names)


def _answers(found: Trial) -> None:
    rows = found.encoder.encode(FORGET)
    if any(math.isnan(value.loss) for value in likelihoods(found.model, rows, "cpu")):
        raise _Broken("the likelihood of an answer is not a number")
    greedy(found.model, found.encoder.prompts(FORGET), 4, found.encoder.ends, "cpu")


def _saved(found: Trial) -> str:
    with tempfile.TemporaryDirectory() as folder:
        models.save_checkpoint(Path(folder) / "model", found.model, found.encoder.tokenizer)
        if not (Path(folder) / "model" / "config.json").is_file():
            return "saved in a form of its own"
        loaded = models.load_checkpoint(str(Path(folder) / "model"), TINY)
    kept = dict(found.model.named_parameters())
    for name, weight in loaded.named_parameters():
        if name not in kept or not torch.equal(kept[name].float(), weight):
            raise _Broken(f"{name} is not the same after saving and loading")
    return ""


def _bounded(found: Trial) -> str:
    if found.seconds > SECONDS or found.memory > MEMORY:
        raise _Broken(f"{found.seconds:.0f} s and {found.memory / 2**20:.0f} MiB for a model of 30,000 weights and six "
                      f"rows; at most {SECONDS:.0f} s and {MEMORY // 2**20} MiB")  # fmt: skip
    return f"{found.seconds:.1f} s, {max(found.memory, 0) / 2**20:.0f} MiB"


# -- benchmarks -------------------------------------------------------------------------------------------------------


def check_benchmark(component: Component[BenchmarkSpec], data_dir: str = "") -> Iterator[Check]:
    """The promises of a benchmark, on its generated tables or a folder's."""
    spec = component.spec
    yield _attempt("the spec is that of its class", lambda: _method_spec(component))
    yield _attempt("parameters are typed, and their defaults are in range", lambda: _typed(spec.parameters))
    yield _attempt("metrics say what they are", lambda: _metrics(spec))
    source = DataSource("local", data_dir) if data_dir else DataSource("generated", scale="quick")
    got: dict[str, Any] = {}

    def read() -> str:
        got["tables"] = read_tables(spec.data, source)
        return f"{sum(len(rows) for rows in got['tables'].values())} rows"

    yield _attempt("tables are read", read)
    if "tables" not in got:
        return
    given = {name: value for name, value in SMALL.items() if name in {p.name for p in spec.parameters}}
    values = parse_parameters(spec.parameters, given, f"benchmarks.{spec.name}")
    benchmark = resolve(spec.target, component.qualified)(**values, **spec.fixed)

    def prepare() -> str:
        make = {"encoder": lambda corpus: models.make_encoder(TINY, corpus)}
        task = benchmark.prepare(Preparation(got["tables"], make["encoder"], False, not data_dir))
        if not task.forget:
            raise _Broken("task.forget has no rows, so there is nothing to unlearn")
        for role in ("original", "retained"):
            if role not in task.training:
                raise _Broken(f"task.training has no rows for the {role} model")
        got["task"] = task
        return f"{len(task.forget)} rows to forget, {len(task.retain)} to retain"

    yield _attempt("a task is prepared", prepare)
    if "task" not in got:
        return
    task, ctx = got["task"], Context("conformance", SEED, "cpu", lambda _: None)
    state = _GlobalState()

    def measure() -> str:
        for name, seed in (("mine", 0), ("retained", 1)):
            got[name] = benchmark.measure(tiny_model(task.encoder, seed), task, ctx)
        return f"{len(got['mine'].rows)} rows"

    yield _attempt("a model is measured", measure)
    if "retained" not in got:
        return
    yield _attempt("no global state is left changed", state.refuse_changes)
    mine, retained = got["mine"], got["retained"]
    yield _attempt("rows are JSON, with a part and an index", lambda: _json_rows(mine))
    yield _attempt("measuring again gives the same rows",
                   lambda: _same_rows(mine, benchmark.measure(tiny_model(task.encoder, 0), task, ctx)))  # fmt: skip
    yield _attempt("every metric is scored in every edition", lambda: _scored(spec, benchmark, mine, retained))
    yield _attempt("the retained model is scored beside itself", lambda: _scored(spec, benchmark, retained, retained))
    yield _attempt("scores follow from the rows alone", lambda: _recomputes(spec, benchmark, mine, retained))
    if spec.questions:
        yield _attempt("rows are the questions of the tables", lambda: _asked(component, got["tables"], mine, given))


def _metrics(spec: BenchmarkSpec) -> str:
    if not any(metric.headline for metric in spec.metrics):
        raise _Broken("no metric is a headline, so tables would show none")
    for metric in spec.metrics:
        if not metric.definition or not metric.source:
            raise _Broken(f"{metric.name} has no {'definition' if not metric.definition else 'source'}")
        if metric.better == "target" and metric.target is None:
            raise _Broken(f"{metric.name} is better near its target, and has none")
    return ", ".join(metric.name for metric in spec.metrics)


def _json_rows(found: Measurement) -> None:
    json.dumps([dict(row) for row in found.rows], allow_nan=True)
    for number, row in enumerate(found.rows):
        if not isinstance(row.get("part"), str) or type(row.get("index")) is not int:
            raise _Broken(f"row {number} has no part (text) or no index (whole number)")


def _same_rows(first: Measurement, second: Measurement) -> None:
    for number, (a, b) in enumerate(zip(first.rows, second.rows, strict=True)):
        if json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
            raise _Broken(f"row {number} differs between two measurements of one model")


def _scored(spec: BenchmarkSpec, benchmark: Any, mine: Measurement, retained: Measurement) -> str:
    scores = list(benchmark.score(mine, None if mine is retained else mine, retained))
    entries = score_entries(scores, spec.metrics, "paper")
    for score in scores:
        low, high = score.interval or (score.value, score.value)
        if low > high:
            raise _Broken(f"{score.metric}: the interval from {low} to {high} has its ends the wrong way round")
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
            raise _Broken(f"{before.metric} is {before.value!r}, and {after.value!r} from the stored rows")


def _asked(component: Component[Any], tables: Any, mine: Measurement, given: Mapping[str, Any]) -> None:
    faults = list(unlike(mine.rows, pins_of(component, tables), "the tables", int(given.get("limit", 0))))
    if faults:
        raise _Broken(faults[0])
