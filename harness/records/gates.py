"""Limits on how much results may worsen between two runs, from ``[[gates]]`` of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from ..errors import UsageError
from ..plugin.validation import validated
from .schema import Strict

TIMES = frozenset(
    {
        "unlearn_seconds",
        "measure_seconds",
        "unlearn_cpu_seconds",
        "measure_cpu_seconds",
        "fastest_step_cpu_seconds",
    }
)
COSTS = (*sorted(TIMES), "training_tokens", "optimiser_steps", "peak_memory_bytes")


class Gate(Strict):
    """A limit on how much a metric or cost may worsen.

    Args:
        metric: a metric, or ``cost.NAME``.
        method, benchmark: which pairings; ``*`` is all.
        attack: the attack under which rows were measured, ``*`` for each; empty for rows without an attack.
        max_drop: the most that a metric may worsen in its own direction (towards its target where it has one).
        max_change: the most that a metric may move either way.
        confidence: above 0, ``max_drop`` trips only where the worsening exceeds it with this one-sided confidence.
        max_ratio: the most that a cost may grow, as a factor.
        relative_to: a method; each cost is first divided by that of its cell in the same run. Times need one.
    """

    model_config = ConfigDict(strict=True)

    metric: str = ""
    method: str = "*"
    benchmark: str = "*"
    attack: str = ""
    max_drop: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_change: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    confidence: float = Field(default=0.0, ge=0, le=0.999, allow_inf_nan=False)
    max_ratio: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    relative_to: str = ""

    @property
    def cost(self) -> str:
        """The name of the cost that the gate bounds; empty where it bounds a metric."""
        return self.metric.removeprefix("cost.") if self.metric.startswith("cost.") else ""

    @model_validator(mode="after")
    def _bounds_something(self) -> Gate:
        if not self.metric:
            raise ValueError("a gate names a metric")
        metric_bounds = (self.max_drop, self.max_change)
        if not self.metric.startswith("cost."):
            if metric_bounds == (None, None):
                raise ValueError(f"{self.metric} needs max_drop or max_change")
            return self
        if self.max_ratio is None or metric_bounds != (None, None):
            raise ValueError(f"{self.metric} is bounded by max_ratio alone")
        if self.cost not in COSTS:
            costs = ", ".join(f"cost.{name}" for name in COSTS)
            raise ValueError(f"metric = {self.metric!r}: costs are {costs}")
        if self.cost in TIMES and not self.relative_to:
            raise ValueError(
                f"{self.metric} needs relative_to, the method whose cell in the same run it is a ratio of: seconds of "
                "two machines are not compared"
            )
        return self

    def __str__(self) -> str:
        given = {name: value for name, value in self.model_dump().items() if value not in (None, "", "*", 0.0)}
        del given["metric"]
        return f"{self.metric} ({', '.join(f'{name} = {value}' for name, value in given.items())})"


def read_gates(study: Mapping[str, Any]) -> list[Gate]:
    """The gates of a study's tables.

    Raises:
        UsageError: a gate is no table, has an unknown key or a value out of range, or bounds nothing.
    """
    raw = study.get("gates", [])
    if not isinstance(raw, list) or not all(isinstance(entry, Mapping) for entry in raw):
        raise UsageError("gates: expected a list of tables, [[gates]]")
    return [validated(Gate, entry, f"gates[{number}]") for number, entry in enumerate(raw)]
