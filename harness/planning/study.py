"""What to run: a study file in TOML, options of the command line over it, both checked by name and type."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..data.sources import SOURCES
from ..domain import EDITIONS
from ..errors import UnknownName, UsageError
from ..plugin.parameters import Parameter, parse_parameters
from ..records.gates import read_gates
from ..storage import read_toml

STUDY_LISTS = ("methods", "benchmarks", "models", "seeds")
STUDY_PARAMETERS = (
    Parameter("name", str, "study", "names the run folder"),
    Parameter("edition", str, "paper", "the metric edition that is printed and ranked", choices=EDITIONS),
)
DATA_PARAMETERS = (
    Parameter("source", str, "hub", "where tables come from", choices=SOURCES),
    Parameter("dir", str, "", "folder in the hub's layout; implies source = local"),
    Parameter("seed", int, 0, "of generated data"),
    Parameter("scale", str, "full", "of generated data", choices=("full", "quick")),
    Parameter("templates", str, "", "file of refusal answers, one a line; empty takes the built-in ones"),
)
# Tables by name: files of their own, and tables that take the place of others.
DATA_TABLES = ("files", "stand_ins")
RUN_PARAMETERS = (
    Parameter("jobs", int, 1, "cells at a time on each device", low=1),
    Parameter("processes", int, 1, "processes that train a model together, a device each, its weights sharded", low=1),
    Parameter("threads", int, 0, "CPU threads of a cell; 0 shares the cores between jobs", low=0),
    Parameter("timeout", float, 0.0, "seconds a cell may take; 0 sets no limit", low=0.0),
    Parameter("memory_limit", float, 0.0, "GiB of memory a cell may use; 0 sets no limit", low=0.0),
    Parameter("device", str, "auto", "cpu, cuda, cuda:1, …; auto takes a GPU where there is one"),
    Parameter("executor", str, "local", "what runs the cells"),
    Parameter("keep_model", bool, False, "keep the unlearned weights in the cell's folder"),
)
SUBMISSION_PARAMETERS = tuple(
    Parameter(name, str, "", words)
    for name, words in (
        ("contact", "whom to ask, for example a mail address"),
        ("licence", "under which the records and samples are handed in"),
        ("budget", "how many settings of each method were tried"),
        ("selection", "the rule that chose the settings shown, and the data it looked at"),
        ("paper", "address or citation of the paper"),
        ("code", "address of the code"),
    )
)
TABLES = ("study", "data", "run", "recipe", "methods", "benchmarks", "models", "submission")
SECTIONS = (*TABLES, "gates")
EVERY = "*"


@dataclass(frozen=True)
class Study:
    """A checked study. ``methods``, ``benchmarks`` and ``models`` hold overrides by name (``*`` for all)."""

    name: str
    edition: str
    selected: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    data: Mapping[str, Any]
    run: Mapping[str, Any]
    recipe: Mapping[str, Any]
    """Fine-tuning of the reference models; a table in it, by the name of a benchmark, is for that one alone."""
    overrides: Mapping[str, Mapping[str, Mapping[str, Any]]]
    plugins: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Components that may have settings although they are not selected."""

    def recipe_for(self, benchmark: str) -> dict[str, Any]:
        """The study's settings for the reference models of one benchmark."""
        common = {key: value for key, value in self.recipe.items() if not isinstance(value, Mapping)}
        return {**common, **self.recipe.get(benchmark, {})}

    def given(self, section: str, names: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
        """Overrides for one component: those under ``*`` that it has (``keys``), then those under its names."""
        found = {key: value for key, value in self.overrides[section].get(EVERY, {}).items() if key in keys}
        for name in names:
            found |= self.overrides[section].get(name, {})
        return found


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


def assigned(raw: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The study with ``section.key=value`` or ``section.name.key=value`` assignments of the command line.

    Values are TOML; what is not TOML is taken as text, so quotes are seldom needed.
    """
    _refuse_bare_sections(raw)
    merged = {section: _copied(content) for section, content in raw.items()}
    for assignment in assignments:
        left, equals, right = assignment.partition("=")
        section, _, rest = left.strip().partition(".")
        if not equals or not rest:
            raise UsageError(f"--set {assignment!r}: expected section.key=value, for example methods.npo.beta=0.1")
        if section not in TABLES:
            raise UnknownName("section", section, TABLES, f" in --set {assignment!r}")
        target = merged.setdefault(section, {})
        table, dot, inside = rest.partition(".")
        if section == "data" and dot and table in DATA_TABLES:
            target.setdefault(table, {})[inside.strip('"')] = _value(right.strip())
            continue
        # Names of models hold dots (phi-1.5), so the key is what follows the last one.
        name, _, key = rest.rpartition(".")
        if section == "recipe" and name:
            target = target.setdefault(name.strip('"'), {})
        elif section in ("methods", "benchmarks", "models"):
            if not name:
                raise UsageError(f"--set {assignment!r}: expected {section}.NAME.key=value")
            target = target.setdefault(name.strip('"'), {})
        elif name:
            raise UsageError(f"--set {assignment!r}: [{section}] has plain keys only, so write {section}.key=value")
        target[key or rest] = _value(right.strip())
    return merged


def placed(raw: Mapping[str, Any], settings: Sequence[tuple[Sequence[str], Any]]) -> dict[str, Any]:
    """The study with values, as they are, at paths of keys; no text in them is parsed."""
    merged = {section: _copied(content) for section, content in raw.items()}
    for path, value in settings:
        target: dict[str, Any] = merged
        for key in path[:-1]:
            target = target.setdefault(key, {})
        target[path[-1]] = value
    return merged


def selected_by(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The methods, benchmarks and models that a study file names, whatever the command line selects of them."""
    head = raw.get("study")
    lists = {kind: head.get(kind, []) if isinstance(head, Mapping) else [] for kind in STUDY_LISTS[:3]}
    return {kind: tuple(n for n in _list(kind, names) if isinstance(n, str)) for kind, names in lists.items()}


def builtin_studies() -> list[str]:
    """Names of the studies that come with the package."""
    folder = files("unlearnbench.planning").joinpath("presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def check_study(
    raw: Mapping[str, Any], plugins: Sequence[str] = (), also: Mapping[str, tuple[str, ...]] | None = None
) -> Study:
    """Every section and key checked. Names of components are checked against the registry when planning.

    Args:
        also: components that may have settings although they are not selected, by section: those of a file of which
            the command line selects some.

    Raises:
        UnknownName: an unknown section or key, with the nearest known one.
        UsageError: a value of the wrong type or out of range.
    """
    _refuse_bare_sections(raw)
    head = dict(raw.get("study", {}))
    lists = {name: _list(name, head.pop(name, [])) for name in STUDY_LISTS}
    known = {parameter.name for parameter in STUDY_PARAMETERS}
    for key in head:
        if key not in known:
            raise UnknownName("key of study", key, [*known, *STUDY_LISTS])
    values = parse_parameters(STUDY_PARAMETERS, head, "study")
    data = _data(raw.get("data", {}))
    overrides = {}
    for section in ("methods", "benchmarks", "models"):
        overrides[section] = dict(raw.get(section, {}))
        for name, content in overrides[section].items():
            if not isinstance(content, Mapping):
                raise UsageError(f"{section}.{name} = {content!r}: expected a table, [{section}.{name}]")
    seeds = lists.pop("seeds") or [0]
    if any(type(seed) is not int or seed < 0 for seed in seeds):
        raise UsageError(f"study.seeds = {seeds!r}: expected whole numbers, at least 0")
    if any(not isinstance(name, str) for names in lists.values() for name in names):
        raise UsageError("study.methods, study.benchmarks and study.models are lists of names")
    read_gates(raw)
    parse_parameters(SUBMISSION_PARAMETERS, raw.get("submission", {}), "submission")
    run = parse_parameters(RUN_PARAMETERS, raw.get("run", {}), "run")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(run["device"])):
        raise UsageError(f"run.device = {run['device']!r}: must be auto, cpu, cuda or cuda:N")
    return Study(
        name=_folder_name(str(values["name"])),
        edition=str(values["edition"]),
        selected={kind: tuple(dict.fromkeys(names)) for kind, names in lists.items()},
        seeds=tuple(dict.fromkeys(seeds)),
        data=data,
        run=run,
        recipe=dict(raw.get("recipe", {})),
        overrides=overrides,
        plugins=tuple(plugins),
        raw=raw,
        also=also or {},
    )


def _data(given: Mapping[str, Any]) -> dict[str, Any]:
    """Where tables come from; a folder or a file implies ``source = "local"``."""
    plain = {key: value for key, value in given.items() if key not in (*DATA_TABLES, "allow_missing")}
    data: dict[str, Any] = dict(parse_parameters(DATA_PARAMETERS, plain, "data"))
    for key in DATA_TABLES:
        data[key] = given.get(key, {})
        if not isinstance(data[key], Mapping) or any(type(value) is not str for value in data[key].values()):
            raise UsageError(f"data.{key} = {data[key]!r}: expected names of tables with texts, [data.{key}]")
    missing = given.get("allow_missing", [])
    data["allow_missing"] = [missing] if isinstance(missing, str) else missing
    if not isinstance(data["allow_missing"], list) or any(type(name) is not str for name in data["allow_missing"]):
        raise UsageError(f"data.allow_missing = {missing!r}: expected a list of tables")
    if (data["dir"] or data["files"]) and "source" not in given:
        data["source"] = "local"
    return data


def _refuse_bare_sections(raw: Mapping[str, Any]) -> None:
    for section, content in raw.items():
        if section not in SECTIONS:
            raise UnknownName("section of the study", section, SECTIONS)
        if section in TABLES and not isinstance(content, Mapping):
            raise UsageError(f"{section} = {content!r}: expected a table, [{section}]")


def _folder_name(name: str) -> str:
    if not name or name.startswith(".") or any(letter in name for letter in "/\\\0") or len(name) > 100:
        raise UsageError(f"study.name = {name!r}: it names a folder, so no slashes, no leading dot, 1 to 100 letters")
    return name


def _list(name: str, value: object) -> list[Any]:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, list):
        raise UsageError(f"study.{name} = {value!r}: expected a list")
    return value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _copied(content: Any) -> Any:
    return {key: _copied(value) for key, value in content.items()} if isinstance(content, Mapping) else content
