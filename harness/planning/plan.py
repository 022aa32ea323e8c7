"""Turns a study into a graph of nodes: reference models, their measurements, and one cell per method.

Planning imports no torch, and validates names, hyperparameters, data folders and checkpoints before any work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from typing import Any, get_args

from ..data.sources import DataSource, fingerprints, pinned, read_tables
from ..errors import UnknownName, UsageError
from ..plugin.parameters import TRAINING_PARAMETERS, Value, parse_parameters
from ..plugin.registry import Component, Registry
from ..plugin.specs import AttackSpec, BenchmarkSpec, MethodSpec, ModelSpec
from ..records.code_digest import engine_digest, modules_digest, source_digest
from ..records.node_spec import (
    CellSpec,
    PlannedAttack,
    PlannedBenchmark,
    PlannedMethod,
    PlannedModel,
    ReferenceSpec,
    Role,
)
from ..records.provenance import device_kind, provenance, versions
from ..training.footprint import LORA_RANK
from .estimates import shape_of
from .nodes import Node, Plan
from .selection import (
    check_metrics,
    check_sweep,
    check_tables,
    data_source,
    left_out,
    published_checkpoint,
    refusal_templates,
    selected,
    selected_attacks,
    weights_fingerprint,
)
from .study import Study
from .sweep import label_of, refuse_unequal, settings_of

ROLES: tuple[Role, ...] = get_args(Role)
PACKAGES = {"adamw-8bit": "torchao", "adamw-bf16": "torchao", "lora": "peft"}
"""What an optimiser needs besides."""


def make_plan(study: Study, registry: Registry) -> Plan:
    """Every pairing of the study, and the reference nodes that they need.

    Raises:
        UnknownName, UsageError: a name, key or value of the study is invalid, even where the plan does not use it.
        DataError, ModelError: a data folder or model folder is invalid.
        NothingSelected: the study names no method, no benchmark or no model.
    """
    methods: list[Component[MethodSpec]] = selected(study, registry, "method")
    benchmarks: list[Component[BenchmarkSpec]] = selected(study, registry, "benchmark")
    models: list[Component[ModelSpec]] = selected(study, registry, "model")
    attacks: list[Component[AttackSpec]] = selected_attacks(study, registry)
    named = {benchmark.spec.name for benchmark in (*benchmarks, *left_out(study, registry, "benchmark"))}
    for name, values in study.recipe.items():
        if isinstance(values, Mapping) and name not in named:
            raise UnknownName("benchmark in [recipe]", name, named)
    check_metrics(study, benchmarks)
    check_sweep(study, [*methods, *left_out(study, registry, "method")], benchmarks)
    source = data_source(study)
    check_tables(source, benchmarks)
    registry.find("executor", study.run.executor)
    _check_optimiser(study)
    planner = _Planner(study, registry, source, tuple(refusal_templates(study)), methods, attacks)
    nodes: dict[str, Node] = {}
    for benchmark in benchmarks:
        benchmark = replace(benchmark, spec=replace(benchmark.spec, data=pinned(benchmark.spec.data, source)))
        planner.benchmark(benchmark)
        if source.all_local(benchmark.spec.data):
            read_tables(benchmark.spec.data, source)
        for model in models:
            plain = {node.key: node for seed in study.seeds for node in planner.pairings(benchmark, model, seed)}
            for node in planner.with_attacks(plain.values()):
                nodes.setdefault(node.key, node)
    return Plan(study, tuple(nodes.values()))


def _check_optimiser(study: Study) -> None:
    """Refuse an optimiser whose package is not installed, or that several processes cannot share."""
    name = study.run.optimiser
    package = PACKAGES.get(name)
    if package and find_spec(package) is None:
        raise UsageError(f"run.optimiser = {name!r} needs the package {package}: pip install 'unlearnbench[{package}]'")
    if package == "torchao" and study.run.processes > 1:
        raise UsageError(
            f"run.optimiser = {name!r} with run.processes = {study.run.processes}: weights that are sharded are held "
            "in float32; use run.optimiser = 'adamw' or 'lora', or run.processes = 1"
        )


@dataclass
class _Planner:
    """Builds the nodes of a plan. Hashes code once for a plan, however many cells it has."""

    study: Study
    registry: Registry
    source: DataSource
    templates: tuple[str, ...]
    methods: list[Component[MethodSpec]]
    attacks: list[Component[AttackSpec]]
    code: Callable[..., str] = field(default_factory=lambda: cache(source_digest))

    def __post_init__(self) -> None:
        self._benchmarks: dict[str, PlannedBenchmark] = {}
        self._models: dict[str, PlannedModel] = {}
        self._attacks: dict[str, PlannedAttack] = {}
        self._settings: dict[str, list[dict[str, Value]]] = {}
        self._tried: dict[tuple[str, str, str], tuple[str, ...]] = {}
        refuse_unequal(
            {method.spec.name: len(self.settings(method)) for method in self.methods if not method.spec.reference}
        )

    def pairings(self, benchmark: Component[BenchmarkSpec], model: Component[ModelSpec], seed: int) -> Iterator[Node]:
        """The nodes of one benchmark × model × seed: two reference models, their cells, one cell per method."""
        shared = self._shared(benchmark, model, seed)
        models: dict[Role, str] = {}
        for role in ROLES:
            node = self._reference(shared, role)
            models[role] = node.key
            yield node
        cells: dict[Role, str] = {}
        # The retained model is measured first: every forget score compares with it.
        for role in reversed(ROLES):
            node = self._cell(shared, self.registry.find("method", f"unlearnbench/{role}"), models, dict(cells))
            cells[role] = node.key
            yield node
        for component in self.methods:
            if component.qualified in {f"unlearnbench/{role}" for role in ROLES}:
                continue
            yield from self._runs(shared, component, models, cells)

    def _runs(
        self,
        shared: Mapping[str, Any],
        component: Component[MethodSpec],
        models: Mapping[Role, str],
        references: Mapping[Role, str],
    ) -> Iterator[Node]:
        """The cells of a method on one benchmark × model × seed: a cell for each setting and run of unlearning."""
        settings, repeats = self.settings(component), self.study.repeats
        if self.study.sweep.runs == "all" or len(settings) == 1:
            for setting in settings:
                for repeat in repeats:
                    yield self._cell(shared, component, models, references, setting, repeat)
            return
        group = component.qualified, shared["benchmark"].qualified, shared["model"].spec.name
        for repeat in repeats:
            rivals = self._tried.get(group, ())
            nodes = [self._cell(shared, component, models, references, each, repeat, rivals) for each in settings]
            self._tried.setdefault(group, tuple(node.key for node in nodes))
            yield from nodes

    def with_attacks(self, plain: Iterable[Node]) -> Iterator[Node]:
        """The nodes of one benchmark × model over all seeds, with those that attack a method's cells right after them.

        So an unlearned model need not be kept for long. In a sweep only the setting that the rule chooses is attacked.
        """
        nodes = list(plain)
        groups: dict[str, list[CellSpec]] = {}
        for node in nodes:
            if isinstance(node.spec, CellSpec):
                groups.setdefault(node.spec.method.qualified, []).append(node.spec)
        references: dict[tuple[str, int], dict[Role, str]] = {}
        for node in nodes:
            yield node
            if not isinstance(node.spec, CellSpec):
                continue
            group = groups[node.spec.method.qualified]
            if group[-1].key != node.key:
                continue
            for attack in self.attacks:
                for cell in group:
                    of_seed = references.setdefault((attack.qualified, cell.seed), {})
                    attacked = self._attacked(cell, attack, of_seed, group)
                    if cell.method.reference:
                        of_seed[cell.method.requires.start] = attacked.key
                    yield attacked

    def _attacked(
        self,
        cell: CellSpec,
        component: Component[AttackSpec],
        references: Mapping[Role, str],
        group: Sequence[CellSpec],
    ) -> Node:
        """The node that attacks a cell; its scores compare with those of the reference models under the same attack."""
        rivals = cell.rivals or tuple(rival.key for rival in group if not rival.rivals) if cell.setting else ()
        fields = {name: getattr(cell, name) for name in CellSpec.model_fields}
        spec = CellSpec(
            **fields
            | {
                "plugins": {**cell.plugins, "attack": component.plugin},
                "references": dict(references),
                "attack": self._attack(component),
                "plain": cell.key,
                "rivals": rivals,
                "leaves_model": False,
            }
        )
        return Node(spec, (spec.start, *references.values()), (cell.key, *rivals))

    def _attack(self, component: Component[AttackSpec]) -> PlannedAttack:
        """The attack with the study's hyperparameters."""
        if component.qualified not in self._attacks:
            spec = component.spec
            keys = [parameter.name for parameter in spec.parameters]
            given = self.study.given("attacks", (spec.name, component.qualified), keys)
            self._attacks[component.qualified] = PlannedAttack(
                name=spec.name,
                qualified=component.qualified,
                target=spec.target,
                source=self.code(spec.target),
                values=parse_parameters(spec.parameters, given, f"attacks.{spec.name}"),
                fixed=dict(spec.fixed),
                requires=spec.requires,
            )
        return self._attacks[component.qualified]

    def settings(self, component: Component[MethodSpec]) -> list[dict[str, Value]]:
        """The sweep's settings of a method, once for a plan."""
        if component.qualified not in self._settings:
            names = (component.spec.name, component.qualified)
            self._settings[component.qualified] = settings_of(self.study.sweep, names, component.spec.parameters)
        return self._settings[component.qualified]

    def _shared(self, benchmark: Component[BenchmarkSpec], model: Component[ModelSpec], seed: int) -> dict[str, Any]:
        """The fields that all specs of one benchmark × model × seed share."""
        planned, planned_model = self.benchmark(benchmark), self._model(model)
        spec = benchmark.spec
        recipe = {**spec.recipe, **model.spec.recipe, **self.study.recipe_for(spec.name)}
        departures = self.source.departures(spec.data) if self.source.kind == "local" else []
        if model.spec.allow_missing_weights:
            departures = [*departures, "weights may be missing (allow_missing_weights)"]
        return {
            "benchmark": planned,
            "model": planned_model,
            "source": self.source,
            "departures": tuple(departures),
            "recipe": parse_parameters(TRAINING_PARAMETERS, recipe, "recipe"),
            "seed": seed,
            "engine": engine_digest(),
            "device_kind": device_kind(self.study.run.device),
            "plugins": {"benchmark": benchmark.plugin, "model": model.plugin},
            "provenance": provenance(),
            "run": self.study.run,
        }

    def benchmark(self, component: Component[BenchmarkSpec]) -> PlannedBenchmark:
        """The benchmark with the study's settings."""
        if component.qualified not in self._benchmarks:
            spec = component.spec
            keys = [parameter.name for parameter in spec.parameters]
            given = self.study.given("benchmarks", (spec.name, component.qualified), keys)
            values = parse_parameters(spec.parameters, given, f"benchmarks.{spec.name}")
            self._benchmarks[component.qualified] = PlannedBenchmark(
                name=spec.name,
                qualified=component.qualified,
                version=spec.version,
                target=spec.target,
                source=self.code(spec.target, spec.scoring),
                scoring=modules_digest(spec.scoring),
                values=values,
                fixed=dict(spec.fixed),
                defaults={parameter.name: parameter.default for parameter in spec.parameters},
                training_settings=_training_settings(spec, values),
                data=spec.data,
                fingerprints=fingerprints(spec.data, self.source),
                training={role: _as_tuple(named) for role, named in spec.training.items()},
                trained_besides=spec.trained_besides,
                metrics=spec.metrics,
                split=spec.split,
                samples=spec.samples,
                vocabulary=spec.vocabulary,
                packages=versions(spec.packages),
                recipe=dict(spec.recipe),
                workload=dict(spec.workload),
            )
        return self._benchmarks[component.qualified]

    def _model(self, component: Component[ModelSpec]) -> PlannedModel:
        spec = component.spec
        if self.study.run.optimiser == "lora" and not spec.lora_rank:
            spec = replace(spec, lora_rank=LORA_RANK)
        if component.qualified not in self._models:
            self._models[component.qualified] = PlannedModel(
                spec=spec, shape=shape_of(spec), fingerprint=weights_fingerprint(spec)
            )
        return self._models[component.qualified]

    def _reference(self, shared: Mapping[str, Any], role: Role) -> Node:
        """The node that prepares a reference model."""
        spec = ReferenceSpec(**shared, role=role)
        model = spec.model.spec
        own = not model.checkpoints_of or (
            spec.benchmark.name in model.checkpoints_of and spec.source.kind != "generated"
        )
        named = str(getattr(model, role)).replace("{split}", spec.table) if own else ""
        published, revision = published_checkpoint(named)
        if published:
            spec = ReferenceSpec(**shared, role=role, published=published, published_revision=revision)
        return Node(spec)

    def _cell(
        self,
        shared: Mapping[str, Any],
        component: Component[MethodSpec],
        models: Mapping[Role, str],
        references: Mapping[Role, str],
        setting: Mapping[str, Value] | None = None,
        repeat: int = 0,
        rivals: tuple[str, ...] = (),
    ) -> Node:
        """The node of a method; it needs the cells in ``references`` measured first.

        Args:
            rivals: cells among which the rule chooses before this one is run, and only where it chooses its setting.
        """
        method = self._method(component, shared["model"].spec, setting or {})
        spec = CellSpec(
            **{**shared, "plugins": {**shared["plugins"], "method": component.plugin}},
            method=method,
            templates=self.templates if method.requires.template else (),
            models=dict(models),
            references=dict(references),
            edition=self.study.edition,
            repeat=repeat,
            setting=label_of(setting or {}),
            selection=self.study.tables.selection.metric,
            settings_tried=len(self.settings(component)),
            split=shared["benchmark"].split if self.study.divides_rows else None,
            rivals=rivals,
            # A reference model lies in the cache.
            leaves_model=bool(self.attacks) and not method.reference,
        )
        return Node(spec, (spec.start, *references.values()), rivals)

    def _method(
        self, component: Component[MethodSpec], model: ModelSpec, setting: Mapping[str, Value]
    ) -> PlannedMethod:
        """The method with its hyperparameters: defaults, then the model's, the study's, the sweep's."""
        spec = component.spec
        keys = [parameter.name for parameter in spec.parameters]
        suited = {key: value for key, value in model.method_defaults.items() if key in keys}
        given = suited | self.study.given("methods", (spec.name, component.qualified), keys)
        values = parse_parameters(spec.parameters, given | dict(setting), f"methods.{spec.name}")
        return PlannedMethod(
            name=spec.name,
            qualified=component.qualified,
            target=spec.target,
            source=self.code(spec.target),
            values=values,
            fixed=dict(spec.fixed),
            requires=spec.requires_in(values.get("edition")),
            reference=spec.reference,
            models=spec.models,
            citation=spec.citation,
        )


def _as_tuple(tables: str | tuple[str, ...]) -> tuple[str, ...]:
    return (tables,) if isinstance(tables, str) else tables


def _training_settings(spec: BenchmarkSpec, values: Mapping[str, Value]) -> dict[str, Value]:
    """Settings that change the reference models' training rows: none at their defaults, otherwise all of them."""
    relevant = [parameter for parameter in spec.parameters if parameter.name not in spec.evaluation_parameters]
    if all(values[parameter.name] == parameter.default for parameter in relevant):
        return {}
    return {**{parameter.name: values[parameter.name] for parameter in relevant}, **spec.fixed}
