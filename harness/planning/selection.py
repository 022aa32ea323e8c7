"""Resolves a study's names and values to components, data and templates, and checks each before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.model_folder import folder_fingerprint, is_pointer
from ..data.sources import DataSource, hub_commit
from ..domain import NUMBERS
from ..errors import DataError, ModelError, NothingSelected, UnknownName, UsageError
from ..plugin.parameters import parse_parameters
from ..plugin.registry import Component, Registry
from ..plugin.specs import MODEL_PARAMETERS, AttackSpec, BenchmarkSpec, MethodSpec, ModelSpec
from .study import EVERY, Study


def selected(study: Study, registry: Registry, kind: Any) -> list[Component[Any]]:
    section = f"{kind}s"
    names = study.selected(section)
    if names == ("all",):
        names = tuple(component.qualified for component in registry.of_kind(kind))
    if not names:
        raise NothingSelected(f"the study selects no {kind}; name some with study.{section} or --{kind}")
    components = [
        _customised(study, registry, name) if kind == "model" else registry.find(kind, name) for name in names
    ]
    if kind == "model":
        components = _told_apart(components)
    # What the command line leaves out keeps its settings in the file; a study may say how to attack, and not whether.
    others = registry.of_kind(kind) if kind == "attack" else left_out(study, registry, kind)
    known = {*names, *(name for c in (*components, *others) for name in (c.spec.name, c.qualified))}
    known |= {*study.also.get(section, ())}
    # The reference methods are part of every plan.
    extra = {"original", "retained", EVERY} if kind == "method" else {EVERY}
    resources = getattr(study.tables.resources, section, {})
    for table, names_in in ((section, study.overrides(section)), (f"resources.{section}", resources)):
        for name in names_in:
            if name not in known | extra:
                raise UnknownName(f"{kind} in [{table}]", name, known, "; its settings would change nothing")
    keys = {parameter.name for component in (*components, *others) for parameter in component.spec.parameters}
    for key in study.overrides(section).get(EVERY, {}):
        if key not in keys:
            raise UnknownName(f"key of {section}.{EVERY}", key, keys)
    return components


def selected_attacks(study: Study, registry: Registry) -> list[Component[AttackSpec]]:
    """The attacks that the study selects; ``all`` takes those whose packages are installed.

    Raises:
        UsageError: an attack is named whose packages are not installed.
    """
    names = study.selected("attacks")
    if not names:
        for name in study.overrides("attacks").keys() - {EVERY}:
            registry.find("attack", name)
        return []
    attacks: list[Component[AttackSpec]] = selected(study, registry, "attack")
    usable = [attack for attack in attacks if not any(find_spec(package) is None for package in attack.spec.packages)]
    lacking = [attack.spec for attack in attacks if attack not in usable]
    if lacking and names != ("all",):
        raise UsageError(
            f"attack {lacking[0].name!r} needs {' and '.join(lacking[0].packages)}: pip install '{lacking[0].extra}'"
        )
    return usable


def left_out(study: Study, registry: Registry, kind: Any) -> list[Component[Any]]:
    """The registered components that the study's file names, of which the command line may have selected others."""
    named = study.also.get(f"{kind}s", ())
    return [c for c in registry.of_kind(kind) if named == ("all",) or {c.spec.name, c.qualified} & set(named)]


def _told_apart(models: list[Component[ModelSpec]]) -> list[Component[ModelSpec]]:
    """Name models whose folders end alike by enough of their paths to tell them apart."""
    renamed = []
    for model in models:
        others = [other.spec for other in models if other.spec.name == model.spec.name and other is not model]
        parts, length = Path(model.spec.path).parts, 1
        while any(Path(other.path).parts[-length:] == parts[-length:] for other in others) and length < len(parts):
            length += 1
        name = "/".join(parts[-length:]) if length > 1 else model.spec.name
        renamed.append(replace(model, spec=replace(model.spec, name=name)))
    return renamed


def _customised(study: Study, registry: Registry, name: str) -> Component[ModelSpec]:
    """A registered model with the study's overrides, or a new one from a hub id or folder."""
    parameters = [parameter.name for parameter in MODEL_PARAMETERS]
    known = [c for c in registry.of_kind("model") if name in (c.spec.name, c.qualified)]
    if known:
        component = registry.find("model", name)
        given = study.given("models", (component.spec.name, component.qualified), parameters)
    else:
        plugin = registry.find("model", "unlearnbench/tiny").plugin
        component = Component(_named_in_study(registry, name, study.given("models", (name,), parameters)), plugin)
        # Settings may stand under the folder's name or under the path given.
        given = study.given("models", (component.spec.name, name), parameters)
    values = parse_parameters(MODEL_PARAMETERS, {**_model_values(component.spec), **given}, f"models.{name}")
    spec = replace(component.spec, **values)
    if given.keys() & {"original", "retained"}:
        spec = replace(spec, checkpoints_of=())
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
    """The spec of a folder, a hub id, or a name that the study gives with a path."""
    if os.path.isdir(name):
        return ModelSpec(Path(name).resolve().name, "named in the study", path=name)
    if name.startswith((".", "/", "~")):
        raise ModelError(f"model folder {name!r} does not exist")
    if given.get("path") or "/" in name:
        return ModelSpec(name, "named in the study", path=str(given.get("path", name)))
    raise UnknownName("model", name, {component.spec.name for component in registry.of_kind("model")})


def _model_values(spec: ModelSpec) -> dict[str, Any]:
    return {parameter.name: getattr(spec, parameter.name) for parameter in MODEL_PARAMETERS}


def _model_folder(spec: ModelSpec, name: str) -> str:
    """The folder, if it can hold a model. Checks for weights so that planning fails, not the run."""
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


def data_source(study: Study) -> DataSource:
    data = study.data
    folder = str(Path(data.dir).expanduser().resolve()) if data.dir else ""
    if data.source == "local" and not folder and not data.files:
        raise DataError("data.source = 'local' needs data.dir (--data-dir) or data.files")
    return DataSource(
        data.source,
        folder,
        data.seed,
        data.scale,
        {table: str(Path(file).expanduser().resolve()) for table, file in data.files.items()},
        tuple(data.allow_missing),
        dict(data.stand_ins),
    )


def check_tables(source: DataSource, benchmarks: list[Component[BenchmarkSpec]]) -> None:
    """Raise UnknownName where the study names a table that no benchmark has, or that no benchmark can do without."""
    data = [benchmark.spec.data for benchmark in benchmarks]
    known = {table for spec in data for table in spec.tables}
    for table in (*source.files, *source.stand_ins):
        if table not in known:
            raise UnknownName("table", table, known, " in [data]")
    may_be_missing = {table for spec in data for table in spec.may_be_missing}
    for table in source.allow_missing:
        if table not in may_be_missing:
            raise UnknownName("table that may be missing", table, may_be_missing, " in data.allow_missing")


def check_metrics(study: Study, benchmarks: Sequence[Component[BenchmarkSpec]]) -> None:
    """Raise for a gate on no metric of the study's benchmarks, which would otherwise fail only after the run."""
    for gate in study.tables.gates:
        meant = [b.spec for b in benchmarks if gate.benchmark in ("*", b.spec.name, b.qualified)]
        known = {metric.name for spec in meant for metric in spec.metrics}
        if any(metric.part_of for spec in meant for metric in spec.metrics):
            known |= NUMBERS.keys()
        if meant and not gate.cost and gate.metric not in known:
            raise UnknownName("metric in [[gates]]", gate.metric, known)


def check_sweep(
    study: Study, methods: Sequence[Component[MethodSpec]], benchmarks: Sequence[Component[BenchmarkSpec]]
) -> None:
    """Raise for a sweep of a method or key that the study lacks, and for a rule on a metric that a benchmark lacks."""
    names = {name for method in methods for name in (method.spec.name, method.qualified)}
    for name in study.sweep.methods:
        if name not in names | {EVERY}:
            raise UnknownName("method in [sweep.methods]", name, names, "; its settings would change nothing")
    keys = {parameter.name for method in methods for parameter in method.spec.parameters}
    for key in study.sweep.methods.get(EVERY, {}):
        if key not in keys:
            raise UnknownName(f"key of sweep.methods.{EVERY}", key, keys)
    wanted = study.tables.selection.metric
    for benchmark in benchmarks:
        known = {metric.name for metric in benchmark.spec.metrics}
        if wanted != "score" and wanted not in known:
            raise UnknownName(f"metric of {benchmark.spec.name} in selection.metric", wanted, {*known, "score"})


def published_checkpoint(path: str) -> tuple[str, str]:
    """A published checkpoint and its identity: the hash of a local folder's files, or the commit on the hub."""
    if not path:
        return "", ""
    if path.startswith((".", "/", "~")) or os.path.isdir(path):
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise ModelError(f"published model folder {path!r} does not exist")
        return str(folder.resolve()), folder_fingerprint(str(folder.resolve()))
    return path, hub_commit("model", path, "")


def refusal_templates(study: Study) -> list[str]:
    """Refusal answers from the user's file, or the built-in ones."""
    if not study.data.templates:
        return _builtin_templates()
    path = Path(study.data.templates).expanduser()
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

    text = files("unlearnbench.planning").joinpath("refusals.txt").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line]


def weights_fingerprint(spec: ModelSpec) -> str:
    """The identity of the base weights: a folder's file hash, or id and revision on the hub; empty from scratch."""
    if not spec.path:
        return ""
    if os.path.isdir(spec.path):
        return folder_fingerprint(spec.path, spec.gguf_file)
    return f"{spec.path}@{spec.revision}"
