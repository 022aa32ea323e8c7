"""The settings of a sweep: equally many for every method, from a grid or drawn with a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from ..errors import UnknownName, UsageError
from ..plugin.parameters import Parameter, Value
from ..plugin.validation import validated
from ..records.schema import Strict
from ..storage import digest

EVERY = "*"


class Range(Strict):
    """Values between two ends, from which random and quasi-random searches draw."""

    model_config = ConfigDict(strict=True)

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low = {self.low:g} has no logarithm; a log scale needs a low above 0")
        return self

    def at(self, share: float) -> float:
        """The value at a share, from 0 to 1, of the way."""
        if self.scale == "log":
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return self.low + share * (self.high - self.low)


class Sweep(Strict):
    """Table ``[sweep]``: the settings to try of every method. ``methods`` holds values by method (``*`` for all)."""

    model_config = ConfigDict(strict=True)

    search: Literal["grid", "random", "quasi-random"] = Field(default="grid", description="how settings are chosen")
    settings: int = Field(default=0, ge=0, description="settings of each method; 0 takes the whole grid")
    seed: int = Field(default=0, ge=0, description="of random and quasi-random searches")
    runs: Literal["all", "first"] = Field(
        default="all", description="runs in which every setting is tried; the others then have the chosen one alone"
    )
    methods: dict[str, dict[str, Any]] = {}


class Selection(Strict):
    """Table ``[selection]``: which setting of a method stands for it."""

    model_config = ConfigDict(strict=True)

    metric: str = Field(default="score", description="the best value of this metric is chosen")
    rows: Literal["", "validation", "test"] = Field(
        default="", description="rows to choose on; by default validation rows in a sweep"
    )


def settings_of(sweep: Sweep, names: Sequence[str], parameters: Sequence[Parameter]) -> list[dict[str, Value]]:
    """The settings of one method, as overrides of its hyperparameters; one empty setting without a sweep.

    Args:
        names: the method's short and qualified name.

    Raises:
        UnknownName: the sweep gives this method a key that it does not have.
        UsageError: a value is out of range, or the search has not enough distinct settings.
    """
    known = {parameter.name: parameter for parameter in parameters}
    axes = {key: values for key, values in sweep.methods.get(EVERY, {}).items() if key in known}
    for name in names:
        for key, values in sweep.methods.get(name, {}).items():
            if key not in known:
                raise UnknownName(f"key of sweep.methods.{name}", key, known)
            axes[key] = values
    if not axes:
        return [{}]
    where = f"sweep.methods.{names[0]}"
    spaces = {key: _space(values, known[key], f"{where}.{key}", sweep.search) for key, values in axes.items()}
    chosen = _grid(spaces) if sweep.search == "grid" else _drawn(spaces, sweep, names[0])
    settings = [
        {key: known[key].parse(_whole(value, known[key]), where) for key, value in setting.items()}
        for setting in chosen
    ]
    distinct = list({label_of(setting): setting for setting in settings}.values())
    wanted = sweep.settings or len(settings)
    if len(distinct) != wanted:
        raise UsageError(
            f"{where}: {len(distinct)} distinct settings, sweep.settings asks for {wanted}; give more values, a wider "
            "range, or the other number"
        )
    return distinct


def _space(values: Any, parameter: Parameter, where: str, search: str) -> Sequence[Any] | Range:
    """A list of values, or a range."""
    if isinstance(values, Mapping):
        if search == "grid":
            raise UsageError(f"{where} is a range; a grid needs a list of values, or set sweep.search = 'random'")
        if parameter.type not in (int, float):
            raise UsageError(
                f"{where} is a range, and {parameter.name} is a {parameter.type.__name__}; list its values"
            )
        given = {key: float(value) if type(value) is int else value for key, value in values.items()}
        return validated(Range, given, where)
    if not isinstance(values, list):
        raise UsageError(f"{where} = {values!r}: expected a list of values or a range {{low, high, scale}}")
    if not values:
        raise UsageError(f"{where} = []: a sweep needs values to try")
    return [parameter.parse(value, where.rpartition(".")[0]) for value in values]


def _whole(value: Any, parameter: Parameter) -> Any:
    """A drawn value as a whole number where the parameter needs one."""
    return round(value) if parameter.type is int and isinstance(value, float) else value


def _grid(spaces: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(spaces, values, strict=True)) for values in product(*spaces.values())]


def _drawn(spaces: Mapping[str, Sequence[Any] | Range], sweep: Sweep, name: str) -> list[dict[str, Any]]:
    """Settings at random or quasi-random points; the same seed gives each method its own, always the same."""
    import numpy as np
    from scipy.stats import qmc

    if not sweep.settings:
        raise UsageError(f"sweep.search = {sweep.search!r} needs sweep.settings, the number of settings of each method")
    seed = int(digest([sweep.seed, name])[:8], 16)
    if sweep.search == "random":
        points = np.random.default_rng(seed).random((sweep.settings, len(spaces)))
    else:
        points = qmc.Halton(len(spaces), rng=seed).random(sweep.settings)
    return [
        {key: _value(space, float(share)) for (key, space), share in zip(spaces.items(), point, strict=True)}
        for point in points
    ]


def _value(space: Sequence[Any] | Range, share: float) -> Any:
    """The value at a share, from 0 to below 1, of a space; four digits of a range, which a reader can copy."""
    return float(f"{space.at(share):.4g}") if isinstance(space, Range) else space[int(share * len(space))]


def label_of(setting: Mapping[str, Value]) -> str:
    """A setting in words, which names it: ``learning_rate=0.001,beta=0.5``."""
    return ",".join(f"{key}={value}" for key, value in setting.items())


def refuse_unequal(counts: Mapping[str, int]) -> None:
    """Raise UsageError unless every method has the same number of settings: unequal budgets are not comparable."""
    most = max(counts, key=lambda name: counts[name], default="")
    least = min(counts, key=lambda name: counts[name], default="")
    if most and counts[most] != counts[least]:
        raise UsageError(
            f"the sweep gives {most} {counts[most]} settings and {least} {counts[least]}: every method needs the same "
            "number; use equally many values, or sweep.search = 'random' with sweep.settings"
        )
