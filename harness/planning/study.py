"""Study files: what to run, in TOML, checked by name and type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from ..domain import Edition
from ..errors import UnknownName, UsageError
from ..plugin.validation import validated
from ..records.gates import Gate, read_gates
from ..records.manifest import Submission
from ..records.node_spec import Resources, RunSettings
from ..records.schema import Strict
from ..storage import read_toml
from .sweep import Selection, Sweep

EVERY = "*"
COMPONENTS = ("methods", "benchmarks", "models", "attacks")
"""What a study selects by name, and gives settings."""
# Subtables of [data]: tables in files of their own, and tables that replace others.
DATA_TABLES = ("files", "stand_ins")
NESTED = ("run", "resources")
"""Sections with subtables whose names hold no dots."""


def _listed(value: object) -> object:
    """A single name or seed as a list of one."""
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


Names = Annotated[list[str], BeforeValidator(_listed)]
Overrides = dict[str, dict[str, Any]]


def _numbered(given: Any) -> Any:
    """A number of runs as their numbers from 0 on."""
    if type(given) is not int:
        return given
    if given < 1:
        raise ValueError(f"{given} runs; there must be at least 1")
    return list(range(given))


RunNumbers = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), BeforeValidator(_numbered)]


class NestedSeeds(Strict):
    """``seeds = {reference = I, unlearning = J}``: J runs of unlearning from each of I pairs of reference models.

    Either may also be a list: ``{reference = [3], unlearning = [0, 5]}``.
    """

    model_config = ConfigDict(strict=True)

    reference: RunNumbers = Field(default=[0], description="pairs of reference models, or their seeds")
    unlearning: RunNumbers = Field(default=[0], description="runs of unlearning from each pair, or their numbers")

    @model_validator(mode="after")
    def _several(self) -> NestedSeeds:
        if self.reference == self.unlearning == [0]:
            raise ValueError("one seed of each shows no variance; give at least two of one, or write seeds = [0]")
        return self


class StudyHead(Strict):
    """Table ``[study]``: what to run."""

    model_config = ConfigDict(strict=True)

    name: str = Field(default="study", description="names the run folder")
    edition: Edition = Field(default="paper", description="the metric edition that is printed and ranked")
    methods: Names = []
    benchmarks: Names = []
    models: Names = []
    attacks: Names = []
    seeds: Annotated[list[int], BeforeValidator(_listed)] = []
    nested: NestedSeeds | None = None

    @model_validator(mode="before")
    @classmethod
    def _nested_where_a_table(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("seeds"), Mapping):
            nested = validated(NestedSeeds, given["seeds"], "study.seeds")
            return {**given, "seeds": nested.reference, "nested": nested}
        return given

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not name or name.startswith(".") or any(letter in name for letter in "/\\\0") or len(name) > 100:
            raise ValueError(f"{name!r} names a folder, so no slashes, no leading dot, 1 to 100 letters")
        return name

    @field_validator("seeds")
    @classmethod
    def _whole_seeds(cls, seeds: list[int]) -> list[int]:
        if any(seed < 0 for seed in seeds):
            raise ValueError(f"{seeds!r}: expected whole numbers, at least 0")
        return seeds


class DataSettings(Strict):
    """Table ``[data]``: where tables come from. A folder or a file implies ``source = "local"``."""

    model_config = ConfigDict(strict=True)

    source: Literal["hub", "local", "generated"] = Field(default="hub", description="where tables come from")
    dir: str = Field(default="", description="folder in the hub's layout; implies source = local")
    seed: int = Field(default=0, description="of generated data")
    scale: Literal["full", "quick"] = Field(default="full", description="of generated data")
    templates: str = Field(default="", description="file of refusal answers, one a line; empty takes the built-in ones")
    files: dict[str, str] = {}
    stand_ins: dict[str, str] = {}
    allow_missing: Names = []

    @model_validator(mode="before")
    @classmethod
    def _local_where_named(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "source" not in given and (given.get("dir") or given.get("files")):
            return {**given, "source": "local"}
        return given


class ResourceTables(Resources):
    """Table ``[resources]``: what nodes need on a cluster, over their estimates; subtables by benchmark and method."""

    benchmarks: dict[str, Resources] = {}
    methods: dict[str, Resources] = {}


class StudyTables(Strict):
    """The tables of a study file.

    ``methods``, ``benchmarks``, ``models`` and ``attacks`` hold overrides by name (``*`` for all).
    """

    study: StudyHead = StudyHead()
    data: DataSettings = DataSettings()
    run: RunSettings = RunSettings()
    resources: ResourceTables = ResourceTables()
    recipe: dict[str, Any] = {}
    """Fine-tuning of the reference models; a subtable named after a benchmark applies to that one alone."""
    methods: Overrides = {}
    benchmarks: Overrides = {}
    models: Overrides = {}
    attacks: Overrides = {}
    submission: Submission = Submission()
    gates: list[Gate] = []
    sweep: Sweep = Sweep()
    selection: Selection = Selection()


SECTIONS = tuple(StudyTables.model_fields)
TABLES = tuple(name for name in SECTIONS if name != "gates")


@dataclass(frozen=True)
class Study:
    """A checked study.

    Args:
        raw: the tables as read, which the run folder stores.
        plugins: plugin files with which to run it.
        also: components that may have settings although they are not selected, by section.
    """

    tables: StudyTables
    raw: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.tables.study.name

    @property
    def edition(self) -> Edition:
        return self.tables.study.edition

    @property
    def run(self) -> RunSettings:
        return self.tables.run

    @property
    def data(self) -> DataSettings:
        return self.tables.data

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.tables.recipe

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.tables.study.seeds)) or (0,)

    @property
    def repeats(self) -> tuple[int, ...]:
        """The numbers of the runs of unlearning from the reference models of each seed."""
        nested = self.tables.study.nested
        return tuple(dict.fromkeys(nested.unlearning)) if nested else (0,)

    @property
    def sweep(self) -> Sweep:
        return self.tables.sweep

    @property
    def divides_rows(self) -> bool:
        """Whether rows are divided into validation rows, on which settings are chosen, and reported rows."""
        return (self.tables.selection.rows or ("validation" if self.sweep.methods else "test")) == "validation"

    def selected(self, section: str) -> tuple[str, ...]:
        """The selected names of ``methods``, ``benchmarks``, ``models`` or ``attacks``."""
        return tuple(dict.fromkeys(getattr(self.tables.study, section)))

    def overrides(self, section: str) -> Overrides:
        """The tables of settings of ``methods``, ``benchmarks``, ``models`` or ``attacks``, by name."""
        tables: Overrides = getattr(self.tables, section)
        return tables

    def recipe_for(self, benchmark: str) -> dict[str, Any]:
        """The study's settings for the reference models of one benchmark."""
        common = {key: value for key, value in self.recipe.items() if not isinstance(value, Mapping)}
        return {**common, **self.recipe.get(benchmark, {})}

    def resources_over(self, estimated: Resources, names: Sequence[tuple[str, str]]) -> Resources:
        """An estimate with the study's own numbers over it.

        Args:
            names: sections and names whose numbers count, later ones over earlier ones.
        """
        tables = self.tables.resources
        chosen = [tables, *(getattr(tables, section).get(name) for section, name in names)]
        for table in filter(None, chosen):
            given = {key: getattr(table, key) for key in Resources.model_fields if key in table.model_fields_set}
            estimated = estimated.model_copy(update=given)
        return estimated

    def given(self, section: str, names: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
        """Overrides for one component: those under ``*`` that it has (``keys``), then those under its names."""
        tables = self.overrides(section)
        settings = {key: value for key, value in tables.get(EVERY, {}).items() if key in keys}
        for name in names:
            settings |= tables.get(name, {})
        return settings


def read_study(path: str) -> dict[str, Any]:
    """The tables of a TOML file, or of a built-in study by its name.

    Raises:
        UsageError: it is absent or not TOML.
    """
    builtin = files("unlearnbench.planning").joinpath("presets", f"{path}.toml")
    try:
        file = Path(path) if Path(path).exists() or not builtin.is_file() else builtin
        return read_toml(file)
    except FileNotFoundError:
        raise UsageError(
            f"study file {path!r} does not exist; built-in studies: {', '.join(builtin_studies())}"
        ) from None
    except (ValueError, OSError) as error:
        raise UsageError(f"study file {path!r} is not TOML: {error}") from error


def builtin_studies() -> list[str]:
    """Names of the studies that come with the package."""
    folder = files("unlearnbench.planning").joinpath("presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def selected_by(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The methods, benchmarks, models and attacks that a study file names, before the command line selects some."""
    head = raw.get("study")
    selected = {}
    for section in COMPONENTS:
        names = _listed(head.get(section, [])) if isinstance(head, Mapping) else []
        selected[section] = tuple(n for n in names if isinstance(n, str)) if isinstance(names, list) else ()
    return selected


def check_study(
    raw: Mapping[str, Any], plugins: Sequence[str] = (), also: Mapping[str, tuple[str, ...]] | None = None
) -> Study:
    """Check every section and key. Planning checks names of components against the registry.

    Args:
        also: components by section that may have settings although the command line selects only others of the file.

    Raises:
        UnknownName: a section or key is unknown; suggests the nearest known one.
        UsageError: a value has the wrong type or is out of range.
    """
    refuse_bare_sections(raw)
    read_gates(raw)
    models: dict[str, type[Strict]] = {
        "study": StudyHead,
        "data": DataSettings,
        "run": RunSettings,
        "resources": ResourceTables,
        "submission": Submission,
        "sweep": Sweep,
        "selection": Selection,
    }
    for section, model in models.items():
        validated(model, raw.get(section, {}), section)
    for section in COMPONENTS:
        for name, content in raw.get(section, {}).items():
            if not isinstance(content, Mapping):
                raise UsageError(f"{section}.{name} = {content!r}: expected a table, [{section}.{name}]")
    return Study(StudyTables.model_validate(raw), raw, tuple(plugins), also or {})


def refuse_bare_sections(raw: Mapping[str, Any]) -> None:
    """Raise UnknownName for an unknown section, UsageError for a section that is no table."""
    for section, content in raw.items():
        if section not in SECTIONS:
            raise UnknownName("section of the study", section, SECTIONS)
        if section in TABLES and not isinstance(content, Mapping):
            raise UsageError(f"{section} = {content!r}: expected a table, [{section}]")
