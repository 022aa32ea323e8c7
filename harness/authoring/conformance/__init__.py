"""Conformance checks of methods, benchmarks and attacks, on a model of 30,000 weights, in seconds.

``unlearnbench check NAME`` prints them; ``unlearnbench.authoring.pytest_plugin`` offers them to pytest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import transformers

from ...plugin.registry import Component, Registry
from ...plugin.specs import AttackSpec, MethodSpec
from .attacks import check_attack
from .benchmarks import check_benchmark
from .checks import Check
from .methods import check_method

transformers.utils.logging.disable_progress_bar()


def check(component: Component[Any], data_dir: str = "") -> Iterator[Check]:
    """Run every check of a method, benchmark or attack in turn; a broken one stops only those that depend on it."""
    if isinstance(component.spec, MethodSpec):
        yield from check_method(component)
    elif isinstance(component.spec, AttackSpec):
        yield from check_attack(component)
    else:
        yield from check_benchmark(component, data_dir)


def checkable(registry: Registry, name: str) -> Component[Any]:
    """The method, benchmark or attack of that name."""
    kinds = {c.qualified: c for c in registry.components if c.spec.kind in ("method", "benchmark", "attack")}
    named = [c for c in kinds.values() if name in (c.spec.name, c.qualified)]
    return named[0] if len(named) == 1 else registry.find("method", name)
