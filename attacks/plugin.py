"""The built-in attacks as a plugin. ``catalogue.py`` declares them, and ``specs.json`` is written from it."""

from __future__ import annotations

from importlib.resources import files

from unlearnbench import AttackSpec, stored_attacks


def unlearnbench_attacks() -> list[AttackSpec]:
    return stored_attacks(files("unlearnbench.attacks") / "specs.json")
