"""Options that commands share, and the study that they give."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..domain import EDITIONS
from ..errors import UsageError
from .output import say

if TYPE_CHECKING:
    from ..planning.study import Study
    from ..plugin.registry import Registry

Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else.")
plugin_option = click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Load a plugin from a file.")
executor_option = click.option("--executor", metavar="NAME", help="What runs the cells (default: local).")
edition_option = click.option("--edition", type=click.Choice(EDITIONS), help="Metric edition shown.")
out_option = click.option("-o", "--out", metavar="DIR", help="Run folder (default: runs/<name of the study>).")


def _all_of(*options: Command) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


study_options = _all_of(
    click.argument("study_file", required=False, metavar="[STUDY]"),
    click.option("-m", "--method", "methods", multiple=True, help="Method to run; 'all' for every one."),
    click.option("-b", "--benchmark", "benchmarks", multiple=True, help="Benchmark to run on."),
    click.option("--attack", "attacks", multiple=True, help="Attack on each unlearned model; 'all' for every one."),
    click.option("--model", "models", multiple=True, help="Registered model, folder or hub id."),
    click.option("--seed", "seeds", multiple=True, type=int, help="Seed; several give a spread."),
    click.option("--data-dir", metavar="DIR", help="Read tables from a folder in the hub's layout."),
    click.option("--book", metavar="FILE", help="Text of the book to forget (benchmark hp)."),
    click.option("--other-text", metavar="FILE", help="Text to retain beside the book; default: C4."),
    click.option("--allow-missing", multiple=True, metavar="TABLE", help="Do without a table; rows are unranked."),
    click.option(
        "--stand-in",
        "stand_ins",
        multiple=True,
        metavar="TABLE=TABLE",
        help="Read another table in place of one; rows are unranked.",
    ),
    click.option("--data", type=click.Choice(["hub", "local", "generated"]), help="Where tables come from."),
    edition_option,
    click.option("--limit", type=int, help="Score the first rows of each part only."),
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any key of the study, e.g. methods.npo.beta=0.1.",
    ),
    click.option("--name", help="Name of the study and of its run folder."),
    plugin_option,
)
"""The options that ``plan`` and ``run`` share; each overrides a key of the study file."""

run_options = _all_of(
    out_option,
    click.option("-j", "--jobs", type=int, help="Cells at a time on each device."),
    click.option("--timeout", type=float, help="Seconds a cell may take."),
    click.option("--memory-limit", type=float, help="GiB of memory a cell may use."),
    click.option("--device", help="cpu, cuda, cuda:1, …"),
    executor_option,
    click.option(
        "--from",
        "sources",
        metavar="PATH",
        multiple=True,
        help="Go on from a bundle or run folder: cells of this study that are finished there are taken.",
    ),
    click.option("--detach", is_flag=True, help="Submit to a cluster and return; run again to follow."),
    click.option("--follow", metavar="CELL", help="Show the log of a cell as it is written, e.g. npo--tofu-forget05."),
    click.option("--tracker", metavar="NAME", help="Keep cells in trackio, wandb or mlflow, offline."),
    click.option("--keep-model", is_flag=True, default=None, help="Keep unlearned weights."),
    click.option("--site", metavar="DIR", help="Where the pages go (default: <run folder>/site)."),
    click.option("--strict-plugins", is_flag=True, help="Fail where any plugin does not load."),
    json_option,
)
"""Options for how to run a study."""

# Options whose values enter the study unparsed, with the key that each overrides.
PLAIN = {
    "methods": ("study", "methods"),
    "benchmarks": ("study", "benchmarks"),
    "models": ("study", "models"),
    "attacks": ("study", "attacks"),
    "seeds": ("study", "seeds"),
    "name": ("study", "name"),
    "edition": ("study", "edition"),
    "data_dir": ("data", "dir"),
    "data": ("data", "source"),
    "allow_missing": ("data", "allow_missing"),
    "book": ("data", "files", "book"),
    "other_text": ("data", "files", "retain"),
    "limit": ("benchmarks", "*", "limit"),
    "jobs": ("run", "jobs"),
    "timeout": ("run", "timeout"),
    "memory_limit": ("run", "memory_limit"),
    "device": ("run", "device"),
    "executor": ("run", "executor"),
    "keep_model": ("run", "keep_model"),
}


def registry_of(plugins: Sequence[str]) -> Registry:
    """Load all plugins; warn of those that do not load."""
    from ..plugin.registry import load_plugins

    registry = load_plugins(plugins)
    for plugin in registry.broken:
        say(f"warning: plugin {plugin.name} ({plugin.dist}) did not load: {plugin.error}", file=sys.stderr)
    return registry


def study_of(options: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Study:
    """The study of the file, or ``base``, with the command line over it. Only ``--set`` is parsed."""
    from ..planning.overrides import assigned, merged
    from ..planning.study import check_study, read_study, selected_by

    raw = read_study(options["study_file"]) if options.get("study_file") else dict(base or {})
    tables = merged(assigned(raw, options.get("assignments", ())), _tables(options))
    return check_study(tables, options.get("plugins", ()), selected_by(raw))


def _tables(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as tables of a study."""
    tables: dict[str, Any] = {}

    def put(path: Sequence[str], value: Any) -> None:
        target = tables
        for key in path[:-1]:
            target = target.setdefault(key, {})
        target[path[-1]] = value

    for option, path in PLAIN.items():
        value = options.get(option)
        if value is not None and value not in ((), ""):
            put(path, list(value) if isinstance(value, tuple) else value)
    if options.get("data_dir") and not options.get("data"):
        # A folder named on the command line overrides the source in the file.
        put(("data", "source"), "local")
    for swap in options.get("stand_ins", ()):
        table, equals, other = swap.partition("=")
        if not equals or not other:
            raise UsageError(f"--stand-in {swap!r}: expected TABLE=TABLE, for example raw/retain1=raw/retain1_standin")
        put(("data", "stand_ins", table), other)
    return tables
