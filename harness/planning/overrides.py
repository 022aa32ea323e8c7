"""Overrides a study's tables by values of the command line. Only ``--set`` is parsed; others arrive typed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UnknownName, UsageError
from .study import DATA_TABLES, NESTED, TABLES, refuse_bare_sections


def assigned(raw: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The study with ``section.key=value`` or ``section.name.key=value`` assignments from the command line.

    A value that is not TOML counts as text, so quotes are seldom needed.
    """
    refuse_bare_sections(raw)
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
        if section == "sweep" and table == "methods" and dot:
            name, _, key = inside.rpartition(".")
            if not name:
                raise UsageError(f"--set {assignment!r}: expected sweep.methods.NAME.key=[values]")
            target.setdefault("methods", {}).setdefault(name.strip('"'), {})[key] = _value(right.strip())
            continue
        if section == "data" and dot and table in DATA_TABLES:
            target.setdefault(table, {})[inside.strip('"')] = _value(right.strip())
            continue
        if section in NESTED and dot:
            *path, last = rest.split(".")
            for part in path:
                target = target.setdefault(part, {})
            target[last] = _value(right.strip())
            continue
        # Names of models may hold dots (phi-1.5): the key follows the last one.
        name, _, key = rest.rpartition(".")
        if section == "recipe" and name:
            target = target.setdefault(name.strip('"'), {})
        elif section in ("methods", "benchmarks", "models", "attacks"):
            if not name:
                raise UsageError(f"--set {assignment!r}: expected {section}.NAME.key=value")
            target = target.setdefault(name.strip('"'), {})
        elif name:
            raise UsageError(f"--set {assignment!r}: [{section}] has plain keys only, so write {section}.key=value")
        target[key or rest] = _value(right.strip())
    return merged


def plain_assigned(assignments: Sequence[str]) -> dict[str, Any]:
    """The values of ``key=value`` assignments from the command line, typed as in ``assigned``."""
    values = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {assignment!r}: expected key=value, for example samples=5")
        values[key.strip()] = _value(value.strip())
    return values


def placed(raw: Mapping[str, Any], settings: Sequence[tuple[Sequence[str], Any]]) -> dict[str, Any]:
    """The study with unparsed values at paths of keys."""
    merged = {section: _copied(content) for section, content in raw.items()}
    for path, value in settings:
        target: dict[str, Any] = merged
        for key in path[:-1]:
            target = target.setdefault(key, {})
        target[path[-1]] = value
    return merged


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def merged(raw: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    """A study's tables with others over them, key by key, without parsing values."""
    combined: dict[str, Any] = _copied(raw)
    for key, value in tables.items():
        under = combined.get(key)
        combined[key] = merged(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return combined


def _copied(content: Any) -> Any:
    """A copy of tables as mutable dictionaries."""
    return {key: _copied(value) for key, value in content.items()} if isinstance(content, Mapping) else content
