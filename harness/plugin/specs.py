"""Specs of components: light enough to list, show, validate and plan without importing torch."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..domain import Metric, Requires, Split, Touches
from ..errors import PluginError
from .parameters import Parameter, Value, hyperparameter, parameter_of, parameters_of

Kind = Literal["method", "benchmark", "model", "attack", "executor", "reporter"]
TEMPLATE_DATE = "2024-07-26"
"""The date that chat templates write: the fallback of Llama 3's own template without a clock."""


@dataclass(frozen=True)
class MethodSpec:
    """An unlearning method by name. ``fixed`` are fields of the target that this name sets."""

    name: str
    target: str
    summary: str
    requires: Requires = field(default_factory=Requires)
    parameters: tuple[Parameter, ...] = ()
    fixed: Mapping[str, Value] = field(default_factory=dict)
    citation: str = ""
    editions: tuple[str, ...] = ("paper",)
    edition_requires: Mapping[str, Requires] = field(default_factory=dict)
    """Requirements of an edition that differ from ``requires``."""
    models: int = 1
    """How many models answer together after unlearning."""
    reference: bool = False
    """True for the original and the retained model, the two ends of every scale, which are never ranked."""
    api_version: int = 1

    kind: typing.ClassVar[Kind] = "method"

    def requires_in(self, edition: object) -> Requires:
        """What the method may touch in one edition of its loss."""
        return self.edition_requires.get(str(edition), self.requires)

    @classmethod
    def of(cls, target: type, **more: Any) -> MethodSpec:
        """The spec of a method class, read from its fields, its docstring and its class attributes.

        The attributes are ``name``, ``requires``, ``edition_requires``, ``citation``, ``models`` and ``reference``; all
        but the name may be absent. ``more`` replaces what is read. A field that ``fixed`` sets is no parameter.
        Reading imports the class: ``unlearnbench.authoring.component_specs`` writes specs to a file for plugins that
        are to be listed cheaply.
        """
        read = _read(target, more, ("requires", "edition_requires", "citation", "models", "reference"))
        editions = next((p.choices for p in read["parameters"] if p.name == "edition" and p.choices), ("paper",))
        return cls(**{**read, "editions": tuple(str(edition) for edition in editions), **more})


@dataclass(frozen=True)
class AttackSpec:
    """An attack on an unlearned model by name. ``fixed`` are fields of the target that this name sets.

    Args:
        packages: distributions that the attack needs and the harness does not; ``all`` leaves it out without them.
        extra: what installs them, as pip is told.
    """

    name: str
    target: str
    summary: str
    requires: Touches = field(default_factory=Touches)
    parameters: tuple[Parameter, ...] = ()
    fixed: Mapping[str, Value] = field(default_factory=dict)
    citation: str = ""
    packages: tuple[str, ...] = ()
    extra: str = ""
    api_version: int = 1

    kind: typing.ClassVar[Kind] = "attack"

    @classmethod
    def of(cls, target: type, **more: Any) -> AttackSpec:
        """The spec of an attack class, read from its fields, its docstring and its class attributes.

        The attributes are ``name``, ``requires``, ``citation``, ``packages`` and ``extra``; all but the name may be
        absent. ``more`` replaces what is read. A field that ``fixed`` sets is no parameter.
        """
        return cls(**{**_read(target, more, ("requires", "citation", "packages", "extra")), **more})


@dataclass(frozen=True)
class DataSpec:
    """Where a benchmark's tables come from: the hub, a folder in the hub's layout, or a generator.

    Args:
        tables: fields that every row of a table must have, by table name: the hub's config, or ``config/split``;
            ``name[]`` is a list of texts. A table of plain texts has the one field ``text``.
        hub: data set id; ``revision`` a commit, so that a moved branch cannot change a result.
        hub_tables: tables of other data sets, ``id[@revision]:config:split:field:rows``: one field of the first rows.
        optional: tables that may be absent; ``check`` decides which of them may be absent together.
        may_be_missing: tables that may be absent only where the study allows it, because results then say less.
        generator: ``"pkg.mod:function"``, called with a seed, returning every table as a list of rows.
        check: ``"pkg.mod:function"``, called with the tables; raises DataError where they contradict each other.
        remedy: what to do where there is no hub data set.
    """

    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hub: str = ""
    revision: str = ""
    hub_tables: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    may_be_missing: tuple[str, ...] = ()
    licence: str = ""
    generator: str = ""
    check: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark by name: its data, its metrics, and which table each reference model is trained on."""

    name: str
    target: str
    summary: str
    metrics: tuple[Metric, ...]
    version: str = "1"
    data: DataSpec = field(default_factory=DataSpec)
    training: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """For each role (``original``, ``retained``) the tables that identify the reference model's training data."""
    trained_besides: tuple[str, ...] = ()
    """Tables that all reference models train on beside these, and that do not name them."""
    vocabulary: tuple[str, ...] = ()
    """Tables beyond the training ones that add to the vocabulary of a model from scratch."""
    parameters: tuple[Parameter, ...] = ()
    evaluation_parameters: tuple[str, ...] = ()
    """Parameters that do not change the reference models' training data, so that cells can share these models."""
    fixed: Mapping[str, Value] = field(default_factory=dict)
    recipe: Mapping[str, Value] = field(default_factory=dict)
    citation: str = ""
    reading: str = ""
    """What to read off the columns of its page, in a sentence."""
    forget_parts: tuple[str, ...] = ("forget",)
    """The parts of the samples that ask for what is to be forgotten, where a departure from the truth is no fault."""
    workload: Mapping[str, float] = field(default_factory=dict)
    """Tokens of the published data, for estimates: ``original`` and ``retained`` (an epoch of training), ``forget``,
    ``row`` (of one row), ``scored``, ``prompts`` and ``generated`` (an evaluation), and the number of ``questions``
    that are answered. An estimate needs all of them."""
    questions: str = ""
    """``"pkg.mod:function"``: maps tables to the rows to ask, by part, each with the fields that identify a sample row.
    ``verify`` compares submissions with them; empty where the rows are unknown."""
    published: str = ""
    """``"pkg.mod:function"``: maps this benchmark's name to hashes of the published data's rows to ask."""
    scoring: tuple[str, ...] = ()
    """Modules of the benchmark that only score or describe scores: a change there needs ``rescore``, not another run
    of every cell. Measurements must not depend on them."""
    packages: tuple[str, ...] = ()
    """Distributions that supply the questions; rows from different versions of them are not compared."""
    split: Split = field(default_factory=Split)
    """How rows divide where a study chooses settings on validation rows."""
    samples: Literal["public", "redacted", "none"] = "public"
    log_readers: Mapping[str, str] = field(default_factory=dict)
    """``"pkg.mod:function"`` for each publisher's log format that ``score --from`` reads."""
    reference: bool = False
    api_version: int = 1

    kind: typing.ClassVar[Kind] = "benchmark"

    @property
    def editions(self) -> tuple[str, ...]:
        """The editions of this benchmark's metrics."""
        return tuple(sorted({edition for metric in self.metrics for edition in metric.editions})[::-1])


@dataclass(frozen=True)
class ModelSpec:
    """A base model by name, and how it is prompted, trained and loaded.

    Args:
        path: hub id or folder; empty for a model built from ``architecture`` and trained from scratch.
        architecture: sizes of a model from scratch (layers, width, heads, hidden, vocabulary, context).
        prompt_format: a name in ``unlearnbench.data.prompts``, or ``"auto"``: the chat template if there is one.
        system_prompt, template_date, enable_thinking: inputs of a chat template: a system turn before each question
            (empty for none), the date that it may write (YYYY-MM-DD), whether it leaves room for thoughts.
        dtype: of the forward passes; ``"auto"`` is bfloat16 on a GPU that has it and float32 elsewhere.
        allow_missing_weights: load a checkpoint whose tensors do not fit the architecture; its rows are never ranked.
        shape: ``parameters``, ``layers`` and ``width`` of a pretrained model, for estimates of time and memory; sharper
            with ``inner``, ``vocabulary``, ``key_width`` and ``tied`` (1 where the output head is the embedding).
        original, retained: published checkpoints to use instead of fine-tuning; ``{split}`` in the name
            stands for the benchmark's training table (``full``, ``retain95``).
        checkpoints_of: the benchmarks on whose published data ``original`` and ``retained`` were trained; on others,
            and on generated data, reference models are fine-tuned. Empty for any benchmark and data, as where a
            study names the checkpoints.
        lora_rank: above 0, methods train a LoRA adapter of this rank, merged before evaluation.
        recipe: fine-tuning of the reference models; overrides the benchmark's own.
        method_defaults: hyperparameters that suit this model; a study overrides them.
    """

    name: str
    summary: str
    path: str = hyperparameter("", "hub id or folder")
    revision: str = hyperparameter("", "branch, tag or commit on the hub")
    gguf_file: str = hyperparameter("", "a GGUF file inside the folder or repository")
    prompt_format: str = hyperparameter("auto", "how questions are put")
    system_prompt: str = hyperparameter("", "system turn of a chat template; empty for none")
    template_date: str = hyperparameter(TEMPLATE_DATE, "the date that a chat template may write, YYYY-MM-DD")
    enable_thinking: bool = hyperparameter(False, "let a chat template leave room for thoughts")
    dtype: str = hyperparameter("auto", "of forward passes", choices=("auto", "float32", "bfloat16", "float16"))
    trust_remote_code: bool = hyperparameter(False, "run the repository's own model code")
    allow_pickle: bool = hyperparameter(False, "load pickle weights, which can run code")
    allow_missing_weights: bool = hyperparameter(False, "load weights that do not fit; rows are unranked")
    original: str = hyperparameter("", "published original model")
    retained: str = hyperparameter("", "published retained model; {split} is the training table")
    lora_rank: int = hyperparameter(0, "train a LoRA adapter of this rank; 0 trains all weights", low=0)
    architecture: Mapping[str, int] = field(default_factory=dict)
    shape: Mapping[str, float] = field(default_factory=dict)
    recipe: Mapping[str, Value] = field(default_factory=dict)
    method_defaults: Mapping[str, Value] = field(default_factory=dict)
    checkpoints_of: tuple[str, ...] = ()
    citation: str = ""
    api_version: int = 1

    kind: typing.ClassVar[Kind] = "model"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The settings of a model that a study may change."""
        return MODEL_PARAMETERS


MODEL_PARAMETERS = parameters_of(ModelSpec)


@dataclass(frozen=True)
class ExecutorSpec:
    """A way to run nodes: ``target``, called with the study's ``RunSettings``, returns an ``Executor``."""

    name: str
    target: str
    summary: str
    parameters: tuple[Parameter, ...] = ()
    api_version: int = 1

    kind: typing.ClassVar[Kind] = "executor"


@dataclass(frozen=True)
class ReporterSpec:
    """A way to show results: ``target`` is a ``Reporter``, which ``render --reporter NAME`` calls."""

    name: str
    target: str
    summary: str
    parameters: tuple[Parameter, ...] = ()
    api_version: int = 1

    kind: typing.ClassVar[Kind] = "reporter"


Spec = MethodSpec | BenchmarkSpec | ModelSpec | AttackSpec | ExecutorSpec | ReporterSpec


def resolve(target: str, plugin: str) -> Any:
    """The object that ``"pkg.mod:Name"`` names. Raises PluginError naming the plugin that declares it."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise PluginError(plugin, f"cannot load {target}: {type(error).__name__}: {error}") from error


def _read(target: type, more: Mapping[str, Any], declared: tuple[str, ...]) -> dict[str, Any]:
    """What a class says of itself; ``declared`` are attributes that it may have."""
    fixed = more.get("fixed", {})
    return {
        "name": _declared_name(target),
        "target": f"{target.__module__}:{target.__qualname__}",
        "summary": _first_line(target),
        "parameters": tuple(parameter for parameter in _parameters(target) if parameter.name not in fixed),
        **{name: getattr(target, name) for name in declared if hasattr(target, name)},
    }


def _first_line(target: type) -> str:
    return (inspect.getdoc(target) or target.__name__).splitlines()[0]


def _declared_name(target: type) -> str:
    name = getattr(target, "name", None)
    if not isinstance(name, str):
        raise PluginError(target.__module__, f"{target.__qualname__} has no class attribute 'name'")
    return name


def _parameters(target: type) -> list[Parameter]:
    """Dataclass fields as parameters; the metadata of a field holds bounds, choices and a summary."""
    if not dataclasses.is_dataclass(target):
        return []
    hints = typing.get_type_hints(target)
    parameters = []
    for item in dataclasses.fields(target):
        kind = hints[item.name]
        if item.name == "name" or kind not in (bool, int, float, str):
            if isinstance(kind, types.UnionType) or item.default is dataclasses.MISSING:
                raise PluginError(
                    target.__module__, f"{target.__qualname__}.{item.name} must be bool, int, float or str"
                )
            continue
        parameters.append(parameter_of(item, kind))
    return parameters
