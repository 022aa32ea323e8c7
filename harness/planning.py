"""From a study to a graph of nodes: reference models, their measurements, and one cell per method.

Nothing here imports torch: names, hyperparameters, data folders and checkpoints are validated before any work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from .errors import DataError, ModelError, NothingSelected, UnknownName, UsageError
from .estimates import shape_of
from .gates import read_gates
from .hyperparameters import TRAINING_PARAMETERS
from .plugins import Component, Registry
from .prepared import folder_fingerprint, is_pointer
from .provenance import device_kind, provenance, versions
from .sources import engine_digest, modules_digest, source_digest
from .specs import BenchmarkSpec, MethodSpec, ModelSpec, parse_parameters
from .storage import digest
from .study import EVERY, Study
from .tables import DataSource, fingerprints, hub_commit, pinned, read_tables

PLAN_SCHEMA = 1
ROLES = ("original", "retained")


@dataclass(frozen=True)
class Node:
    """One unit of work in a process of its own: a reference model to prepare, or a cell to run.

    ``spec`` is all that the process is given; ``content`` is the hash of what can change its result.
    """

    key: str
    kind: str
    title: str
    needs: tuple[str, ...]
    content: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What all cells of a study read: the source of tables, the refusal answers, and the source code of components.

    Code is read once for a plan, however many cells it has; the next plan looks again.
    """

    source: DataSource
    templates: tuple[str, ...]
    code: Callable[..., str] = field(default_factory=lambda: cache(source_digest))


@dataclass(frozen=True)
class Plan:
    """A study with its nodes, in an order in which every node follows those it needs."""

    study: Study
    nodes: tuple[Node, ...]

    @property
    def cells(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.kind == "cell")


def make_plan(study: Study, registry: Registry) -> Plan:
    """Every pairing of the study, and the reference nodes that they need.

    Raises:
        UnknownName, UsageError: a name, key or value of the study that cannot be used, used or not.
        DataError, ModelError: a data folder or model folder that cannot.
        NothingSelected: the study names no method, no benchmark or no model.
    """
    methods = _selected(study, registry, "method")
    benchmarks = _selected(study, registry, "benchmark")
    models = _selected(study, registry, "model")
    named = {benchmark.spec.name for benchmark in benchmarks}
    for name, values in study.recipe.items():
        if isinstance(values, Mapping) and name not in named:
            raise UnknownName("benchmark in [recipe]", name, named)
    _known_metrics(study, benchmarks)
    inputs = Inputs(_data_source(study), tuple(_templates(study)))
    _known_tables(inputs.source, benchmarks)
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


def _selected(study: Study, registry: Registry, kind: Any) -> list[Component[Any]]:
    section = f"{kind}s"
    names = study.selected[section]
    if names == ("all",):
        names = tuple(component.qualified for component in registry.of_kind(kind))
    if not names:
        raise NothingSelected(f"the study selects no {kind}; name some with study.{section} or --{kind}")
    found = [_customised(study, registry, name) if kind == "model" else registry.find(kind, name) for name in names]
    if kind == "model":
        found = _told_apart(found)
    known = {*names, *(c.spec.name for c in found), *(c.qualified for c in found)}
    others = study.also.get(section, ())
    known |= {c.spec.name for c in registry.of_kind(kind)} if others == ("all",) else set(others)
    # The reference methods are part of every plan.
    extra = {"original", "retained", EVERY} if kind == "method" else {EVERY}
    for name in study.overrides[section]:
        if name not in known | extra:
            raise UnknownName(f"{kind} in [{section}]", name, known, "; its settings would change nothing")
    keys = {parameter.name for component in found for parameter in component.spec.parameters}
    for key in study.overrides[section].get(EVERY, {}):
        if key not in keys:
            raise UnknownName(f"key of {section}.{EVERY}", key, keys)
    return found


def _told_apart(models: list[Component[ModelSpec]]) -> list[Component[ModelSpec]]:
    """Models whose folders end alike are called by as much of their paths as tells them apart."""
    found = []
    for model in models:
        others = [other.spec for other in models if other.spec.name == model.spec.name and other is not model]
        parts, length = Path(model.spec.path).parts, 1
        while any(Path(other.path).parts[-length:] == parts[-length:] for other in others) and length < len(parts):
            length += 1
        name = "/".join(parts[-length:]) if length > 1 else model.spec.name
        found.append(replace(model, spec=replace(model.spec, name=name)))
    return found


def _customised(study: Study, registry: Registry, name: str) -> Component[ModelSpec]:
    """A registered model with the study's overrides, or a new one from a hub id or folder."""
    parameters = [parameter.name for parameter in ModelSpec.parameters]
    known = [c for c in registry.of_kind("model") if name in (c.spec.name, c.qualified)]
    if known:
        component = registry.find("model", name)
        given = study.given("models", (component.spec.name, component.qualified), parameters)
    else:
        plugin = registry.find("model", "unlearnbench/tiny").plugin
        component = Component(_named_in_study(registry, name, study.given("models", (name,), parameters)), plugin)
        # A folder has its own name too, and settings may stand under either.
        given = study.given("models", (component.spec.name, name), parameters)
    values = parse_parameters(ModelSpec.parameters, {**_model_values(component.spec), **given}, f"models.{name}")
    spec = replace(component.spec, **values)
    if spec.path and (spec.path.startswith((".", "/", "~")) or os.path.isdir(spec.path)):
        spec = replace(spec, path=_model_folder(spec, name))
    elif spec.path:
        spec = replace(spec, revision=hub_commit("model", spec.path, spec.revision))
    _check_date(spec.template_date, name)
    return Component(spec, component.plugin)


def _check_date(value: str, name: str) -> None:
    try:
        date.fromisoformat(value)
    except ValueError:
        raise UsageError(f"models.{name}.template_date = {value!r}: expected a day, YYYY-MM-DD") from None


def _named_in_study(registry: Registry, name: str, given: Mapping[str, Any]) -> ModelSpec:
    """A model that is a folder, a hub id, or a name of the study's own with a path."""
    if os.path.isdir(name):
        return ModelSpec(Path(name).resolve().name, "named in the study", path=name)
    if name.startswith((".", "/", "~")):
        raise ModelError(f"model folder {name!r} does not exist")
    if given.get("path") or "/" in name:
        return ModelSpec(name, "named in the study", path=str(given.get("path", name)))
    raise UnknownName("model", name, {component.spec.name for component in registry.of_kind("model")})


def _model_values(spec: ModelSpec) -> dict[str, Any]:
    return {parameter.name: getattr(spec, parameter.name) for parameter in ModelSpec.parameters}


def _model_folder(spec: ModelSpec, name: str) -> str:
    """The folder, if it can hold a model. Weights are looked for here so that planning fails, not the run."""
    folder = Path(spec.path).expanduser()
    if not folder.is_dir():
        raise ModelError(f"model {name}: folder {spec.path!r} does not exist")
    files = os.listdir(folder)
    pointer = next((file for file in sorted(files) if is_pointer(folder / file)), "")
    if pointer:
        raise ModelError(
            f"model {name}: {pointer} in {spec.path!r} is a Git LFS pointer in place of the file; fetch it with: "
            "git lfs pull"
        )
    if "adapter_config.json" in files and "config.json" not in files:
        raise ModelError(
            f"model {name}: {spec.path!r} is a LoRA adapter and not a model; merge it into its base model and save that"
        )
    safe = any(file.endswith((".safetensors", ".safetensors.index.json")) for file in files)
    pickled = any(file.endswith((".bin", ".pt", ".pth")) for file in files)
    if spec.gguf_file:
        if spec.gguf_file not in files:
            raise ModelError(f"model {name}: {spec.gguf_file!r} is not in {spec.path!r}")
    elif pickled and not safe and not spec.allow_pickle:
        raise ModelError(
            f"model {name}: {spec.path!r} has only pickle weights, which can run code; "
            f"if you trust them, --set models.{name}.allow_pickle=true"
        )
    elif not safe and not pickled:
        raise ModelError(f"model {name}: {spec.path!r} has no weights; expected model.safetensors beside config.json")
    return str(folder.resolve())


def _data_source(study: Study) -> DataSource:
    data = study.data
    folder = str(Path(data["dir"]).expanduser().resolve()) if data["dir"] else ""
    if data["source"] == "local" and not folder and not data["files"]:
        raise DataError("data.source = 'local' needs data.dir (--data-dir) or data.files")
    return DataSource(
        data["source"],
        folder,
        data["seed"],
        data["scale"],
        {table: str(Path(file).expanduser().resolve()) for table, file in data["files"].items()},
        tuple(data["allow_missing"]),
        dict(data["stand_ins"]),
    )


def _known_tables(source: DataSource, benchmarks: list[Component[BenchmarkSpec]]) -> None:
    """Tables that the study names must be tables of its benchmarks, and dispensable where they may be missing."""
    data = [benchmark.spec.data for benchmark in benchmarks]
    known = {table for spec in data for table in spec.tables}
    for table in (*source.files, *source.stand_ins):
        if table not in known:
            raise UnknownName("table", table, known, " in [data]")
    dispensable = {table for spec in data for table in spec.dispensable}
    for table in source.allow_missing:
        if table not in dispensable:
            raise UnknownName("table that may be missing", table, dispensable, " in data.allow_missing")


def _known_metrics(study: Study, benchmarks: Sequence[Component[BenchmarkSpec]]) -> None:
    """Gates must be over metrics of the study's benchmarks: a mistyped one would be found after the run."""
    for gate in read_gates(study.raw):
        meant = [b.spec for b in benchmarks if gate.benchmark in ("*", b.spec.name, b.qualified)]
        known = {metric.name for spec in meant for metric in spec.metrics}
        if meant and not gate.metric.startswith("cost.") and gate.metric not in known:
            raise UnknownName("metric in [[gates]]", gate.metric, known)


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
        "model": {**asdict(model.spec), "shape": shape_of(model.spec), "fingerprint": _weights_fingerprint(model.spec)},
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
    published, revision = _published(str(model[role]).replace("{split}", table))
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


def _published(path: str) -> tuple[str, str]:
    """A published checkpoint and what it is: the hash of a local folder's files, or the commit on the hub."""
    if not path:
        return "", ""
    if path.startswith((".", "/", "~")) or os.path.isdir(path):
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise ModelError(f"published model folder {path!r} does not exist")
        return str(folder.resolve()), folder_fingerprint(str(folder.resolve()))
    return path, hub_commit("model", path, "")


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


def _templates(study: Study) -> list[str]:
    """Refusal answers: the user's file, or our own."""
    if not study.data["templates"]:
        return _builtin_templates()
    path = Path(study.data["templates"]).expanduser()
    if not path.is_file():
        raise UsageError(f"data.templates = {str(path)!r}: no such file")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise UsageError(f"data.templates = {str(path)!r}: not UTF-8 text ({error})") from error
    if not any(lines):
        raise UsageError(f"data.templates = {str(path)!r}: the file has no lines")
    return [line for line in lines if line]


@cache
def _builtin_templates() -> list[str]:
    from importlib.resources import files

    text = files("unlearnbench").joinpath("refusals.txt").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line]


def _weights_fingerprint(spec: ModelSpec) -> str:
    """What the base weights are: file hashes of a folder, or id and revision on the hub; empty from scratch."""
    if not spec.path:
        return ""
    if os.path.isdir(spec.path):
        return folder_fingerprint(spec.path, spec.gguf_file)
    return f"{spec.path}@{spec.revision}"
