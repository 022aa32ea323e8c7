"""Validates tables of a study; a fault is one line that names the key and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from ..errors import UnknownName, UsageError

M = TypeVar("M", bound=BaseModel)

# pydantic's names of type errors, and the expected value in words.
EXPECTED = {
    "bool_type": "bool",
    "int_type": "int",
    "float_type": "float",
    "string_type": "str",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
BOUNDS = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}


def validated(model: type[M], raw: Any, where: str) -> M:
    """Parse ``raw`` as the model.

    Args:
        where: the table's name in the study, for messages.

    Raises:
        UnknownName: the model does not have a key; suggests the nearest that it has.
        UsageError: a value has the wrong type or is out of range.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise _explained(model, dict(error.errors()[0]), where) from error


def _explained(model: type[BaseModel], fault: Mapping[str, Any], where: str) -> UsageError:
    kind, value, path = fault["type"], fault["input"], [str(part) for part in fault["loc"]]
    name = ".".join([where, *path])
    if kind == "extra_forbidden":
        return UnknownName(f"key of {'.'.join([where, *path[:-1]])}", path[-1], _holder(model, path).model_fields)
    if kind == "value_error":
        return UsageError(f"{name}: {fault['ctx']['error']}")
    shown = f"{name} = {value!r}"
    if kind == "float_type" and type(value) is int:
        return UsageError(f"{name}: the number is too large")
    if kind in EXPECTED:
        table = EXPECTED[kind] == "a table"
        return UsageError(f"{shown}: expected {EXPECTED[kind]}, {f'[{name}]' if table else f'got {_type(value)}'}")
    if kind in BOUNDS:
        bound, words = BOUNDS[kind]
        return UsageError(f"{shown}: must be {words} {fault['ctx'][bound]:g}")
    if kind == "finite_number":
        return UsageError(f"{shown}: must be finite")
    if kind == "literal_error":
        choices = get_args(_holder(model, path).model_fields[path[-1]].annotation)
        return UsageError(f"{shown}: must be one of {', '.join(map(repr, choices))}")
    return UsageError(f"{shown}: {fault['msg']}")


def _holder(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model of the table that holds the last key of a path."""
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return model


def _type(value: object) -> str:
    return type(value).__name__
