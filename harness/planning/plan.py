"""From a study to a graph of nodes: reference models, their measurements, and one cell per method.

Nothing here imports torch: names, hyperparameters, data folders and checkpoints are validated before any work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

from ..data.sources import DataSource, fingerprints, pinned, read_tables
from ..errors import UnknownName
from ..plugin.parameters import TRAINING_PARAMETERS, parse_parameters
from ..plugin.registry import Component, Registry
from ..plugin.specs import BenchmarkSpec, MethodSpec, ModelSpec
from ..storage import digest
from .code_digest import engine_digest, modules_digest, source_digest
from .estimates import shape_of
from .nodes import Node, Plan
from .provenance import device_kind, provenance, versions
from .selection import (
    check_metrics,
    check_tables,
    data_source,
    published_checkpoint,
    refusal_templates,
    selected,
    weights_fingerprint,
)
from .study import Study

ROLES = ("original", "retained")


@dataclass(frozen=True)
class Inputs:
    """What all cells of a study read: the source of tables, the refusal answers, and the source code of components.

    Code is read once for a plan, however many cells it has; the next plan looks again.
    """

    source: DataSource
    templates: tuple[str, ...]
    code: Callable[..., str] = field(default_factory=lambda: cache(source_digest))


def make_plan(study: Study, registry: Registry) -> Plan:
    """Every pairing of the study, and the reference nodes that they need.

    Raises:
        UnknownName, UsageError: a name, key or value of the study that cannot be used, used or not.
        DataError, ModelError: a data folder or model folder that cannot.
        NothingSelected: the study names no method, no benchmark or no model.
    """
    methods = selected(study, registry, "method")
    benchmarks = selected(study, registry, "benchmark")
    models = selected(study, registry, "model")
    named = {benchmark.spec.name for benchmark in benchmarks}
    for name, values in study.recipe.items():
        if isinstance(values, Mapping) and name not in named:
            raise UnknownName("benchmark in [recipe]", name, named)
    check_metrics(study, benchmarks)
    inputs = Inputs(data_source(study), tuple(refusal_templates(study)))
    check_tables(inputs.source, benchmarks)
    registry.find("executor", str(study.run["executor"]))
    nodes: dict[str, Node] = {}
    for benchmark in benchmarks:
        source = inputs.source
        benchmark = replace(benchmark, spec=replace(benchmark.spec, data=pinned(benchmark.spec.data, source)))
        tables = fingerprints(benchmark.spec.data, source)
        if source.all_local(benchmark.spec.data):
            read_tables(benchmark.spec.data, source)
        for model in models:
            for seed in study.seeds:
                for node in _pairings(study, registry, inputs, methods, benchmark, model, seed, tables):
                    nodes.setdefault(node.key, node)
    return Plan(study, tuple(nodes.values()))


def _pairings(
    study: Study,
    registry: Registry,
    inputs: Inputs,
    methods: list[Component[MethodSpec]],
    benchmark: Component[BenchmarkSpec],
    model: Component[ModelSpec],
    seed: int,
    tables: Mapping[str, str],
) -> Iterator[Node]:
    """The nodes of one benchmark × model × seed: two reference models, their cells, one cell per method."""
    shared = _shared_spec(study, inputs, benchmark, model, seed, tables)
    references = {role: _reference_node(shared, role) for role in ROLES}
    yield from references.values()
    models = {role: node.key for role, node in references.items()}
    named = [method for method in methods if method.qualified not in {f"unlearnbench/{role}" for role in ROLES}]
    cells: dict[str, str] = {}
    # The retained model is measured first: every forget score is a comparison with it.
    for role in reversed(ROLES):
        reference = registry.find("method", f"unlearnbench/{role}")
        node = _cell_node(study, inputs, shared, reference, models, dict(cells))
        cells[role] = node.key
        yield node
    for component in named:
        yield _cell_node(study, inputs, shared, component, models, cells)


def _shared_spec(
    study: Study,
    inputs: Inputs,
    benchmark: Component[BenchmarkSpec],
    model: Component[ModelSpec],
    seed: int,
    tables: Mapping[str, str],
) -> dict[str, Any]:
    spec, source = benchmark.spec, inputs.source
    parameters = {parameter.name for parameter in spec.parameters}
    given = study.given("benchmarks", (spec.name, benchmark.qualified), list(parameters))
    values = parse_parameters(spec.parameters, given, f"benchmarks.{spec.name}")
    recipe = {**spec.recipe, **model.spec.recipe, **study.recipe_for(spec.name)}
    return {
        "benchmark": {
            "name": spec.name,
            "qualified": benchmark.qualified,
            "version": spec.version,
            "target": spec.target,
            "source": inputs.code(spec.target, spec.scoring),
            "scoring": modules_digest(spec.scoring),
            "values": values,
            "fixed": dict(spec.fixed),
            "training_settings": _training_settings(spec, values),
            "data": {**asdict(spec.data), "fingerprints": dict(tables)},
            "training": {role: _as_tuple(named) for role, named in spec.training.items()},
            "metrics": [asdict(metric) for metric in spec.metrics],
            "samples": spec.samples,
            "vocabulary": list(spec.vocabulary),
            "packages": versions(spec.packages),
            "defaults": {parameter.name: parameter.default for parameter in spec.parameters},
            "recipe": dict(spec.recipe),
            "workload": dict(spec.workload),
        },
        "model": {**asdict(model.spec), "shape": shape_of(model.spec), "fingerprint": weights_fingerprint(model.spec)},
        "data": asdict(source),
        "departures": [
            *(source.departures(spec.data) if source.kind == "local" else []),
            *(["weights may be missing (allow_missing_weights)"] if model.spec.allow_missing_weights else []),
        ],
        "recipe": parse_parameters(TRAINING_PARAMETERS, recipe, "recipe"),
        "seed": seed,
        "engine": engine_digest(),
        # The precision of dtype = auto follows from it.
        "device": device_kind(str(study.run["device"])),
        "plugins": {
            "benchmark": asdict(benchmark.plugin),
            "model": asdict(model.plugin),
        },
        "provenance": provenance(),
        "run": dict(study.run),
    }


def _as_tuple(tables: str | tuple[str, ...]) -> tuple[str, ...]:
    return (tables,) if isinstance(tables, str) else tables


def _training_settings(spec: BenchmarkSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """What changes the rows of the reference models beyond their table: nothing at the defaults, else everything."""
    relevant = [parameter for parameter in spec.parameters if parameter.name not in spec.evaluation_parameters]
    if all(values[parameter.name] == parameter.default for parameter in relevant):
        return {}
    return {**{parameter.name: values[parameter.name] for parameter in relevant}, **spec.fixed}


def _reference_node(shared: Mapping[str, Any], role: str) -> Node:
    benchmark, model = shared["benchmark"], shared["model"]
    named = benchmark["training"].get(role, (role,))
    table = "+".join(name.replace("/", "_") for name in named)
    published, revision = published_checkpoint(str(model[role]).replace("{split}", table))
    content: dict[str, Any]
    if published:
        content = {"published": published, "revision": revision}
    else:
        content = {
            "model": _model_content(model),
            "recipe": shared["recipe"],
            "training": [benchmark["data"]["fingerprints"].get(name, name) for name in named],
            "vocabulary": {name: benchmark["data"]["fingerprints"][name] for name in benchmark["vocabulary"]}
            if model["architecture"] else {},
            "settings": benchmark["training_settings"],
            "benchmark": benchmark["source"],
            "seed": shared["seed"],
            "engine": shared["engine"],
            "device": shared["device"],
        }  # fmt: skip
    identity = digest(content)
    key = _key((role, model["name"], table), shared["seed"], identity)
    spec = {**shared, "kind": "model", "role": role, "published": published, "published_revision": revision,
            "content": identity, "key": key}  # fmt: skip
    return Node(key, "model", f"{role} model {model['name']} ({table})", (), identity, spec)


def _model_content(model: Mapping[str, Any]) -> dict[str, Any]:
    """All of a model that can change a number; its name, words and estimates cannot, and recipes are merged before."""
    apart = {"name", "path", "revision", "summary", "citation", "api_version", "shape", "recipe", "method_defaults",
             "original", "retained", "allow_pickle"}  # fmt: skip
    # Path and revision on the hub are the fingerprint; of a folder it is the hash of its files, wherever they lie.
    return {key: value for key, value in model.items() if key not in apart}


def _key(names: Sequence[str], seed: int, identity: str) -> str:
    """A folder's name on any system: whatever the names hold, the hash at its end tells cells apart."""
    safe = "--".join(re.sub(r"[^A-Za-z0-9._+-]", "_", name)[:60] for name in names)
    return f"{safe.lstrip('.+-') or '_'}--s{seed}--{identity[:12]}"


def _cell_node(
    study: Study,
    inputs: Inputs,
    shared: Mapping[str, Any],
    method: Component[MethodSpec],
    models: Mapping[str, str],
    references: Mapping[str, str],
) -> Node:
    spec, benchmark, model = method.spec, shared["benchmark"], shared["model"]
    values = _hyperparameters(study, method, model)
    requires = spec.requires_in(values.get("edition"))
    entry = {
        "name": spec.name,
        "qualified": method.qualified,
        "target": spec.target,
        "source": inputs.code(spec.target),
        "values": values,
        "fixed": dict(spec.fixed),
        "requires": asdict(requires),
        "reference": spec.reference,
        "models": spec.models,
        "citation": spec.citation,
    }
    templates = list(inputs.templates) if requires.template else []
    content = {
        "method": {key: entry[key] for key in ("qualified", "source", "values", "fixed", "requires")},
        "benchmark": {key: benchmark[key] for key in ("qualified", "version", "source", "values", "fixed", "packages")},
        "tables": benchmark["data"]["fingerprints"],
        "model": _model_content(model),
        "references": {role: key.rpartition("--")[2] for role, key in models.items()},
        "seed": shared["seed"],
        "engine": shared["engine"],
        "device": shared["device"],
        "templates": templates,
    }
    identity = digest(content)
    key = _key((spec.name, benchmark["name"], model["name"]), shared["seed"], identity)
    needs = (models[requires.start], *references.values())
    cell = {
        **shared,
        "kind": "cell",
        "key": key,
        "content": identity,
        "method": entry,
        "templates": templates,
        "models": dict(models),
        "references": dict(references),
        "edition": study.edition,
        "plugins": {**shared["plugins"], "method": asdict(method.plugin)},
    }
    title = f"{spec.name} × {benchmark['name']} × {model['name']} seed {shared['seed']}"
    return Node(key, "cell", title, needs, identity, cell)


def _hyperparameters(study: Study, method: Component[MethodSpec], model: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults, then the model's, then the study's for all methods, then for this one."""
    spec = method.spec
    names = [parameter.name for parameter in spec.parameters]
    suited = {key: value for key, value in model["method_defaults"].items() if key in names}
    given = suited | study.given("methods", (spec.name, method.qualified), names)
    return parse_parameters(spec.parameters, given, f"methods.{spec.name}")
