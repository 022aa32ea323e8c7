"""Stores specs of methods or attacks in a JSON file, so that a plugin lists its classes without importing them.

Training hyperparameters belong to the harness. The file only says whether a method has them, so it suits any version
of the harness.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from importlib.resources.abc import Traversable
from typing import Any

from ..domain import Requires, Touches
from .parameters import TRAINING_PARAMETERS, Parameter
from .specs import AttackSpec, MethodSpec

TYPES = {kind.__name__: kind for kind in (bool, int, float, str)}


def written_specs(specs: Iterable[MethodSpec | AttackSpec]) -> str:
    """The text of the file: for each spec, in the order given, the fields unlike the defaults of its class."""
    return json.dumps([_stored(spec) for spec in specs], indent=1, ensure_ascii=False) + "\n"


def stored_specs(file: Traversable) -> list[MethodSpec]:
    """Read the specs of methods that ``written_specs`` wrote."""
    return [_method(entry) for entry in _entries(file)]


def stored_attacks(file: Traversable) -> list[AttackSpec]:
    """Read the specs of attacks that ``written_specs`` wrote."""
    specs = [_read(entry, Touches) for entry in _entries(file)]
    return [AttackSpec(**{**spec, "packages": tuple(spec.get("packages", ()))}) for spec in specs]


def _entries(file: Traversable) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return entries


def _stored(spec: MethodSpec | AttackSpec) -> dict[str, Any]:
    entry = _changed(spec)
    trains = spec.parameters[: len(TRAINING_PARAMETERS)] == TRAINING_PARAMETERS
    own = spec.parameters[len(TRAINING_PARAMETERS) :] if trains else spec.parameters
    stored: dict[str, Any] = {"trains": trains, "parameters": [_stored_parameter(parameter) for parameter in own]}
    if "requires" in entry:
        stored["requires"] = _changed(spec.requires)
    if isinstance(spec, MethodSpec) and "edition_requires" in entry:
        stored["edition_requires"] = {name: _changed(needs) for name, needs in spec.edition_requires.items()}
    return {**entry, **stored}


def _stored_parameter(parameter: Parameter) -> dict[str, Any]:
    return {**_changed(parameter), "type": parameter.type.__name__}


def _changed(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults."""
    return {item.name: current for item in fields(value) if (current := getattr(value, item.name)) != _default(item)}


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _method(entry: Mapping[str, Any]) -> MethodSpec:
    values = _read(entry, Requires)
    values["edition_requires"] = {name: Requires(**needs) for name, needs in entry.get("edition_requires", {}).items()}
    values["editions"] = tuple(values.get("editions", ("paper",)))
    return MethodSpec(**values)


def _read(entry: Mapping[str, Any], requires: type[Requires | Touches]) -> dict[str, Any]:
    """The fields that specs of both kinds have."""
    values = dict(entry)
    own = tuple(_read_parameter(parameter) for parameter in values.pop("parameters"))
    values["parameters"] = (*TRAINING_PARAMETERS, *own) if values.pop("trains") else own
    values["requires"] = requires(**values.get("requires", {}))
    return values


def _read_parameter(entry: Mapping[str, Any]) -> Parameter:
    return Parameter(**{**entry, "type": TYPES[entry["type"]], "choices": tuple(entry.get("choices", ()))})
