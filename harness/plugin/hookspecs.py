"""The hooks: what a plugin may offer, and what the harness notifies it of.

A plugin is a module named by an entry point in the group ``unlearnbench``, or a file given with ``--plugin``.
Functions whose names begin with ``unlearnbench_`` are hooks; only pluggy's options (``tryfirst``, ``trylast``)
need the ``hookimpl`` marker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pluggy

from .specs import AttackSpec, BenchmarkSpec, ExecutorSpec, MethodSpec, ModelSpec, ReporterSpec

hookspec = pluggy.HookspecMarker("unlearnbench")
hookimpl = pluggy.HookimplMarker("unlearnbench")


@hookspec
def unlearnbench_methods() -> list[MethodSpec]:  # type: ignore[empty-body]
    """Called once when plugins load. Return the specs of the methods you offer."""


@hookspec
def unlearnbench_benchmarks() -> list[BenchmarkSpec]:  # type: ignore[empty-body]
    """Called once when plugins load. Return the specs of the benchmarks you offer."""


@hookspec
def unlearnbench_attacks() -> list[AttackSpec]:  # type: ignore[empty-body]
    """Called once when plugins load. Return the specs of the attacks on unlearned models that you offer."""


@hookspec
def unlearnbench_models() -> list[ModelSpec]:  # type: ignore[empty-body]
    """Called once when plugins load. Return the specs of the base models you offer."""


@hookspec
def unlearnbench_executors() -> list[ExecutorSpec]:  # type: ignore[empty-body]
    """Called once when plugins load. Return the specs of ways to run cells elsewhere."""


@hookspec
def unlearnbench_reporters() -> list[ReporterSpec]:  # type: ignore[empty-body]
    """Called once when plugins load. Return the specs of ways to show results."""


@hookspec
def unlearnbench_run_started(run: str, cells: int) -> None:
    """Called after planning, before the first cell; ``run`` is the run folder. Exceptions are logged only."""


@hookspec
def unlearnbench_cell_finished(cell: str, status: Mapping[str, Any]) -> None:
    """Called when a cell ends, however it ends. Exceptions are logged only.

    ``status`` has ``status``, ``reason``, ``seconds``, and ``kept`` where the cell was finished before this run.
    """


@hookspec
def unlearnbench_run_finished(run: str, exit_code: int) -> None:
    """Called last, before the command exits. Exceptions are logged only."""
