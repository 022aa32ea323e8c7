"""The built-in methods as a plugin. ``catalogue.py`` declares them, and ``specs.json`` is written from it."""

from __future__ import annotations

from importlib.resources import files

from unlearnbench import MethodSpec, stored_specs


def unlearnbench_methods() -> list[MethodSpec]:
    return stored_specs(files("unlearnbench.methods") / "specs.json")
