"""Conformance checks of methods and benchmarks, on a model of 30,000 weights, in seconds.

``unlearnbench check NAME`` prints them; ``unlearnbench.authoring.pytest_plugin`` offers them to pytest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import transformers

from ...plugin.registry import Component, Registry
from ...plugin.specs import MethodSpec
from .benchmarks import check_benchmark
from .checks import Check
from .methods import check_method

transformers.utils.logging.disable_progress_bar()


def check(component: Component[Any], data_dir: str = "") -> Iterator[Check]:
    """Run every check of a method or benchmark in turn; a broken one stops only the checks that depend on it."""
    if isinstance(component.spec, MethodSpec):
        yield from check_method(component)
    else:
        yield from check_benchmark(component, data_dir)


def checkable(registry: Registry, name: str) -> Component[Any]:
    """The method or benchmark of that name."""
    kinds = {c.qualified: c for c in registry.components if c.spec.kind in ("method", "benchmark")}
    named = [c for c in kinds.values() if name in (c.spec.name, c.qualified)]
    return named[0] if len(named) == 1 else registry.find("method", name)
