"""From a study to a graph of nodes: reference models, their measurements, and one cell per method.

Nothing here imports torch: names, hyperparameters, data folders and checkpoints are validated before any work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from .errors import DataError, ModelError, NothingSelected, UnknownName, UsageError
from .hyperparameters import TRAINING_PARAMETERS
from .plugins import Component, Registry
from .provenance import provenance
from .sources import engine_digest, source_digest
from .specs import BenchmarkSpec, MethodSpec, ModelSpec, parse_parameters
from .storage import digest, file_digest
from .study import EVERY, Study
from .tables import DataSource, fingerprints, pinned, read_tables

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
    _templates(study)
    registry.find("executor", str(study.run["executor"]))
    nodes: dict[str, Node] = {}
    for benchmark in benchmarks:
        source = _data_source(study)
        benchmark = replace(benchmark, spec=replace(benchmark.spec, data=pinned(benchmark.spec.data, source)))
        tables = fingerprints(benchmark.spec.data, source)
        if source.kind == "local":
            read_tables(benchmark.spec.data, source)
        for model in models:
            for seed in study.seeds:
                for node in _pairings(study, registry, methods, benchmark, model, seed, tables):
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
    known = {*names, *(c.spec.name for c in found), *(c.qualified for c in found)}
    # The reference methods are part of every plan.
    extra = {"original", "retained", EVERY} if kind == "method" else {EVERY}
    for name in study.overrides[section]:
        if name not in known | extra:
            raise UnknownName(f"{kind} in [{section}]", name, known, "; its settings would change nothing")
    return found


def _customised(study: Study, registry: Registry, name: str) -> Component[ModelSpec]:
    """A registered model with the study's overrides, or a new one from a hub id or folder."""
    given = study.given("models", name)
    path = given.get("path", "")
    registered = {component.spec.name for component in registry.of_kind("model")}
    if name in registered or name in {c.qualified for c in registry.of_kind("model")}:
        component = registry.find("model", name)
    elif path or os.path.isdir(name) or ("/" in name and not name.startswith((".", "/", "~"))):
        label = Path(name).resolve().name if os.path.isdir(name) else name
        spec = ModelSpec(label, "named in the study", path=str(path) or name)
        component = Component(spec, registry.find("model", "tiny").plugin)
    elif name.startswith((".", "/", "~")):
        raise ModelError(f"model folder {name!r} does not exist")
    else:
        registry.find("model", name)
        raise AssertionError("find raises for an unknown name")
    values = parse_parameters(ModelSpec.parameters, {**_model_values(component.spec), **given}, f"models.{name}")
    spec = replace(component.spec, **values)
    if spec.path and (spec.path.startswith((".", "/", "~")) or os.path.isdir(spec.path)):
        spec = replace(spec, path=_model_folder(spec, name))
    return Component(spec, component.plugin)


def _model_values(spec: ModelSpec) -> dict[str, Any]:
    return {parameter.name: getattr(spec, parameter.name) for parameter in ModelSpec.parameters}


def _model_folder(spec: ModelSpec, name: str) -> str:
    """The folder, if it can hold a model. Weights are looked for here so that planning fails, not the run."""
    folder = Path(spec.path).expanduser()
    if not folder.is_dir():
        raise ModelError(f"model {name}: folder {spec.path!r} does not exist")
    files = os.listdir(folder)
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
    if data["source"] == "local" and not folder:
        raise DataError("data.source = 'local' needs data.dir (--data-dir)")
    return DataSource(data["source"], folder, data["seed"], data["scale"])


def _pairings(
    study: Study,
    registry: Registry,
    methods: list[Component[MethodSpec]],
    benchmark: Component[BenchmarkSpec],
    model: Component[ModelSpec],
    seed: int,
    tables: Mapping[str, str],
) -> Iterator[Node]:
    """The nodes of one benchmark × model × seed: two reference models, their cells, one cell per method."""
    shared = _shared_spec(study, benchmark, model, seed, tables)
    references = {role: _reference_node(shared, role) for role in ROLES}
    yield from references.values()
    models = {role: node.key for role, node in references.items()}
    named = [component for component in methods if not component.spec.reference]
    cells: dict[str, str] = {}
    # The retained model is measured first: every forget score is a comparison with it.
    for role in reversed(ROLES):
        reference = registry.find("method", role)
        node = _cell_node(study, shared, reference, models, dict(cells))
        cells[role] = node.key
        yield node
    for component in named:
        yield _cell_node(study, shared, component, models, cells)


def _shared_spec(
    study: Study,
    benchmark: Component[BenchmarkSpec],
    model: Component[ModelSpec],
    seed: int,
    tables: Mapping[str, str],
) -> dict[str, Any]:
    spec = benchmark.spec
    parameters = {parameter.name for parameter in spec.parameters}
    given = study.given("benchmarks", spec.name, list(parameters))
    values = parse_parameters(spec.parameters, given, f"benchmarks.{spec.name}")
    recipe = {**spec.recipe, **model.spec.recipe, **study.recipe}
    source = _data_source(study)
    return {
        "benchmark": {
            "name": spec.name,
            "qualified": benchmark.qualified,
            "version": spec.version,
            "target": spec.target,
            "source": source_digest(spec.target),
            "values": values,
            "fixed": dict(spec.fixed),
            "training_settings": _training_settings(spec, values),
            "data": {**asdict(spec.data), "fingerprints": dict(tables)},
            "training": dict(spec.training),
            "metrics": [asdict(metric) for metric in spec.metrics],
            "samples": spec.samples,
        },
        "model": {**asdict(model.spec), "fingerprint": _weights_fingerprint(model.spec)},
        "data": asdict(source),
        "recipe": parse_parameters(TRAINING_PARAMETERS, recipe, "recipe"),
        "seed": seed,
        "engine": engine_digest(),
        "plugins": {
            "benchmark": asdict(benchmark.plugin),
            "model": asdict(model.plugin),
        },
        "provenance": provenance(),
        "run": dict(study.run),
    }


def _training_settings(spec: BenchmarkSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """What changes the rows of the reference models beyond their table: nothing at the defaults, else everything."""
    relevant = [parameter for parameter in spec.parameters if parameter.name not in spec.evaluation_parameters]
    if all(values[parameter.name] == parameter.default for parameter in relevant):
        return {}
    return {**{parameter.name: values[parameter.name] for parameter in relevant}, **spec.fixed}


def _reference_node(shared: Mapping[str, Any], role: str) -> Node:
    benchmark, model = shared["benchmark"], shared["model"]
    table = benchmark["training"].get(role, role)
    published = (model[role] or "").replace("{split}", table)
    content: dict[str, Any]
    if published:
        content = {"published": published}
    else:
        content = {
            "model": {key: model[key] for key in ("path", "fingerprint", "gguf_file", "architecture", "prompt_format",
                                                   "trust_remote_code", "quantization")},
            "recipe": shared["recipe"],
            "training": benchmark["data"]["fingerprints"].get(table, table),
            "settings": benchmark["training_settings"],
            "benchmark": benchmark["source"],
            "seed": shared["seed"],
            "engine": shared["engine"],
        }  # fmt: skip
    identity = digest(content)
    key = f"{role}--{model['name'].replace('/', '_')}--{table}--s{shared['seed']}--{identity[:12]}"
    spec = {**shared, "kind": "model", "role": role, "published": published, "content": identity, "key": key}
    return Node(key, "model", f"{role} model {model['name']} ({table})", (), identity, spec)


def _cell_node(
    study: Study,
    shared: Mapping[str, Any],
    method: Component[MethodSpec],
    models: Mapping[str, str],
    references: Mapping[str, str],
) -> Node:
    spec, benchmark, model = method.spec, shared["benchmark"], shared["model"]
    values = _hyperparameters(study, method, model)
    entry = {
        "name": spec.name,
        "qualified": method.qualified,
        "target": spec.target,
        "source": source_digest(spec.target),
        "values": values,
        "fixed": dict(spec.fixed),
        "requires": asdict(spec.requires),
        "reference": spec.reference,
        "citation": spec.citation,
    }
    templates = _templates(study) if spec.requires.template else []
    content = {
        "method": {key: entry[key] for key in ("qualified", "source", "values", "fixed", "requires")},
        "benchmark": {key: benchmark[key] for key in ("qualified", "version", "source", "values", "fixed")},
        "tables": benchmark["data"]["fingerprints"],
        "model": {key: model[key] for key in ("dtype", "prompt_format", "lora_rank", "quantization")},
        "references": {role: key.rpartition("--")[2] for role, key in models.items()},
        "seed": shared["seed"],
        "engine": shared["engine"],
        "templates": templates,
    }
    identity = digest(content)
    name = "--".join(part.replace("/", "_") for part in (spec.name, benchmark["name"], model["name"]))
    key = f"{name}--s{shared['seed']}--{identity[:12]}"
    needs = (models[spec.requires.start], *references.values())
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
    given = suited | study.given("methods", spec.name, names)
    given |= study.overrides["methods"].get(method.qualified, {})
    values = parse_parameters(spec.parameters, given, f"methods.{spec.name}")
    if spec.parameters and EVERY in study.overrides["methods"]:
        _refuse_unknown_shared(study)
    return values


def _refuse_unknown_shared(study: Study) -> None:
    known = {parameter.name for parameter in TRAINING_PARAMETERS} | {"edition"}
    for key in study.overrides["methods"][EVERY]:
        if key not in known:
            raise UnknownName(f"key of methods.{EVERY}", key, known)


def _templates(study: Study) -> list[str]:
    """Refusal answers: the user's file, or our own."""
    if not study.data["templates"]:
        return _builtin_templates()
    path = Path(study.data["templates"]).expanduser()
    if not path.is_file():
        raise UsageError(f"data.templates = {str(path)!r}: no such file")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    if not any(lines):
        raise UsageError(f"data.templates = {str(path)!r}: the file has no lines")
    return [line for line in lines if line]


@cache
def _builtin_templates() -> list[str]:
    from importlib.resources import files

    text = files("unlearnbench").joinpath("refusals.txt").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line]


@cache
def _folder_fingerprint(folder: str, gguf_file: str) -> str:
    root = Path(folder)
    names = [gguf_file] if gguf_file else sorted(
        name for name in os.listdir(root)
        if name.endswith((".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"))
    )  # fmt: skip
    return digest({name: file_digest(root / name) for name in names})


def _weights_fingerprint(spec: ModelSpec) -> str:
    """What the base weights are: file hashes of a folder, or id and revision on the hub; empty from scratch."""
    if not spec.path:
        return ""
    if os.path.isdir(spec.path):
        return _folder_fingerprint(spec.path, spec.gguf_file)
    return f"{spec.path}@{spec.revision or 'main'}"
