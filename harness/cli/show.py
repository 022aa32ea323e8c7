"""Commands that show registered components."""

from __future__ import annotations

import click

from .options import json_option, plugin_option, registry_of
from .output import print_columns, print_json, say

KINDS = ("methods", "benchmarks", "attacks", "models", "plugins", "executors", "reporters")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@plugin_option
@json_option
def list_components(kind: str, plugins: tuple[str, ...], as_json: bool) -> None:
    """List what is registered: methods, benchmarks, attacks, models, plugins, executors, reporters."""
    if kind == "plugins":
        return _list_plugins(plugins, as_json)
    registry = registry_of(plugins)
    components = registry.of_kind(kind.removesuffix("s"))  # type: ignore[arg-type]
    if as_json:
        facts = [{"name": c.spec.name, "qualified": c.qualified, "summary": c.spec.summary} for c in components]
        return print_json({kind: facts})
    conflicted = {name for offers in registry.conflicts().values() for name in offers}
    print_columns([(c.qualified if c.qualified in conflicted else c.spec.name, c.spec.summary) for c in components])
    return None


def _list_plugins(plugins: tuple[str, ...], as_json: bool) -> None:
    registry = registry_of(plugins)
    conflicts = registry.conflicts()
    rows = [
        {"name": p.name, "dist": p.dist, "version": p.version, "status": p.error or "ok", "offers": list(p.offers)}
        for p in registry.plugins
    ]
    if as_json:
        return print_json({"plugins": rows, "conflicts": conflicts})
    print_columns([(f"{row['dist']}/{row['name']}", str(row["version"]), str(row["status"])) for row in rows])
    for name, offers in conflicts.items():
        say(f"conflict: {name} is offered by {' and '.join(offers)}; use the qualified name")
    return None


@click.command()
@click.argument("name")
@plugin_option
@json_option
def show(name: str, plugins: tuple[str, ...], as_json: bool) -> None:
    """Show a method, benchmark, attack or model: hyperparameters, needs, citation; 'paper': its published tables."""
    if name == "paper":
        from ..leaderboard.published import print_published

        return print_published(as_json)
    from .description import described, description_lines

    facts = described(registry_of(plugins), name)
    if as_json:
        return print_json(facts)
    return say("\n".join(description_lines(facts)))
