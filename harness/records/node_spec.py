"""The typed input of a node's process: planning makes it, ``spec.json`` holds it, a worker reads it.

A node's content key hashes the fields of its spec that can change a number (``NodeSpec.content``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from ..data.sources import DataSource
from ..domain import CellId, Metric, Requires, Split, Touches
from ..errors import RecordError
from ..plugin.parameters import Value
from ..plugin.registry import Plugin
from ..plugin.specs import DataSpec, ModelSpec
from ..storage import digest, write_bytes
from .schema import Strict, first_fault

SPEC_SCHEMA: Literal[1] = 1
SPEC = "spec.json"

Role = Literal["original", "retained"]
Optimiser = Literal["adamw", "adamw-8bit", "adamw-bf16", "lora"]

# Fields of a model spec that cannot change a number: name, texts and estimates; planning merges recipes before. The
# fingerprint stands for path and revision: a model on the hub has both in it, a folder the hash of its files.
BESIDE_NUMBERS = frozenset(
    (
        "name path revision summary citation api_version shape recipe method_defaults original retained checkpoints_of "
        "allow_pickle"
    ).split()
)


class Resources(Strict):
    """What the nodes of an allocation need; 0 leaves a cluster its own choice."""

    model_config = ConfigDict(strict=True, frozen=True)

    processors: int = Field(default=0, ge=0, description="CPU cores")
    gpus: int = Field(default=0, ge=0, description="GPUs")
    memory: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="GiB of main memory")
    hours: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="hours that an allocation may take")

    def __str__(self) -> str:
        named = {"core": self.processors, "GPU": self.gpus, "GiB": self.memory, "h": self.hours}
        words = [
            f"{value:g} {name}{'s' if value != 1 and name in ('core', 'GPU') else ''}"
            for name, value in named.items()
            if value
        ]
        return ", ".join(words) or "the cluster's default size"


class SlurmSettings(Strict):
    """Table ``[run.slurm]``: how jobs are submitted."""

    model_config = ConfigDict(strict=True)

    partition: str = Field(default="", description="partition; empty takes the cluster's default")
    account: str = Field(default="", description="account that jobs are charged to")
    lines: list[str] = Field(
        default=[], description="lines of the job's script, such as #SBATCH options or module load"
    )


class RaySettings(Strict):
    """Table ``[run.ray]``: which cluster runs tasks."""

    model_config = ConfigDict(strict=True)

    address: str = Field(default="", description="address of a cluster; empty takes RAY_ADDRESS, or starts one here")


class RunSettings(Strict):
    """How nodes run. A started node has ``device`` and ``threads`` of its own.

    Of all this ``optimiser`` and ``deterministic`` alone can change a number.
    """

    model_config = ConfigDict(strict=True)

    jobs: int = Field(default=1, ge=1, description="cells at a time on each device")
    processes: int = Field(
        default=1, ge=1, description="processes that train a model together, a device each, its weights sharded"
    )
    threads: int = Field(default=0, ge=0, description="CPU threads of a cell; 0 shares the cores between jobs")
    timeout: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="seconds a cell may take; 0 sets no limit"
    )
    memory_limit: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="GiB of memory a cell may use; 0 sets no limit"
    )
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, …; auto takes a GPU where there is one")
    optimiser: Optimiser = Field(
        default="adamw",
        description="adamw in float32; adamw-8bit moments; adamw-bf16: bfloat16 weights, rounded by chance, and 8-bit "
        "moments; lora: AdamW on an adapter of models.*.lora_rank, 16 where that is 0",
    )
    deterministic: bool = Field(
        default=False, description="on a GPU, only operations that give the same bits again, which are slower"
    )
    executor: str = Field(default="local", description="what runs the cells")
    other_environments: bool = Field(
        default=False,
        description="let workers have other versions or code than the plan; their rows are not ranked together",
    )
    pack: int = Field(default=0, ge=0, description="cells of an allocation on a cluster; 0 packs about ten minutes")
    keep_model: bool = Field(default=False, description="keep the unlearned weights in the cell's folder")
    slurm: SlurmSettings = SlurmSettings()
    ray: RaySettings = RaySettings()

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError(f"{device!r} must be auto, cpu, cuda or cuda:N")
        return device


class PlannedBenchmark(Strict):
    """A benchmark with a study's settings, and hashes of its code and data.

    Args:
        source: hash of the code that measures.
        scoring: hash of the code that only scores.
        values, fixed: fields of the target that the study sets, and that the registered name sets.
        training_settings: settings that change the reference models' training rows beyond their tables.
        fingerprints: an identity for each table.
        training: for each role the tables that identify the reference model's training data.
        trained_besides: tables that all reference models train on besides, where there are any.
        packages: versions of the distributions that supply the questions.
    """

    name: str
    qualified: str
    version: str
    target: str
    source: str
    scoring: str
    values: dict[str, Value]
    fixed: dict[str, Value]
    defaults: dict[str, Value]
    training_settings: dict[str, Value]
    data: DataSpec
    fingerprints: dict[str, str]
    training: dict[str, tuple[str, ...]]
    trained_besides: tuple[str, ...] = ()
    metrics: tuple[Metric, ...]
    split: Split
    samples: Literal["public", "redacted", "none"]
    vocabulary: tuple[str, ...]
    packages: dict[str, str]
    recipe: dict[str, Value]
    workload: dict[str, float]

    @property
    def settings(self) -> dict[str, Value]:
        """Every field of the benchmark's target."""
        return {**self.values, **self.fixed}

    @cached_property
    def identity(self) -> str:
        """The hash of what can change a cell's numbers; computed once for all cells of a plan."""
        target = [self.qualified, self.version, self.source, self.values, self.fixed]
        return digest({"target": target, "packages": self.packages, "tables": self.fingerprints})


class PlannedModel(Strict):
    """A base model with a study's settings; ``fingerprint`` identifies its weights, empty from scratch."""

    spec: ModelSpec
    shape: dict[str, float]
    fingerprint: str

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def from_scratch(self) -> bool:
        """Whether the harness builds the model with random weights."""
        return bool(self.spec.architecture)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The fields of the model that can change a number."""
        kept = {name: value for name, value in vars(self.spec).items() if name not in BESIDE_NUMBERS}
        return {**kept, "fingerprint": self.fingerprint}

    @cached_property
    def identity(self) -> str:
        """The hash of ``content``; computed once for all cells of a plan."""
        return digest(self.content)


class PlannedComponent(Strict):
    """A component with a study's hyperparameters, and the hash of its code.

    Args:
        values, fixed: fields of the target that the study sets, and that the registered name sets.
    """

    name: str
    qualified: str
    target: str
    source: str
    values: dict[str, Value]
    fixed: dict[str, Value]

    @property
    def hyperparameters(self) -> dict[str, Value]:
        """Every field of the target."""
        return {**self.values, **self.fixed}


class PlannedMethod(PlannedComponent):
    """A method of a cell."""

    requires: Requires
    reference: bool
    models: int
    citation: str

    @property
    def trains(self) -> bool:
        """Whether it takes optimiser steps over the forget set."""
        return not self.reference and "epochs" in self.values


class PlannedAttack(PlannedComponent):
    """An attack on a cell."""

    requires: Touches


class NodeSpec(Strict):
    """Fields that reference models and cells share.

    Args:
        source: where tables come from.
        departures: how this run differs from the benchmark's own data and model; its rows are then not ranked.
        recipe: fine-tuning of the reference models.
        engine: hash of the harness's code and of the libraries that compute.
        device_kind: ``cpu`` or ``cuda``, which decides the precision of ``dtype = "auto"``.
        plugins: the plugins that offer the benchmark, the model, the method and the attack.
        cache: folder of prepared reference models, set when the node starts.
    """

    schema_version: Literal[1] = SPEC_SCHEMA
    benchmark: PlannedBenchmark
    model: PlannedModel
    source: DataSource
    departures: tuple[str, ...]
    recipe: dict[str, Value]
    seed: int
    engine: str
    device_kind: str
    plugins: dict[Literal["benchmark", "model", "method", "attack"], Plugin]
    provenance: dict[str, Any]
    run: RunSettings
    cache: str = ""

    folder: ClassVar[str]

    @property
    def id(self) -> CellId:
        raise NotImplementedError

    @property
    def title(self) -> str:
        return str(self.id)

    @property
    def computing(self) -> dict[str, Any]:
        """With what code, on what and how the node computes."""
        return {
            "engine": self.engine,
            "device": self.device_kind,
            "optimiser": self.run.optimiser,
            "deterministic": self.run.deterministic,
        }

    def content_facts(self) -> dict[str, Any]:
        """Everything that can change the node's result."""
        raise NotImplementedError

    def key_parts(self) -> Sequence[str]:
        """The parts of the node's folder name."""
        raise NotImplementedError

    @cached_property
    def content(self) -> str:
        """The hash of what can change the node's result."""
        return digest(self.content_facts())

    @cached_property
    def key(self) -> str:
        """The node's folder name, valid on any system; its final hash distinguishes nodes with like names."""
        safe = "--".join(re.sub(r"[^A-Za-z0-9._+-]", "_", name)[:60] for name in self.key_parts())
        return f"{safe.lstrip('.+-') or '_'}--s{self.seed}--{self.content[:12]}"

    def started(self, cache: Path, device: str, threads: int) -> NodeSpec:
        """The spec with the cache, device and threads with which the node starts."""
        run = self.run.model_copy(update={"device": device, "threads": threads})
        return self.model_copy(update={"cache": str(cache.resolve()), "run": run})


class ReferenceSpec(NodeSpec):
    """A reference model to prepare: trained here, or published (``revision`` is then its commit or hash)."""

    kind: Literal["model"] = "model"
    role: Role
    published: str = ""
    published_revision: str = ""

    folder: ClassVar[str] = "models"

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that identify the model's training data."""
        return self.benchmark.training.get(self.role, (self.role,))

    @property
    def table(self) -> str:
        """The tables joined into one word, as checkpoint names spell them."""
        return "+".join(name.replace("/", "_") for name in self.tables)

    @property
    def id(self) -> CellId:
        return CellId(self.role, self.benchmark.name, self.model.name, self.seed)

    @property
    def title(self) -> str:
        return f"{self.role} model {self.model.name} ({self.table})"

    def key_parts(self) -> Sequence[str]:
        return self.role, self.model.name, self.table

    def content_facts(self) -> dict[str, Any]:
        if self.published:
            return {"published": self.published, "revision": self.published_revision}
        known = self.benchmark.fingerprints
        vocabulary = self.benchmark.vocabulary if self.model.from_scratch else ()
        return {
            "model": self.model.identity,
            "recipe": self.recipe,
            "training": [
                *(known.get(name, name) for name in self.tables),
                *(known[name] for name in self.benchmark.trained_besides if name in known),
            ],
            "vocabulary": {name: known[name] for name in vocabulary},
            "settings": self.benchmark.training_settings,
            "benchmark": self.benchmark.source,
            "seed": self.seed,
            **self.computing,
        }


class CellSpec(NodeSpec):
    """A cell to run: a method on a benchmark and model.

    Args:
        templates: refusal answers; empty where the method needs none.
        models: for each role the key of the reference model.
        references: for each role the key of the cell with whose samples the scores compare.
        repeat, setting: see ``CellId``.
        selection: the metric by which one of a sweep's settings is chosen.
        settings_tried: how many settings of the method are planned.
        split: how rows are divided into validation and reported rows; None where all are reported.
        attack: what is done to the unlearned model, or to how it is asked, before it is measured; None for nothing.
        plain: the key of the cell without the attack.
        rivals: of a sweep, the keys of all cells among which the rule chooses, where the cell is run only if it has the
            chosen setting: attacks, and runs after the first of a sweep that tries its settings there alone.
        leaves_model: whether the cell leaves its weights for the cells that attack it.
    """

    kind: Literal["cell"] = "cell"
    method: PlannedMethod
    templates: tuple[str, ...]
    models: dict[Role, str]
    references: dict[Role, str]
    edition: str
    repeat: int = 0
    setting: str = ""
    selection: str = "score"
    settings_tried: int = 1
    split: Split | None = None
    attack: PlannedAttack | None = None
    plain: str = ""
    rivals: tuple[str, ...] = ()
    leaves_model: bool = False

    folder: ClassVar[str] = "cells"

    @property
    def id(self) -> CellId:
        attack = self.attack.name if self.attack else ""
        names = self.method.name, self.benchmark.name, self.model.name
        return CellId(*names, self.seed, self.repeat, self.setting, attack)

    @property
    def start(self) -> str:
        """The key of the reference model that the cell starts from."""
        return self.models[self.method.requires.start]

    def key_parts(self) -> Sequence[str]:
        attacked = (self.attack.name,) if self.attack else ()
        return self.method.name, self.benchmark.name, self.model.name, *attacked

    def content_facts(self) -> dict[str, Any]:
        method = self.method
        return {
            "method": [method.qualified, method.source, method.values, method.fixed, vars(method.requires)],
            "benchmark": self.benchmark.identity,
            "model": self.model.identity,
            "references": {role: key.rpartition("--")[2] for role, key in self.models.items()},
            "seed": self.seed,
            **self.computing,
            "templates": self.templates,
            "repeat": self.repeat,
            "setting": [self.setting, self.selection] if self.setting else "",
            "split": self.split and vars(self.split),
            **self._attack_facts(),
            **({"rivals": [key.rpartition("--")[2] for key in self.rivals]} if self.attack or self.rivals else {}),
        }

    def _attack_facts(self) -> dict[str, Any]:
        if self.attack is None:
            return {}
        attack = self.attack
        return {"attack": [attack.qualified, attack.source, attack.values, attack.fixed, vars(attack.requires)]}


AnySpec = Annotated[ReferenceSpec | CellSpec, Field(discriminator="kind")]
_ANY: TypeAdapter[ReferenceSpec | CellSpec] = TypeAdapter(AnySpec)


def write_spec(folder: Path, spec: NodeSpec) -> None:
    """Store a node's spec in its folder."""
    write_bytes(folder / SPEC, spec.model_dump_json(indent=1).encode() + b"\n")


def read_spec(folder: Path) -> ReferenceSpec | CellSpec:
    """The spec in a node's folder.

    Raises:
        RecordError: it is absent, damaged, or of another version.
    """
    path, remedy = folder / SPEC, "run the study again"
    try:
        return _ANY.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; {remedy}") from None
    except ValidationError as error:
        raise RecordError(f"{path} is not a spec of this version ({first_fault(error)}); {remedy}") from error
