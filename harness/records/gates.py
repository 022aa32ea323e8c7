"""What may not get worse between two runs, as a study says it in ``[[gates]]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UsageError
from ..plugin.parameters import Parameter, parse_parameters

TIMES = ("unlearn_seconds", "measure_seconds", "unlearn_cpu_seconds", "measure_cpu_seconds",
         "fastest_step_cpu_seconds")  # fmt: skip
COSTS = (*TIMES, "training_tokens", "optimiser_steps", "peak_memory_bytes")
PARAMETERS = (
    Parameter("metric", str, ""),
    Parameter("method", str, "*"),
    Parameter("benchmark", str, "*"),
    Parameter("max_drop", float, 0.0, low=0.0),
    Parameter("max_change", float, 0.0, low=0.0),
    Parameter("confidence", float, 0.0, low=0.0, high=0.999),
    Parameter("max_ratio", float, 1.0, low=1.0),
    Parameter("relative_to", str, ""),
)


@dataclass(frozen=True)
class Gate:
    """What may not get worse, and by how much.

    Args:
        metric: a metric, or ``cost.NAME``.
        method, benchmark: which pairings; ``*`` is all.
        max_drop: the most that a metric may worsen in its own direction (towards its target where it has one).
        max_change: the most that a metric may move either way.
        confidence: above 0, ``max_drop`` trips only where the worsening exceeds it with this one-sided confidence.
        max_ratio: the most that a cost may grow, as a factor.
        relative_to: a method whose cell in the same run the cost is divided by first; times need one.
    """

    metric: str
    method: str = "*"
    benchmark: str = "*"
    max_drop: float | None = None
    max_change: float | None = None
    confidence: float = 0.0
    max_ratio: float | None = None
    relative_to: str = ""

    def __str__(self) -> str:
        given = {name: value for name, value in asdict(self).items() if value not in (None, "", "*", 0.0)}
        del given["metric"]
        return f"{self.metric} ({', '.join(f'{name} = {value}' for name, value in given.items())})"


def read_gates(study: Mapping[str, Any]) -> list[Gate]:
    """The gates of a study's tables.

    Raises:
        UsageError: a gate that is no table, has an unknown key or a value out of range, or bounds nothing.
    """
    raw = study.get("gates", [])
    if not isinstance(raw, list) or not all(isinstance(entry, Mapping) for entry in raw):
        raise UsageError("gates: expected a list of tables, [[gates]]")
    gates = []
    for number, entry in enumerate(raw):
        where = f"gates[{number}]"
        values: dict[str, Any] = {**parse_parameters(PARAMETERS, entry, where)}
        if not values["metric"]:
            raise UsageError(f"{where}: a gate names a metric")
        gate = Gate(**{name: value for name, value in values.items() if name in entry})
        cost = gate.metric.startswith("cost.")
        if cost and (gate.max_ratio is None or gate.max_drop is not None or gate.max_change is not None):
            raise UsageError(f"{where}: {gate.metric} is bounded by max_ratio alone")
        if not cost and gate.max_drop is None and gate.max_change is None:
            raise UsageError(f"{where}: {gate.metric} needs max_drop or max_change")
        if cost and gate.metric.removeprefix("cost.") not in COSTS:
            raise UsageError(f"{where}.metric = {gate.metric!r}: costs are {', '.join(f'cost.{n}' for n in COSTS)}")
        if cost and gate.metric.removeprefix("cost.") in TIMES and not gate.relative_to:
            raise UsageError(
                f"{where}: {gate.metric} needs relative_to, the method whose cell in the same run it is a ratio of: "
                "seconds of two machines are not compared"
            )
        gates.append(gate)
    return gates
